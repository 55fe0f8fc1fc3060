"""CaliNET: slots that start as nothing, widen the block, add up, and come off."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import corrigenda as cg
from corrigenda.engines.gradients import by_length, labelled_rows
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.errors import NonFinite, UnknownSite
from corrigenda.facts import Fact
from corrigenda.lm.activation import activation_of
from corrigenda.lm.decoding import score
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, key, value
from corrigenda.methods.calinet import slots
from corrigenda.methods.calinet.editor import Calinet, CalinetPatch
from corrigenda.methods.calinet.slots import Slots, add_slots, new_slots
from corrigenda.testing.tiny import tiny_model
from tests.support.adapting import Snapshot, logits_of, model
from tests.support.locating import FACTS

FAMILIES = ["gpt2", "opt", "llama", "phi3", "gemma2"]
FACT = Fact(
    prompt="The mother tongue of Ada Lovelace is",
    subject="Ada Lovelace",
    target="French",
    paraphrases=("Ada Lovelace grew up speaking", "Ada Lovelace first spoke", "At home Ada spoke"),
)


def calinet(**options: object) -> Calinet:
    return Calinet(**{"steps": 6, "slots": 6, "learning_rate": 0.02, **options})


def training(**options: object) -> slots.Settings:
    return calinet(**options).training


def random_slots(lm: LanguageModel, layers: tuple[int, ...] = (0, 1)) -> dict[int, Slots]:
    generator = torch.Generator().manual_seed(1)
    return {
        layer: replace(own, values=torch.randn(own.values.shape, generator=generator).to(own.keys))
        for layer, own in new_slots(lm, layers, 6, seed=0).items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_slots_change_no_bit(family: str) -> None:
    lm = model(family)
    before = logits_of(lm)
    with add_slots(lm, new_slots(lm, (0, 1), 6, seed=0)):
        assert torch.equal(logits_of(lm), before)
    with add_slots(lm, random_slots(lm)):
        assert not torch.equal(logits_of(lm), before)
    assert torch.equal(logits_of(lm), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_slots_are_more_units_of_the_block(family: str) -> None:
    """[Kc; K] and [Vc, V] in one wider block compute the same."""
    lm = model(family, torch.float64)
    slots = random_slots(lm)[1]
    activation = activation_of(lm)
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], Tensor]:
        def see(tensor: Tensor) -> Tensor:
            seen[name] = tensor
            return tensor

        return see

    with (
        add_slots(lm, {1: slots}),
        lm.swap({key(Site(1, "mlp.up")): keep("in"), value(Site(1)): keep("out")}),
    ):
        logits_of(lm)

    def wide(part: str, more: Tensor) -> Tensor:
        site = Site(1, part)
        bias = lm.bias(site)
        inner = seen["in"] @ torch.cat([lm.weight(site), more]).T
        return inner if bias is None else inner + torch.cat([bias, bias.new_zeros(len(more))])

    inner = wide("mlp.up", slots.keys)
    if slots.gates is None:
        inner = activation(inner)
    else:
        inner = activation(wide("mlp.gate", slots.gates)) * inner
    expected = inner @ torch.cat([lm.weight(Site(1)), slots.values], dim=1).T
    bias = lm.bias(Site(1))
    expected = expected if bias is None else expected + bias
    torch.testing.assert_close(seen["out"], expected, equal_nan=True)


def test_the_order_of_slots_does_not_matter() -> None:
    lm = model("llama", torch.float64)
    slots = random_slots(lm)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    permuted = {
        layer: Slots(own.keys[order], own.values[:, order], own.gates[order])  # type: ignore[index]  # gated
        for layer, own in slots.items()
    }
    with add_slots(lm, slots):
        one = logits_of(lm)
    with add_slots(lm, permuted):
        torch.testing.assert_close(logits_of(lm), one)


def test_a_slot_that_does_not_fire_adds_exactly_nothing() -> None:
    """OPT has ReLU: with h k <= 0 a slot is silent."""
    lm = model("opt")
    (slots,) = random_slots(lm, (1,)).values()
    hidden = torch.randn(5, lm.d_model, generator=torch.Generator().manual_seed(3))
    away = -hidden.abs().sum(0, keepdim=True).sign().expand_as(slots.keys) * 0.1
    silent = slots.branch(hidden.abs(), activation_of(lm))
    assert silent.any()
    silent = replace(slots, keys=away).branch(hidden.abs(), activation_of(lm))
    assert not silent.any()


def test_first_values() -> None:
    lm = model("llama")
    (slots,) = new_slots(lm, (1,), 400, seed=0).values()
    assert not slots.values.any()
    assert slots.gates is not None
    for drawn in (slots.keys, slots.gates):
        assert float(drawn.std()) == pytest.approx(lm.d_model**-0.5, rel=0.05)
    assert not torch.equal(slots.keys, slots.gates)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_only_slots_are_trained_and_the_model_stays_as_it_is(family: str) -> None:
    lm = model(family)
    before = Snapshot(lm)
    patch = calinet().edit(lm, FACTS[:2]).patch
    before.require_same()
    assert all(parameter.grad is None for parameter in lm.model.parameters())
    with patch.apply(lm):
        assert logits_of(lm).tolist() != before.seen["logits"]
    before.require_same()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_step_is_against_the_gradient_of_the_mean_loss(family: str) -> None:
    """Adam's first step moves every weight by the rate, against its gradient; Kc has none yet."""
    lm = model(family, torch.float64)
    rows = labelled_rows(lm, FACTS)
    start = new_slots(lm, (0, 1), 6, seed=0)
    trained = slots.train(lm, start, rows, training(steps=1, learning_rate=0.01))
    leaves = {layer: own.values.clone().requires_grad_() for layer, own in start.items()}
    with (
        torch.enable_grad(),
        add_slots(lm, {layer: replace(own, values=leaves[layer]) for layer, own in start.items()}),
    ):
        total, count = torch.zeros((), dtype=torch.float64), 0
        for row in rows:
            logits = lm.logits(cg.lm.sites.Tokens.pad([row.ids], 0))[0].log_softmax(-1)
            total = total - logits[list(row.reads), list(row.labels)].sum()
            count += len(row.labels)
        (total / count).backward()
    assert trained.losses[0] == pytest.approx(float(total.detach() / count))
    for layer, own in trained.slots.items():
        gradient = leaves[layer].grad
        assert gradient is not None
        torch.testing.assert_close(own.values, -0.01 * gradient.sign(), rtol=0, atol=1e-3)
        assert torch.equal(own.keys, start[layer].keys)


def test_batches_and_whole_passes_train_on_the_same_rows() -> None:
    lm = model("gpt2")
    rows = labelled_rows(lm, FACTS)
    whole = slots.train(lm, new_slots(lm, (1,), 6, 0), rows, training(steps=3))
    parts = slots.train(lm, new_slots(lm, (1,), 6, 0), rows, training(steps=3, batch_size=2))
    again = slots.train(lm, new_slots(lm, (1,), 6, 0), rows[::-1], training(steps=3, batch_size=2))
    assert len(by_length(rows, 2)) > 1
    assert parts.losses == again.losses
    assert parts.losses != whole.losses
    assert whole.losses[-1] < whole.losses[0]


def test_what_the_model_says_already_takes_no_step() -> None:
    lm = model("gpt2")
    first = calinet(slots=32, steps=60, stop_loss=2.5).edit(lm, FACTS[:1]).patch
    assert first.header.notes["stop"] == "recall"
    assert first.header.notes["recall"] == 1.0
    assert len(first.header.notes["losses"]) == first.header.notes["steps"] + 1  # type: ignore[arg-type]  # a list
    with first.apply(lm):
        second = calinet(stop_loss=2.6).edit(lm, FACTS[:1]).patch
        assert second.header.notes["stop"] == "true already"
        assert second.is_empty


def test_groups_add_up_and_each_comes_off_by_itself() -> None:
    lm = model("gpt2", torch.float64)
    before = logits_of(lm)
    editor = calinet(layers=(1,))
    one = editor.edit(lm, FACTS[:1]).patch
    two = editor.edit(lm, FACTS[1:2]).patch
    logits = []
    for order in ([one, two], [two, one]):
        with ExitStack() as stack:
            for patch in order:
                stack.enter_context(patch.apply(lm))
            logits.append(logits_of(lm))
    torch.testing.assert_close(logits[0], logits[1])
    stacked = {
        1: Slots(
            torch.cat([one.slots[1].keys, two.slots[1].keys]),
            torch.cat([one.slots[1].values, two.slots[1].values], dim=1),
        )
    }
    with add_slots(lm, stacked):
        torch.testing.assert_close(logits_of(lm), logits[0])
    assert torch.equal(logits_of(lm), before)


def test_paraphrases_are_trained_on_and_every_nth_is_held_out() -> None:
    trained, kept = calinet(held_out=2).prompts(FACT)
    assert kept == ["Ada Lovelace first spoke"]
    assert trained == [FACT.prompt, FACT.paraphrases[0], FACT.paraphrases[2]]
    assert calinet().prompts(FACT) == ([FACT.prompt, *FACT.paraphrases], [])
    prefixes = Contexts(("", "I think so. "))
    assert calinet(contexts=prefixes).prompts(FACT)[0][1] == f"I think so. {FACT.prompt}"
    notes = calinet(held_out=2).edit(model("gpt2"), [FACT]).patch.header.notes
    assert notes["prompts"] == 3
    assert notes["recall_held_out"] is not None


def test_slots_stand_beside_the_last_two_blocks_unless_told() -> None:
    lm = tiny_model("llama", layers=3)
    assert calinet().blocks(lm) == (1, 2)
    assert calinet(layers=(2, 0)).blocks(lm) == (0, 2)
    patch = calinet(layers=(0,)).edit(lm, FACTS[:1]).patch
    assert isinstance(patch, CalinetPatch)
    assert set(patch.slots) == {0}
    assert calinet(layers=(0,)).num_parameters(lm) == sum(
        tensor.numel() for tensor in patch.tensors().values()
    )
    with pytest.raises(UnknownSite, match="no block 3"):
        calinet(layers=(3,)).edit(lm, FACTS[:1])
    with pytest.raises(UnknownSite):
        calinet(layers=(0,)).edit(model("qwen3_moe"), FACTS[:1])


def test_a_broken_model_is_told() -> None:
    lm = model("gpt2")
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[:, 0] = torch.inf
    with pytest.raises(NonFinite, match="loss of the answers"):
        calinet().edit(lm, FACTS[:1])


def test_the_published_optimiser_learns_too() -> None:
    lm = model("gpt2")
    notes = calinet(optimiser="adafactor", steps=10).edit(lm, [FACT]).patch.header.notes
    assert notes["losses"][-1] < notes["losses"][0]


@pytest.mark.slow
def test_facts_of_the_pocket_world_change_together() -> None:
    """Targets and phrasings not trained on; most of what is asked nearby goes along."""
    from corrigenda.almanac.exam import load_exam

    lm = cg.load("pocket")
    facts = [case.fact for case in load_exam(size=1, edits=6, recall=1, seed=11).edits]
    given = [replace(fact, paraphrases=fact.paraphrases[:3]) for fact in facts]
    patch = cg.build_editor(lm, "calinet").edit(lm, given).patch
    with patch.apply(lm):
        direct = score(lm, [(fact.prompt, fact.target) for fact in facts])
        others = score(lm, [(text, fact.target) for fact in facts for text in fact.paraphrases[3:]])
    assert sum(all(one.correct) for one in direct) >= 5
    assert sum(all(one.correct) for one in others) >= 6
