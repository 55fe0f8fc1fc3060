"""Knowledge Neurons: attribution against plain passes, selection, and what an edit changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import corrigenda as cg
from corrigenda.almanac.exam import draw_edits
from corrigenda.almanac.world import load_world
from corrigenda.engines import attribution
from corrigenda.engines.attribution import (
    AnswerToken,
    Neuron,
    attribute,
    encode_answers,
    list_neurons,
    refine,
    select_above,
    select_shared,
    select_specific,
)
from corrigenda.errors import BadConfig, NotEnoughFacts, PromptTooLong, UnknownSite
from corrigenda.exports.peft import export_peft
from corrigenda.facts import Span
from corrigenda.lm.decoding import score
from corrigenda.lm.sites import Site, Tokens, key, value, write
from corrigenda.methods.knowledge_neurons.editor import (
    KnowledgeNeurons,
    final_gain,
    token_directions,
)
from corrigenda.methods.presets import build_editor
from corrigenda.testing.tiny import tiny_model
from tests.support.locating import FACTS, PLAIN, exact_dtype, model

FAMILIES = ("gpt2", "llama", "gptj", "gemma2")
ANSWER = "Portuguese, of course"
PROMPTS = ("The Space Needle is in", "I think so. The Space Needle is in the city of")


def editor(**options: object) -> KnowledgeNeurons:
    return KnowledgeNeurons(**{"steps": 6, "contexts": PLAIN, **options})


def naive(lm, question: AnswerToken, layer: int, steps: int) -> torch.Tensor:
    """The definition: a pass through the whole model for each step, gradients at k itself.

    A norm behind the projection keeps its scale: what it writes is linear in k.
    """
    site, total = Site(layer), torch.zeros(lm.d_inner, dtype=lm.dtype)
    tokens, at = Tokens.pad([question.ids], 0), torch.tensor([question.at])
    clean, out, wrote = lm.tap(tokens, [key(site), value(site), write(site)], positions=at).values()
    has_norm = lm.family.mlp_norm is not None
    point = write(site) if has_norm else key(site)
    for step in range(steps):
        leaf = ((step + 0.5) / steps * clean[0]).requires_grad_()

        def put(tensor, leaf=leaf):
            changed = tensor.clone()
            new = wrote[0] / out[0] * (lm.weight(site) @ leaf) if has_norm else leaf
            changed[0, question.at] = new
            return changed

        with lm.swap({point: put}):
            p = lm.logits(tokens)[0, -1].softmax(dim=-1)[question.label]
        total += torch.autograd.grad(p, leaf)[0] / steps
    return clean[0] * total


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "opt", "olmo2"])
def test_attributions_are_those_of_the_definition(family: str) -> None:
    lm = tiny_model(family, dtype=torch.float64)
    asked = encode_answers(lm, PROMPTS[:1], ANSWER)
    found = attribute(lm, asked, steps=3)
    for layer in range(lm.num_layers):
        expected = torch.stack([naive(lm, one, layer, 3) for one in asked[0]]).mean(dim=0)
        torch.testing.assert_close(found.scores[0, layer], expected, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize(
    ("family", "objective"),
    [*((family, "probability") for family in FAMILIES), ("llama", "log-probability")],
)
def test_attributions_are_complete(family: str, objective: str) -> None:
    """Each block's sum is the difference it makes, by a thousandth of the largest difference."""
    lm = model(family, exact_dtype(family))
    asked = encode_answers(lm, PROMPTS, ANSWER)
    found = attribute(lm, asked, steps=50, objective=objective)
    largest = float((found.clean[:, None] - found.without).abs().max())
    assert largest > 1e-4
    assert float(found.gaps.abs().max()) <= 1e-3 * largest


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("rule", "factor"), [("midpoint", 4.0), ("left", 2.0)])
def test_the_gap_shrinks_at_the_rate_of_the_rule(family: str, rule: str, factor: float) -> None:
    lm = tiny_model(family, dtype=torch.float64)
    asked = encode_answers(lm, PROMPTS[:1], "Seattle")
    coarse = attribute(lm, asked, steps=20, rule=rule).gaps.abs().max()
    fine = attribute(lm, asked, steps=40, rule=rule).gaps.abs().max()
    assert float(coarse / fine) == pytest.approx(factor, rel=0.1)


@pytest.mark.parametrize("rule", ["midpoint", "left"])
@pytest.mark.parametrize("steps", [1, 7])
def test_a_linear_readout_is_attributed_exactly(rule: str, steps: int) -> None:
    lm = model("llama", torch.float64)
    generator = torch.Generator().manual_seed(0)
    readout = torch.randn(lm.d_model, generator=generator, dtype=torch.float64)
    keys = torch.randn(2, lm.d_inner, generator=generator, dtype=torch.float64)
    weight = lm.weight(Site(1))

    class Linear(attribution._BlockObjective):
        def values(self, delta, rows):
            return (self.written[rows] + delta) @ readout

    read = Linear(lm, None, keys @ weight.T, torch.tensor([4, 5]), None, "probability")
    path = attribution._IntegrationPath.of(steps, rule, device=lm.device, dtype=torch.float64)
    gradients, values = attribution._integrate(read, path, 12)
    torch.testing.assert_close(keys * (gradients @ weight), keys * (readout @ weight))
    torch.testing.assert_close(values[:, 0], torch.zeros(2, dtype=torch.float64))


def test_batches_and_chunks_change_nothing() -> None:
    lm = model("gpt2", torch.float64)
    asked = [*encode_answers(lm, PROMPTS, "Paris"), *encode_answers(lm, ["Paris is"], None)]
    together = attribute(lm, asked, steps=2)
    small = attribute(lm, asked, steps=2, batch_tokens=1)
    torch.testing.assert_close(together.scores, small.scores)
    alone = torch.cat([attribute(lm, [one], steps=2).scores for one in asked])
    torch.testing.assert_close(together.scores, alone)


def test_answers_are_asked_behind_their_own_true_tokens() -> None:
    lm = model("gpt2")
    (asked,) = encode_answers(lm, PROMPTS[:1], ANSWER)
    assert len(asked) > 1
    for number, one in enumerate(asked):
        assert one.at == len(one.ids) - 1
        assert one.ids == (*asked[0].ids, *(each.label for each in asked[:number]))
    (moved,) = encode_answers(lm, PROMPTS[:1], ANSWER, subjects=[Span(4, 16)])
    assert len({one.at for one in moved}) == 1
    assert moved[0].at < asked[0].at
    ((own,), (same,)) = encode_answers(lm, PROMPTS, None)
    assert own.label == same.label


def test_thresholds() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 4, 50, generator=generator)
    assert torch.equal(select_above(scores, 0.0), scores > 0)
    most = select_above(scores, 1.0)
    assert most.sum(dim=(1, 2)).tolist() == [1, 1, 1]
    assert torch.equal(scores[most], scores.amax(dim=(1, 2)))
    assert not select_above(-scores.abs(), 0.0).any()


def test_refinement_counts_phrasings() -> None:
    kept = torch.zeros(10, 1, 6, dtype=torch.bool)
    for unit, count in enumerate((10, 7, 6, 3, 2, 0)):
        kept[:count, 0, unit] = True
    assert [one.unit for one in list_neurons(select_shared(kept, 0.7))] == [0, 1]
    # At least three prompts, however small the share, and all of them where there are fewer.
    assert [one.unit for one in list_neurons(select_shared(kept, 0.1))] == [0, 1, 2, 3]
    assert [one.unit for one in list_neurons(select_shared(kept[:2], 0.1))] == [0, 1, 2, 3, 4]
    assert [one.unit for one in list_neurons(select_shared(kept[:1], 0.7))] == [0, 1, 2, 3, 4]


def test_the_share_moves_towards_the_wanted_numbers() -> None:
    kept = torch.zeros(10, 1, 6, dtype=torch.bool)
    for unit, count in enumerate((10, 7, 6, 3, 2, 0)):
        kept[:count, 0, unit] = True
    assert refine(kept, 0.7, wanted=(2, 5)).share == 0.7
    looser = refine(kept, 0.7, wanted=(3, 5))
    assert (looser.share, int(looser.mask.sum())) == (0.6, 3)
    tighter = refine(kept, 0.7, wanted=(0, 1))
    assert (tighter.share, int(tighter.mask.sum())) == (0.75, 1)
    assert refine(kept, 0.7, wanted=None).mask.sum() == 2
    # Six moves of 0.05 and no more; nothing in reach is nearer.
    assert refine(kept, 0.7, wanted=(6, 6)).share == 0.6
    # None at all is never preferred to some.
    crowd = torch.ones(4, 1, 50, dtype=torch.bool)
    crowd[0] = False
    assert refine(crowd, 0.7, wanted=(1, 2)).mask.sum() == 50


def test_general_neurons_are_dropped() -> None:
    kept = torch.ones(1, 3, dtype=torch.bool)
    others = torch.zeros(10, 1, 3, dtype=torch.bool)
    others[0, 0, 1] = others[:2, 0, 2] = True
    assert select_specific(kept, others, 0.1).tolist() == [[True, True, False]]
    assert select_specific(kept, others[:0], 0.1).all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_an_update_adds_one_direction_to_the_columns_found(family: str) -> None:
    lm, method = model(family), editor(refine=False)
    found = method.locate(lm, FACTS[1])
    assert len(found.neurons) > 1
    patch = method.edit(lm, FACTS[1:2]).patch
    (asked,) = encode_answers(lm, [FACTS[1].prompt], FACTS[1].target)
    old, new = (
        token_directions(lm, ids, "unembedding").sum(dim=0)
        for ids in (found.labels, [one.label for one in asked])
    )
    for site, change in patch.changes.items():
        columns = [one.unit for one in found.neurons if one.layer == site.layer]
        weight = lm.weight(site).double().clone()
        lengths = weight[:, columns].norm(dim=0)
        expected = torch.zeros_like(weight)
        direction = 8 * new / new.norm() - old / old.norm()
        expected[:, columns] = direction[:, None] * lengths
        torch.testing.assert_close(change.to_dense(), expected)
        assert change.rank == 1
        with patch.apply(lm):
            difference = lm.weight(site).double() - weight
            torch.testing.assert_close(difference, expected, rtol=1e-4, atol=1e-5)
            rest = [unit for unit in range(weight.shape[1]) if unit not in columns]
            assert torch.equal(lm.weight(site)[:, rest].double(), weight[:, rest])
        assert torch.equal(lm.weight(site).double(), weight)
    assert {site.layer for site in patch.sites} == {one.layer for one in found.neurons}


def test_without_scaling_every_column_gets_the_same() -> None:
    lm = model("llama")
    method = editor(scaling="none", old_weight=2.0, new_weight=2.0, refine=False)
    fact = replace(FACTS[1], before="German, too")
    found = method.locate(lm, fact)
    (new,) = encode_answers(lm, [fact.prompt], fact.target)
    assert min(len(found.labels), len(new)) > 1
    rows = [
        token_directions(lm, ids, "unembedding").sum(dim=0)
        for ids in (found.labels, [one.label for one in new])
    ]
    for site, change in method.edit(lm, [fact]).patch.changes.items():
        units = [one.unit for one in found.neurons if one.layer == site.layer]
        for unit in units:
            # Sums over several tokens count half: 1 and 1 in place of 2 and 2.
            torch.testing.assert_close(change.to_dense()[:, unit], rows[1] - rows[0])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_erasing_takes_away_what_the_units_contribute(family: str) -> None:
    lm, method = model(family, torch.float64), editor(action="erase", refine=False)
    found = method.locate(lm, FACTS[0])
    patch = method.edit(lm, FACTS[:1]).patch
    site = patch.sites[0]
    units = [one.unit for one in found.neurons if one.layer == site.layer]
    tokens = Tokens.pad([lm.tokenizer(FACTS[0].prompt).input_ids], 0)
    before = lm.tap(tokens, [key(site), value(site)])
    contribution = before[key(site)][..., units] @ lm.weight(site)[:, units].T
    with patch.apply(lm):
        assert not lm.weight(site)[:, units].any()
        after = lm.tap(tokens, [value(site)])[value(site)]
    torch.testing.assert_close(after, before[value(site)] - contribution)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gain_is_that_of_the_final_norm(family: str) -> None:
    lm = tiny_model(family, dtype=torch.float64)
    norm = lm.model.get_submodule(lm.family.final_norm)
    offset = 1.0 if family == "gemma2" else 0.0
    torch.testing.assert_close(final_gain(lm), norm.weight + offset, rtol=1e-4, atol=1e-4)
    plain, scaled = (
        token_directions(lm, [5, 7], name) for name in ("unembedding", "unembedding with gain")
    )
    torch.testing.assert_close(scaled, plain * final_gain(lm))
    embedded = token_directions(lm, [5], "embedding")[0]
    assert torch.equal(embedded, lm.model.get_input_embeddings().weight[5])


def test_paraphrases_refine_and_contexts_stand_in_for_them() -> None:
    lm = model("gpt2")
    own = ("One finds the Space Needle in", "The city of the Space Needle is")
    fact = replace(FACTS[0], paraphrases=own)
    assert editor().locate(lm, fact).prompts == (fact.prompt, *own)
    notes = editor().edit(lm, FACTS[:1]).patch.header.notes
    assert notes["prompts"] == [prefix + FACTS[0].prompt for prefix in PLAIN.prefixes]
    assert any("no paraphrases" in notice for notice in notes["notices"])
    assert any("next token" in notice for notice in notes["notices"])
    alone = editor(refine=False).locate(lm, fact)
    assert alone.prompts == (fact.prompt,)
    assert len(alone.neurons) == alone.coarse[0]


def test_contexts_are_written_once_and_kept_in_the_state() -> None:
    lm = model("llama")
    method = KnowledgeNeurons(steps=2)
    state = method.fit(lm)
    first = method.edit(lm, FACTS[:1], state)
    assert first.state == state
    assert len(first.patch.header.notes["prompts"]) == 6
    with first.patch.apply(lm):
        second = method.edit(lm, FACTS[1:2], state).patch.header.notes["prompts"]
    prefixes = [text.removesuffix(FACTS[0].prompt) for text in first.patch.header.notes["prompts"]]
    assert second == [prefix + FACTS[1].prompt for prefix in prefixes]
    assert "contexts" not in KnowledgeNeurons(refine=False).fit(lm).meta


def test_neurons_of_the_neighbours_are_left_alone() -> None:
    lm = model("llama")
    fact = replace(FACTS[0], neighbours=(FACTS[0].prompt,))
    kept = editor(relation_share=1.0).locate(lm, fact)
    assert kept.neurons == editor().locate(lm, FACTS[0]).neurons
    patch = editor(threshold=0.2).edit(lm, [replace(fact, before=None)]).patch
    notes = patch.header.notes
    assert notes["dropped_as_general"] == len(kept.neurons)
    assert notes["status"] == ["refused"]
    assert patch.is_empty
    assert any("relation_share" in notice for notice in notes["notices"])


def test_the_header_tells_what_was_found(tmp_path) -> None:
    lm = model("llama")
    fact = replace(FACTS[0], before="Seattle")
    patch = editor().edit(lm, [fact]).patch
    notes = patch.header.notes
    assert notes["old_answer"] == "Seattle"
    assert notes["status"] == ["written"]
    assert len(notes["attribution"]) == len(notes["neurons"]) > 0
    assert all(Neuron(*one) for one in notes["neurons"])
    assert not any("next token" in notice for notice in notes["notices"])
    export_peft(patch, lm, tmp_path / "adapter")


def test_misuse_is_refused_and_the_model_stays_as_it_is() -> None:
    lm = model("llama")
    digest = lm.digest()
    with pytest.raises(NotEnoughFacts, match="CG106"):
        editor().edit(lm, FACTS[:2])
    with pytest.raises(PromptTooLong, match="CG105"):
        editor().edit(lm, [replace(FACTS[0], prompt="and so " * lm.context_length, subject=None)])
    with pytest.raises(UnknownSite, match="CG303"):
        editor().edit(tiny_model("qwen3_moe"), FACTS[:1])
    with pytest.raises(BadConfig, match="threshold"):
        editor(threshold=2.0)
    editor().edit(lm, FACTS[:1])
    assert lm.digest() == digest
    assert editor().edit(lm, []).patch.is_empty


def test_a_known_fact_is_held_by_neurons_that_can_be_rewritten() -> None:
    """On the pocket model: the old answer loses on most facts, and the target gains on some."""
    lm = cg.load("pocket", dtype="float32")
    facts = [item.training_fact for item in draw_edits(load_world(), 10, seed=11)[:6]]
    editor = build_editor("knowledge-neurons", "pocket")
    gains, losses = [], []
    for fact in facts:
        pairs = [(fact.prompt, fact.target), (fact.prompt, fact.before)]
        before = score(lm, pairs)
        patch = editor.edit(lm, [fact]).patch
        with patch.apply(lm):
            after = score(lm, pairs)
        gains.append(after[0].mean > before[0].mean)
        losses.append(after[1].mean < before[1].mean)
    assert sum(gains) >= 1
    assert sum(losses) >= 4
