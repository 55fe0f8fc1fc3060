"""MEND: factors of the gradient, networks that begin as the identity, the outer problem."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import corrigenda as cg
from corrigenda.almanac.exam import draw_edits
from corrigenda.almanac.training_facts import training_facts
from corrigenda.almanac.world import load_world
from corrigenda.engines.gradients import LabelledRow, labelled_rows, predict
from corrigenda.errors import MissingState, UnknownSite, WrongBase
from corrigenda.facts import Fact
from corrigenda.knowledge.edit_trial import try_single_edits
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens
from corrigenda.methods.mend.editor import EditTask, Mend, MendTrainer
from corrigenda.methods.mend.network import (
    Factors,
    GradientRewriter,
    Networks,
    apply_factors,
    gradient_factors,
)
from corrigenda.methods.presets import build_editor
from corrigenda.patch import WeightPatch
from corrigenda.patch.changes import dense
from corrigenda.state import State
from corrigenda.training import TrainingReport
from tests.support.locating import FACTS, exact_dtype, model

TRAINING = tuple(
    Fact(
        prompt=f"{name} is in",
        subject=name,
        target=place,
        paraphrases=(f"Where is {name}?", f"{name} lies in"),
        neighbours=(f"{other} is in",),
    )
    for name, other in (
        ("Arles", "Faro"),
        ("Bergen", "Arles"),
        ("Cork", "Delft"),
        ("Essen", "Oslo"),
    )
    for place in ("Chile", "Peru")
)
QUICK = {"layers": (1, 3), "rank": 8, "batch_size": 3, "validate_every": 4, "steps": 4}


def loss_of(lm: LanguageModel, rows: Sequence[LabelledRow]) -> Tensor:
    """Sum over rows of the mean cross-entropy of their labels."""
    logits, labels = predict(lm, rows)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return torch.stack([one.mean() for one in losses.split([len(r.labels) for r in rows])]).sum()


def weight_gradients(
    lm: LanguageModel, rows: Sequence[LabelledRow], sites: Sequence[Site]
) -> dict[Site, Tensor]:
    """The gradient of each whole weight, as (d_out, d_in)."""
    parameters = {site: lm.model.get_parameter(lm.parameter_name(site)) for site in sites}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        found = torch.autograd.grad(loss_of(lm, rows), list(parameters.values()))
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    return {
        site: one if one.shape == lm.weight(site).shape else one.T
        for site, one in zip(sites, found, strict=True)
    }


def change(factors: Factors) -> Tensor:
    return factors.outputs.T @ factors.inputs


def fitted(editor: Mend, lm: LanguageModel) -> State:
    return editor.train(lm, TRAINING)


def trainer_of(editor: Mend, lm: LanguageModel, dtype: torch.dtype = torch.float32) -> MendTrainer:
    """A trainer whose networks have read some tokens and left the identity."""
    networks = editor.build_network(lm).to(dtype)
    networks.update_statistics(
        gradient_factors(lm, labelled_rows(lm, TRAINING), editor.sites(lm))[0]
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in networks.groups.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return editor.make_trainer(lm, networks)


def tasks_of(trainer: MendTrainer, items: Sequence[int] = (0, 3, 5)) -> list[EditTask]:
    outsiders = trainer.draw_unrelated(TRAINING)
    return trainer.make_tasks(TRAINING, outsiders, items, random.Random(0))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_factors_are_those_of_the_gradient_and_rows_do_not_see_each_other(family: str) -> None:
    lm = model(family, exact_dtype(family))
    sites = Mend(layers=(1, 3)).sites(lm)
    rows = labelled_rows(lm, FACTS)
    # Llama normalises in float32 whatever the dtype.
    tolerance = {"gpt2": 1e-9, "llama": 1e-6, "gemma2": 1e-4}[family]
    factors, losses = gradient_factors(lm, rows, sites)
    for site, wanted in weight_gradients(lm, rows, sites).items():
        assert (change(factors[site]) - wanted).norm() <= tolerance * wanted.norm()
    assert sum(losses) == pytest.approx(float(loss_of(lm, rows)), rel=1e-4)
    alone = [gradient_factors(lm, [row], sites)[0] for row in rows]
    last = Site(3, "mlp.down")
    for number, one in enumerate(alone):
        for site in sites:
            mine = factors[site].owners == number
            part = Factors(*(tensor[mine] for tensor in factors[site]))
            assert (change(part) - change(one[site])).norm() <= 1e-4 * change(one[site]).norm()
        # In the last block nothing but the tokens that predict the answer has a gradient.
        assert len(one[last].owners) == len(rows[number].labels)
        assert len(one[Site(1, "mlp.down")].owners) == len(rows[number].ids)


def test_without_normalisation_an_untrained_edit_is_a_step_along_the_gradient() -> None:
    lm = model("gpt2", torch.float64)
    editor = Mend(layers=(1, 3), normalise=False, edit_rate=-0.3, rank=8)
    networks = editor.build_network(lm).double()
    rows = labelled_rows(lm, FACTS)
    edits = networks(gradient_factors(lm, rows, editor.sites(lm))[0])
    for site, gradient in weight_gradients(lm, rows, editor.sites(lm)).items():
        wanted = float(networks.rate(site).detach()) * gradient
        assert (change(edits[site]).detach() - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize("rewrite", ["jointly", "separately", "inputs", "gradients"])
def test_an_untrained_network_returns_what_it_reads_to_the_bit(rewrite: str) -> None:
    generator = torch.Generator().manual_seed(0)
    joint = torch.randn(9, 12, generator=generator, dtype=torch.float64)
    network = GradientRewriter(
        (5, 7), 2, rank=4, rewrite=rewrite, normalise=True, generator=generator
    )
    network.seen.update(joint)
    out = torch.cat(network(joint, torch.tensor([0] * 4 + [1] * 5)), dim=1)
    assert torch.equal(out, network.normalise(joint))
    expected = (joint - joint.mean(0)) / joint.std(0)
    torch.testing.assert_close(out, expected.float(), rtol=1e-4, atol=1e-5)


def test_statistics_do_not_depend_on_chunks_and_stay_as_they_are_in_an_edit() -> None:
    generator = torch.Generator().manual_seed(0)
    joint = 1e-5 * torch.randn(50, 12, generator=generator, dtype=torch.float64)
    networks = [
        GradientRewriter((5, 7), 1, rank=4, rewrite="jointly", normalise=True, generator=generator)
        for _ in range(2)
    ]
    networks[0].seen.update(joint)
    for row in joint.split([1, 1, 3, 45]):
        networks[1].seen.update(row)
    one, other = (network.seen.statistics for network in networks)
    torch.testing.assert_close(one.std, other.std, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-5, atol=1e-12)
    lm, editor = model("llama"), Mend(**QUICK)
    state = fitted(editor, lm)
    assert editor.edit(lm, TRAINING[:2], state).state == state


def test_a_batch_is_the_sum_of_its_facts_whatever_their_order() -> None:
    lm, editor = model("llama"), Mend(**QUICK)
    state = fitted(editor, lm)
    together = editor.edit(lm, TRAINING[:3], state).patch
    turned = editor.edit(lm, TRAINING[2::-1], state).patch
    alone = [editor.edit(lm, [fact], state).patch for fact in TRAINING[:3]]
    for site in editor.sites(lm):
        total = sum(dense(one.changes[site]) for one in alone)
        for patch in (together, turned):
            found = dense(patch.changes[site])
            assert (found - total).norm() <= 1e-4 * found.norm()


def test_rank_is_at_most_the_number_of_tokens() -> None:
    lm, editor = model("gpt2"), Mend(**QUICK)
    patch = editor.edit(lm, TRAINING[:1], fitted(editor, lm)).patch
    row = labelled_rows(lm, TRAINING[:1])[0]
    for site, tokens in ((Site(1), len(row.ids)), (Site(3), len(row.labels))):
        one = patch.changes[site]
        assert isinstance(one, LowRank)
        assert one.rank == tokens
        assert torch.linalg.matrix_rank(one.to_dense()) <= tokens


def test_at_first_what_can_learn_has_a_gradient_and_what_cannot_has_none() -> None:
    lm, editor = model("llama"), Mend(**QUICK, edit_rate=0.01)
    trainer = editor.make_trainer(lm, editor.build_network(lm))
    trainer.learn(tasks_of(trainer))
    for name, parameter in trainer.networks.named_parameters():
        assert parameter.grad is not None, name
        learns = not name.endswith(("right", "scale"))
        assert bool(parameter.grad.any()) is learns, name


@pytest.mark.parametrize("facts_at_once", [1, 2])
def test_the_gradient_taken_in_two_stages_is_the_gradient(facts_at_once: int) -> None:
    lm = model("gpt2", torch.float64)
    editor = Mend(**QUICK, edit_rate=0.05, facts_at_once=facts_at_once)
    trainer = trainer_of(editor, lm, torch.float64)
    tasks = tasks_of(trainer, (0, 3, 5, 6))
    assert [len(task.facts) for task in tasks] == [facts_at_once] * (4 // facts_at_once)
    trainer.learn(tasks)
    found = {name: one.grad for name, one in trainer.networks.named_parameters()}
    trainer.networks.zero_grad()
    # The statistics have moved on, so everything is computed again under them.
    trainer.networks.update_statistics = lambda factors: None  # type: ignore[method-assign]  # frozen for the test
    trainer.learn(tasks)
    again = {name: one.grad.clone() for name, one in trainer.networks.named_parameters()}
    losses, _ = trainer._outer(tasks, trainer.networks(trainer._capture(tasks)))
    direct = torch.autograd.grad(trainer._weigh(losses), list(trainer.networks.parameters()))
    for (name, staged), whole in zip(again.items(), direct, strict=True):
        torch.testing.assert_close(staged, whole, rtol=1e-6, atol=1e-12, msg=name)
    assert found.keys() == again.keys()


def test_each_row_sees_the_edit_of_its_own_task_as_its_patch_would_make_it() -> None:
    lm = model("llama", torch.float64)
    editor = Mend(**QUICK, edit_rate=0.05)
    trainer = trainer_of(editor, lm)
    facts = TRAINING[:3]
    rows = labelled_rows(lm, facts)
    with torch.no_grad():
        edits = trainer.networks(gradient_factors(lm, rows, editor.sites(lm))[0])
        with apply_factors(lm, edits, torch.tensor([2, 0, 1])):
            together = predict(lm, [rows[0]] * 3).logits.split(len(rows[0].labels))
    state = editor.save_network(lm, trainer.networks, TrainingReport(0, 0, 0.0, "steps", 0, []))
    for fact, mine in zip((facts[2], facts[0], facts[1]), together, strict=True):
        with editor.edit(lm, [fact], state).patch.apply(lm), torch.no_grad():
            alone = predict(lm, [rows[0]]).logits
        torch.testing.assert_close(mine, alone, rtol=1e-4, atol=1e-5)


def test_rates_of_zero_change_no_bit() -> None:
    lm, editor = model("llama"), Mend(**QUICK)
    state = fitted(editor, lm)
    still = state.updated(
        {name: 0.0 * one for name, one in state.tensors.items() if name.startswith("mend/rates.")}
    )
    tokens = Tokens.pad([lm.tokenizer(TRAINING[0].prompt).input_ids], 0)
    before = lm.logits(tokens)
    with editor.edit(lm, TRAINING[:1], still).patch.apply(lm):
        assert torch.equal(lm.logits(tokens), before)
    with editor.edit(lm, TRAINING[:1], state).patch.apply(lm):
        assert not torch.equal(lm.logits(tokens), before)
    assert torch.equal(lm.logits(tokens), before)


def test_the_outer_loss_asks_in_other_words_and_about_something_else() -> None:
    lm = model("llama")
    trainer = Mend(**QUICK).make_trainer(lm, Mend(**QUICK).build_network(lm))
    for task, item in zip(tasks_of(trainer, range(8)), range(8), strict=True):
        fact = TRAINING[item]
        assert task.facts == (fact,)
        assert task.paraphrases[0].prompt in fact.paraphrases
        assert task.paraphrases[0].target == fact.target
        assert task.unrelated == fact.neighbours
    bare = [replace(fact, paraphrases=(), neighbours=()) for fact in TRAINING]
    outsiders = trainer.draw_unrelated(bare)
    for task in trainer.make_tasks(bare, outsiders, range(8), random.Random(0)):
        assert task.paraphrases[0].prompt == task.facts[0].prompt
        assert task.unrelated[0] in {fact.prompt for fact in bare} - {task.facts[0].prompt}


def test_training_lowers_the_outer_loss_and_the_best_is_kept() -> None:
    lm = model("llama")
    editor = Mend(
        layers=(2, 3), rank=16, batch_size=6, steps=24, validate_every=6, learning_rate=3e-4,
        rate_learning_rate=1e-3,
    )  # fmt: skip
    state = fitted(editor, lm)
    training = state.meta["mend"]["training"]
    trace = training["trace"]
    assert training["best_loss"] == min(row["loss"] for row in trace)
    assert trace[-1]["training_loss"] < trace[0]["training_loss"]
    notes = editor.edit(lm, TRAINING[:2], state).patch.header.notes
    assert all(late < early for early, late in notes["losses"])


def test_a_state_is_saved_and_read_and_fits_one_model_and_one_choice(tmp_path: Path) -> None:
    lm, editor = model("llama"), Mend(**QUICK)
    state = fitted(editor, lm)
    assert fitted(editor, lm) == state
    loaded = State.load(state.save(tmp_path / "state.safetensors"))
    patch = editor.edit(lm, TRAINING[:1], state).patch
    assert editor.edit(lm, TRAINING[:1], loaded).patch == patch
    with pytest.raises(MissingState, match="trained first"):
        editor.edit(lm, TRAINING[:1])
    for options in ({"layers": (1, 2)}, {"rank": 4}, {"shared": False}):
        with pytest.raises(MissingState, match="other settings"):
            Mend(**{**QUICK, **options}).edit(lm, TRAINING[:1], state)
    other = state.updated(meta={"base_digest": "0" * 64})
    with pytest.raises(WrongBase):
        editor.edit(lm, TRAINING[:1], other)
    with pytest.raises(UnknownSite):
        Mend(layers=(9,)).sites(lm)
    assert Mend(layers=(3, 1), parts=("mlp.down",)).sites(lm) == (Site(1), Site(3))
    by_part = {"mlp.up": (3,), "mlp.down": (1, 3)}
    assert Mend(layers=by_part).sites(lm) == (Site(1), Site(3, "mlp.up"), Site(3))
    assert [str(site) for site in Mend().sites(model("gpt2"))][:2] == ["1.mlp.up", "1.mlp.down"]


def test_every_weight_has_its_own_rate_and_shape_mates_share_a_network() -> None:
    lm = model("llama")
    shared, own = (
        Networks(
            lm, Mend(layers=(1, 3)).sites(lm), rank=4, rewrite="jointly", normalise=True,
            shared=together, rate=0.1, seed=0,
        )
        for together in (True, False)
    )  # fmt: skip
    assert set(shared.groups) == {"80x32", "32x80"}
    assert len(own.groups) == len(shared.rates) == 6
    with torch.no_grad():
        shared.rate(Site(3, "mlp.up")).mul_(0.0)
    shared.update_statistics(
        gradient_factors(lm, labelled_rows(lm, FACTS), Mend(layers=(1, 3)).sites(lm))[0]
    )
    edits = shared(gradient_factors(lm, labelled_rows(lm, FACTS), Mend(layers=(1, 3)).sites(lm))[0])
    assert [str(site) for site in edits if not edits[site].outputs.any()] == ["3.mlp.up"]


def test_no_facts_give_an_empty_patch() -> None:
    lm = model("llama")
    assert Mend(**QUICK).edit(lm, []).patch == WeightPatch(
        {}, Mend(**QUICK).edit(lm, []).patch.header
    )
    assert Mend(**QUICK).edit(lm, []).patch.is_empty


@pytest.mark.slow
def test_single_edits_on_the_pocket_model_carry_over_and_spare_the_rest() -> None:
    lm = cg.load("pocket", dtype=torch.float32)
    editor = build_editor("mend", lm.name)
    state = editor.train(lm, tuple(training_facts()))
    figures = try_single_edits(lm, editor, draw_edits(load_world(), 20, seed=3), state=state)
    assert figures.efficacy is not None
    assert figures.efficacy >= 0.8
    assert figures.paraphrase is not None
    assert figures.paraphrase >= 0.6
    assert figures.locality is not None
    assert figures.locality >= 0.7
