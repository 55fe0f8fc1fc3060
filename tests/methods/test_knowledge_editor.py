"""KnowledgeEditor: the gate is what the paper says, the multiplier obeys, both passes are one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from corrigenda.engines.gradients import Samples, labelled_rows
from corrigenda.engines.weight_shift import OwnAnswers
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods.knowledge_editor.editor import KnowledgeEditor
from corrigenda.methods.knowledge_editor.network import Conditioner, Gate
from corrigenda.methods.knowledge_editor.training import (
    ConstrainedExample,
    KnowledgeEditorTrainer,
    capture,
    condition_ids,
    condition_texts,
)
from corrigenda.patch.changes import dense
from tests.support.hypernetworks import (
    TAUGHT,
    divergence,
    drawn,
    read,
    require_killed_is_whole,
    require_own_state,
    reworded,
    with_shifts,
)
from tests.support.locating import FACTS, model, pocket

D_OUT, D_IN, EDITS = 7, 5, 3
QUICK = {
    "layers": (1, 2), "hidden": 4, "condition": 6, "head": 5, "others": 2, "batch_size": 2,
    "steps": 3, "validate_every": 2, "warm_up": 1, "micro_batch": 3, "validation": 2,
}  # fmt: skip


def gate(**given: Tensor) -> Gate:
    parts = {
        "row_a": drawn(EDITS, D_OUT, seed=1).softmax(1),
        "col_a": drawn(EDITS, D_IN, seed=2),
        "row_b": drawn(EDITS, D_OUT, seed=3).softmax(1),
        "col_b": drawn(EDITS, D_IN, seed=4),
        "scale": drawn(EDITS, seed=5).sigmoid(),
    }
    return Gate(**{**parts, **given})


def shifts_of(one: Gate, gradients: Tensor) -> Tensor:
    """scale (G * A + B), entry by entry, a matrix an edit."""
    gated = gradients * one.row_a[:, :, None] * one.col_a[:, None, :]
    added = one.row_b[:, :, None] * one.col_b[:, None, :]
    return one.scale[:, None, None] * (gated + added)


ONES = torch.ones(EDITS, dtype=torch.float64)
GRADIENTS = drawn(EDITS, D_OUT, D_IN, seed=6)


def test_columns_of_gate_and_addition_sum_to_their_column_vectors() -> None:
    one = gate(scale=ONES)
    added = shifts_of(one, torch.zeros_like(GRADIENTS))
    gates = shifts_of(one, torch.ones_like(GRADIENTS)) - added
    torch.testing.assert_close(added.sum(1), one.col_b)
    torch.testing.assert_close(gates.sum(1), one.col_a)
    for edit in range(EDITS):
        assert torch.linalg.matrix_rank(added[edit]) == 1
        assert torch.linalg.matrix_rank(gates[edit]) == 1


def test_the_change_is_affine_in_the_gradient() -> None:
    one = gate()
    added = shifts_of(one, torch.zeros_like(GRADIENTS))
    torch.testing.assert_close(
        shifts_of(one, 2 * GRADIENTS) - 2 * shifts_of(one, GRADIENTS), -added
    )
    blind = gate(col_a=torch.zeros(EDITS, D_IN, dtype=torch.float64))
    assert torch.equal(shifts_of(blind, GRADIENTS), shifts_of(blind, 3 * GRADIENTS))
    closed = gate(scale=torch.zeros(EDITS, dtype=torch.float64))
    assert not shifts_of(closed, GRADIENTS).any()


def test_the_transposed_gradient_with_swapped_heads_gives_the_transposed_change() -> None:
    one = gate()
    swapped = Gate(one.col_a, one.row_a, one.col_b, one.row_b, one.scale)
    torch.testing.assert_close(shifts_of(swapped, GRADIENTS.mT), shifts_of(one, GRADIENTS).mT)


def test_factors_are_the_change_and_their_rank_is_that_of_the_tokens_and_one() -> None:
    one, samples = gate(), Samples(drawn(4, D_IN, seed=7), drawn(4, D_OUT, seed=8))
    whole = shifts_of(one, (samples.gradients.T @ samples.keys).expand(EDITS, -1, -1))
    for edit in range(EDITS):
        factors = one.factors(edit, samples)
        assert factors.rank == 5
        torch.testing.assert_close(factors.to_dense(), whole[edit])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_tokens_sum_up_to_the_gradient_of_the_mean_loss(family: str) -> None:
    lm = model(family, torch.float64)
    sites = (Site(1), Site(2, "mlp.up"))
    rows = labelled_rows(lm, FACTS)
    for row, found in zip(rows, capture(lm, rows, sites), strict=True):
        stored = {site: lm.model.get_parameter(lm.parameter_name(site)) for site in sites}
        weights = {site: one.detach().clone().requires_grad_() for site, one in stored.items()}
        output = torch.func.functional_call(
            lm.model,
            {lm.parameter_name(site): one for site, one in weights.items()},
            (),
            {"input_ids": torch.tensor([row.ids]), "use_cache": False},
        )
        logits = output.logits[0, list(row.reads)]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels))
        for site, expected in zip(
            sites, torch.autograd.grad(loss, list(weights.values())), strict=True
        ):
            aligned = expected if expected.shape == lm.weight(site).shape else expected.T
            gradient = found[site].gradients.T @ found[site].keys
            assert (gradient - aligned).norm() <= 1e-5 * aligned.norm()
            assert found[site].gradients.any(1).all()


def conditioner(lm: LanguageModel, **options: object) -> Conditioner:
    editor = KnowledgeEditor(**{**QUICK, **options})
    made = editor.build_network(lm)
    return made.double() if lm.dtype == torch.float64 else made


def test_word_vectors_are_a_copy_and_rows_do_not_see_each_other() -> None:
    lm = model("gpt2", torch.float64)
    one = conditioner(lm)
    embeddings = lm.model.get_input_embeddings().weight
    assert one.words.weight.data_ptr() != embeddings.data_ptr()
    assert one.words.weight.requires_grad
    texts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    together = one(texts)
    for edit, text in enumerate(texts):
        alone = one([text])
        for site, own in alone.items():
            for name in ("row_a", "col_a", "row_b", "col_b", "scale"):
                torch.testing.assert_close(
                    getattr(own, name)[0], getattr(together[site], name)[edit]
                )
    for own in together.values():
        torch.testing.assert_close(own.row_a.sum(1), ONES)
        assert bool(((own.scale > 0) & (own.scale < 1)).all())


def test_the_condition_holds_old_answer_new_answer_and_question() -> None:
    lm = pocket()
    fact = Fact(prompt="The capital of France is", target="Rome")
    own = OwnAnswers(lm)
    said = own.texts([fact.prompt])[0]
    assert condition_texts([fact], own) == [f"{said} >> Rome || The capital of France is"]


def questions(facts: Sequence[Fact] = TAUGHT[:2]) -> list[ConstrainedExample]:
    return [ConstrainedExample(fact, reworded(fact), fact.neighbours) for fact in facts]


def lesson(lm: LanguageModel, **options: object) -> KnowledgeEditorTrainer:
    editor = KnowledgeEditor(**{**QUICK, **options})
    return KnowledgeEditorTrainer(
        lm,
        conditioner(lm, **options),
        smoothing=editor.smoothing,
        constraint=editor.constraint,
        micro_batch=editor.micro_batch,
    )


def reference_lagrangian(
    lm: LanguageModel, one: KnowledgeEditorTrainer, asked: list[ConstrainedExample]
) -> Tensor:
    """Everything in one graph, edit after edit, by a model with other weights."""
    texts = condition_texts([q.fact for q in asked], one.answers)
    total = torch.zeros((), dtype=torch.float64)
    for question, text in zip(asked, texts, strict=True):
        gates = one.network(condition_ids(lm, [text]))
        (row,) = labelled_rows(lm, [question.fact])
        (tokens,) = capture(lm, [row], tuple(gates))
        whole = {site: each.gradients.T @ each.keys for site, each in tokens.items()}
        changed = with_shifts(
            lm, {site: shifts_of(gates[site], each[None])[0] for site, each in whole.items()}
        )
        losses = []
        for own in (row, *labelled_rows(lm, [question.paraphrase])):
            logs = read(lm, own, changed)
            wanted = logs.gather(1, torch.tensor(own.labels)[:, None])[:, 0]
            losses.append(-(1 - one.smoothing) * wanted - one.smoothing * logs.mean(1))
        drift = divergence(lm, one.answers.rows(question.unrelated), changed)
        total = total + torch.cat(losses).mean()
        total = total + one.network.multiplier * (drift - one.network.allowed)
    return total / len(asked)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_two_backward_passes_are_one_and_the_multiplier_goes_the_other_way(family: str) -> None:
    lm = model(family, torch.float64)
    one, asked = lesson(lm), questions()
    one.learn(asked)
    named = dict(one.network.named_parameters())
    found = {name: parameter.grad for name, parameter in named.items()}
    one.network.zero_grad()
    reference_lagrangian(lm, one, asked).backward()
    for name, parameter in named.items():
        assert parameter.grad is not None
        expected = -parameter.grad if name == "multiplier" else parameter.grad
        scale = float(expected.norm())
        assert (found[name] - expected).norm() <= 1e-6 * scale + 1e-14, name


def test_the_multiplier_climbs_where_the_constraint_is_violated_and_stops_at_zero() -> None:
    lm = model("llama")
    for margin, sign in ((1e-9, 1), (1e9, -1)):
        editor = KnowledgeEditor(**{**QUICK, "margin": margin, "least_margin": 1e-12})
        state = editor.train(lm, TAUGHT)
        multiplier = float(state.tensors["knowledge-editor/multiplier"])
        assert multiplier >= 0
        assert (multiplier - 1) * sign > 0
    falling = KnowledgeEditor(**{**QUICK, "margin": 1e9, "multiplier_rate": 50.0, "steps": 2})
    assert float(falling.train(lm, TAUGHT).tensors["knowledge-editor/multiplier"]) == 0.0


def test_the_norm_of_the_changes_can_be_the_constraint() -> None:
    lm = model("llama", torch.float64)
    one = lesson(lm, constraint="norm")
    one.learn(questions())
    made = one.shifts(questions())
    whole = [one.left @ one.right.mT for one in made.values()]
    mean = torch.stack([shift.norm(dim=(1, 2)).mean() for shift in whole]).mean()
    climb = one.network.multiplier.grad
    assert climb is not None
    torch.testing.assert_close(-climb, (mean - one.network.allowed).detach())


def test_the_margin_shrinks_to_its_least() -> None:
    one = conditioner(model("gpt2"), margin=0.1)
    one.tighten(0.8, 0.07)
    assert one.allowed == pytest.approx(0.08)
    one.tighten(0.8, 0.07)
    assert one.allowed == pytest.approx(0.07)


def test_the_pace_rises_during_the_warm_up_and_then_falls() -> None:
    editor = KnowledgeEditor(steps=100, warm_up=10)
    paces = [editor.warm_up_share(step) for step in range(100)]
    assert paces[:11] == sorted(paces[:11])
    assert paces[10:] == sorted(paces[10:], reverse=True)
    assert max(paces) == 1.0
    assert min(paces) > 0


def test_training_leaves_the_model_and_goes_on_where_it_was_killed(tmp_path) -> None:
    require_killed_is_whole(KnowledgeEditor(**QUICK), tmp_path)


def test_a_batch_is_the_sum_of_edits_each_by_itself() -> None:
    lm = model("llama", torch.float64)
    editor = KnowledgeEditor(**QUICK)
    state = editor.train(lm, TAUGHT)
    together = editor.edit(lm, FACTS, state).patch
    for site, change in together.changes.items():
        alone = [dense(editor.edit(lm, [f], state).patch.changes[site]) for f in FACTS]
        difference = dense(change).double() - sum(one.double() for one in alone)
        assert difference.norm() <= 1e-4 * dense(change).norm()
    notes = together.header.notes
    assert notes["rounds"] == [1] * len(FACTS)
    assert len(notes["status"]) == len(notes["losses"]) == len(FACTS)


def test_further_rounds_take_new_gradients_until_the_answer_is_said() -> None:
    lm = model("llama")
    state = KnowledgeEditor(**QUICK).train(lm, TAUGHT)
    once = KnowledgeEditor(**QUICK).edit(lm, FACTS[:1], state).patch
    patch = KnowledgeEditor(**{**QUICK, "rounds": 3}).edit(lm, FACTS[:1], state).patch
    assert patch.header.notes["rounds"] == [3]
    site = Site(1)
    assert not torch.allclose(dense(patch.changes[site]), 3 * dense(once.changes[site]), rtol=1e-9)


def test_a_state_survives_the_disk_and_fits_its_editor_and_model_only(tmp_path) -> None:
    other = KnowledgeEditor(**{**QUICK, "head": 6})
    require_own_state(KnowledgeEditor(**QUICK), [other], tmp_path)


def test_feed_forward_weights_of_the_last_three_blocks_change_unless_others_are_named() -> None:
    sites = KnowledgeEditor().sites(pocket())
    assert {site.layer for site in sites} == {5, 6, 7}
    assert {site.part for site in sites} == {"mlp.gate", "mlp.up", "mlp.down"}
    assert {site.part for site in KnowledgeEditor().sites(model("gpt2"))} == {"mlp.up", "mlp.down"}


def test_training_makes_edits_succeed() -> None:
    lm = model("gpt2")
    options = {**QUICK, "batch_size": 3, "steps": 40, "validate_every": 20, "learning_rate": 3e-3}
    state = KnowledgeEditor(**{**options, "margin": 1e9}).train(lm, TAUGHT)
    trace = state.meta["knowledge-editor"]["training"]["trace"]
    assert trace[-1]["training_loss"] < 0.96 * trace[0]["training_loss"]
