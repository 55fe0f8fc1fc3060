"""Edits that raise perplexity too far are taken back, patch and state, and the run goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path

import pytest
import torch

import corrigenda as cg
from corrigenda.cases import Protocol
from corrigenda.errors import BadConfig, WrongBase
from corrigenda.lm.decoding import greedy
from corrigenda.lm.model import LanguageModel
from corrigenda.metrics.metric import RunRecords
from corrigenda.metrics.registry import evaluate
from corrigenda.rows import Measurement, Row, Stage
from corrigenda.run import health, plan, store, summary
from corrigenda.run.prober import Answer
from corrigenda.run.spec import RunSpec
from corrigenda.run.worker import Worker
from corrigenda.state import State
from tests.run.conftest import FT, Do, make
from tests.run.test_runner import Interrupted, interrupt_after

STREAM = {"name": "ultraedit", "options": {"layers": [0, 1], "learning_rate": 0.02}}
"""A method whose edits leave a state to the next."""
DATA = {"name": "pocketedit", "limit": 6, "options": {"world": "small"}}


@pytest.fixture(scope="module")
def texts(lm: LanguageModel) -> list[str]:
    """What the model writes itself: nothing is likelier to it, so every edit makes it less so."""
    begun = ["Rome", "Bread is", "The sea"]
    written = greedy(lm, begun, max_new_tokens=24)
    return [a + b for a, b in zip(begun, written, strict=True)]


def mean_perplexity(lm: LanguageModel, texts: list[str]) -> float:
    """Written out: one text at a time, its first token only read."""
    found = []
    for text in texts:
        ids = torch.tensor([lm.tokenizer(text).input_ids])
        with torch.no_grad():
            log_probs = lm.model(ids).logits.float().log_softmax(-1)
        own = log_probs[0, :-1].gather(1, ids[0, 1:, None])
        found.append(math.exp(-float(own.mean())))
    return sum(found) / len(found)


def sequence(texts: list[str], above: float, **changes: object) -> RunSpec:
    return make(
        **{
            "editor": STREAM,
            "data": DATA,
            "regime": {"kind": "sequential", "checkpoints": [2, 4]},
            "health": {"texts": texts, "rollback_above": above},
            "ask": {"max_new_tokens": 4, "roles": ["reliability", "generalization"]},
            **changes,
        }
    )


def checks(measurements: list[Measurement]) -> list[Measurement]:
    return [one for one in measurements if one.name == "rollback/perplexity"]


def of(rows: list[Row], case: str) -> list[Row]:
    return [row for row in rows if row.case == case and row.stage == Stage.AFTER]


def by_hand(lm: LanguageModel, spec: RunSpec) -> tuple[list[float], list[bool], list[str]]:
    """Edit one case after the other and take back what is over the limit.

    Returns:
        Ratios, whether each edit was kept, and what the model is called after it.
    """
    limit = spec.health.rollback_above
    assert limit is not None
    editor = spec.build_editor()
    state = editor.fit(lm)
    texts = list(spec.health.texts)
    before = mean_perplexity(lm, texts)
    ratios, kept, names, digests = [], [], [], []
    base = lm.digest()
    with contextlib.ExitStack() as active:
        for case in plan.load_data(spec).cases:
            made = editor.edit(lm, case.facts, state)
            applied = active.enter_context(made.patch.apply(lm))
            ratios.append(mean_perplexity(lm, texts) / before)
            kept.append(ratios[-1] <= limit)
            if kept[-1]:
                state = made.state
                digests.append(made.patch.digest())
            else:
                applied.revert()
            names.append(f"{base}+{plan.hash_content(digests)}")
    return ratios, kept, names


@pytest.fixture(scope="module")
def limit(lm: LanguageModel, texts: list[str]) -> float:
    """One that some edits of the sequence pass and others do not."""
    ratios, _, _ = by_hand(lm, sequence(texts, 1e9))
    return (sorted(ratios)[2] + sorted(ratios)[3]) / 2


def test_an_edit_is_taken_back_with_its_state(
    do: Do, lm: LanguageModel, texts: list[str], limit: float
) -> None:
    spec = sequence(texts, limit)
    ratios, kept, names = by_hand(lm, spec)
    assert True in kept
    assert False in kept
    assert True in kept[kept.index(False) :], "an edit follows one that was taken back"
    digest = lm.digest()
    recorded = do(spec)
    assert lm.digest() == digest
    assert not len(lm.patches)

    found = checks(recorded.measurements)
    assert [one.values[0] for one in found] == pytest.approx(ratios, rel=1e-4)
    assert [one.values[1] for one in found] == [float(not one) for one in kept]
    assert [one.edits for one in found] == [1, 2, 3, 4, 5, 6]
    # The patches in force are those that were kept, each made from the state of those before it.
    after = [row for row in recorded.rows if row.stage == Stage.AFTER and row.position]
    assert {row.edits: row.model for row in after} == dict(enumerate(names, start=1))


def test_cases_whose_edit_was_taken_back_are_asked_and_say_so(
    do: Do, lm: LanguageModel, texts: list[str], limit: float
) -> None:
    spec = sequence(texts, limit)
    _, kept, _ = by_hand(lm, spec)
    recorded = do(spec)
    cases = [case.id for case in plan.load_data(spec).cases]
    for case, fine in zip(cases, kept, strict=True):
        rows = of(recorded.rows, case)
        assert rows
        assert not any(row.skipped for row in rows)
        assert {"rolled_back=1" in row.tags for row in rows} == {not fine}
    known = {one.metric: one for one in evaluate(RunRecords(recorded.rows, recorded.measurements))}
    share = known["rolled_back"]
    assert (share.value, share.n) == (pytest.approx(1 - sum(kept) / len(kept)), len(kept))
    assert "retention@greedy" in known
    (reason, count) = next(iter(summary.count_problems(recorded).items()))
    assert "rolled back" in reason
    assert count == len(kept) - sum(kept)


def test_texts_at_a_checkpoint_are_those_of_the_edits_in_force(
    do: Do, texts: list[str], limit: float
) -> None:
    recorded = do(sequence(texts, limit))
    passed = checks(recorded.measurements)
    for moment in (2, 4, 6):
        rows = [row for row in recorded.rows if row.role == "perplexity" and row.edits == moment]
        assert len(rows) == len(texts)
        (now,) = evaluate(RunRecords(rows), ["perplexity_ratio@teacher_forced"])
        # After an edit that was taken back the model is what it was after the last that was kept.
        last = [one for one in passed if one.edits <= moment and not one.values[1]]
        assert now.value == (last[-1].values[0] if last else 1.0)


def test_a_limit_that_nothing_passes_changes_no_answer(do: Do, texts: list[str]) -> None:
    plain = do(sequence(texts, 2.0, health={"texts": texts}))
    watched = do(sequence(texts, 1e9))
    assert checks(plain.measurements) == []
    assert [one.values[1] for one in checks(watched.measurements)] == [0.0] * 6
    assert [dataclasses.replace(row, run="") for row in watched.rows] == [
        dataclasses.replace(row, run="") for row in plain.rows
    ]
    assert not summary.count_problems(watched)


def test_a_run_interrupted_after_every_part_takes_back_the_same(
    do: Do, texts: list[str], limit: float, tmp_path: Path
) -> None:
    spec = sequence(texts, limit)
    whole = do(spec, folder=tmp_path / "whole")
    assert {one.values[1] for one in checks(whole.measurements)} == {0.0, 1.0}
    for parts in range(1, 6):
        with pytest.raises(Interrupted):
            do(spec, progress=interrupt_after(parts, "ultraedit"))
        part = store.load(whole.manifest.run, tmp_path / "runs")
        assert not part.manifest.finished
        assert part.rows == whole.rows[: len(part.rows)]
        assert len(checks(part.measurements)) == parts
    resumed = do(spec)
    assert resumed.rows == whole.rows
    assert checks(resumed.measurements) == checks(whole.measurements)


def test_single_edits_are_taken_back_too(do: Do, texts: list[str]) -> None:
    strong = {"name": "ft-m", "options": {**FT, "learning_rate": 0.05}}
    recorded = do(make(editor=strong, health={"texts": texts, "rollback_above": 1.0001}))
    assert [one.values[1] for one in checks(recorded.measurements)] == [1.0, 1.0, 1.0]
    after = [row for row in recorded.rows if row.stage == Stage.AFTER]
    asked = [row for row in after if row.protocol == Protocol.GREEDY and row.answer is not None]
    assert asked
    assert all(row.answer == row.answer_before for row in asked)
    stored = [one for one in recorded.measurements if one.name == "cost/stored_bytes"]
    assert [one.values[0] for one in stored] == [0.0, 0.0, 0.0]
    texts_after = [row for row in after if row.role == "perplexity"]
    assert texts_after
    assert all(row.log_probs == row.log_probs_before for row in texts_after)


def test_of_a_batch_all_edits_are_taken_back(do: Do, texts: list[str]) -> None:
    strong = {"name": "ft-m", "options": {**FT, "learning_rate": 0.05}}
    regime = {"kind": "batch", "size": 2}
    limited = {"texts": texts, "rollback_above": 1.0001}
    recorded = do(make(editor=strong, regime=regime, health=limited))
    assert [one.values[1] for one in checks(recorded.measurements)] == [1.0, 1.0]
    tagged = {row.case for row in recorded.rows if "rolled_back=1" in row.tags}
    assert len(tagged) == 3


def test_rounds_are_judged_one_by_one(
    do: Do, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each case's two rounds only the second is too much."""
    ratios = iter([1.0, 5.0] * 3)
    monkeypatch.setattr(health, "compute_ratio", lambda *_: next(ratios))
    limited = {"texts": texts, "rollback_above": 2.0}
    rows = do(make(benchmark={"part": "coverage"}, health=limited)).rows
    own = [row for row in rows if row.role == "conflict/old"]
    tagged = {(row.rounds, "rolled_back=2" in row.tags) for row in own}
    assert tagged == {(1, False), (2, True)}
    assert not any("rolled_back=1" in row.tags for row in rows)
    # Nothing came on top of the first round.
    assert len({row.model for row in own if row.case == own[0].case}) == 1


def test_an_edit_that_fails_half_way_leaves_no_state(
    lm: LanguageModel, do: Do, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two portions of a case is made, the second fails: both are gone."""
    given: list[State | None] = []
    edit = Worker.make_patches

    def failing(self: Worker, facts: object, state: State | None, *, one_by_one: bool) -> object:
        given.append(state)
        yield from edit(self, facts, state, one_by_one=one_by_one)  # type: ignore[arg-type]  # passed on
        if len(given) == 2:
            raise WrongBase("the second portion fails", where="here")

    monkeypatch.setattr(Worker, "make_patches", failing)
    regime = {"kind": "sequential", "checkpoints": []}
    recorded = do(make(editor=STREAM, regime=regime))
    assert any(one.name == "error" for one in recorded.measurements)
    first, second, third = given
    assert first is not second
    assert third is second


def answers(*log_probs: list[float] | None) -> dict[object, Answer]:
    return {
        health.make_text_query(f"text {number}"): Answer(log_probs=own, skipped="" if own else "no")
        for number, own in enumerate(log_probs)
    }


@pytest.mark.parametrize(
    ("after", "ratio"),
    [
        ([[-1.0, -1.0], [-2.0]], 1.0),
        ([[-2.0, -2.0], [-2.0]], (2 * math.exp(2)) / (math.exp(1) + math.exp(2))),
        ([[-2000.0, -1.0], [-2.0]], math.inf),
        ([None, [-2.0]], math.inf),
        ([[math.nan, -1.0], [-2.0]], math.nan),
    ],
    ids=["same", "worse", "overflow", "cannot be asked", "no number"],
)
def test_ratio_of_mean_perplexities(after: list[list[float] | None], ratio: float) -> None:
    before = answers([-1.0, -1.0], [-2.0], None)
    found = health.compute_ratio(answers(*after, None), before)  # type: ignore[arg-type]  # questions
    assert found == pytest.approx(ratio, nan_ok=True)


def test_what_is_no_number_is_taken_back(
    do: Do, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "compute_ratio", lambda *_: math.nan)
    recorded = do(make(health={"texts": texts, "rollback_above": 2.0}))
    assert {one.values[1] for one in checks(recorded.measurements)} == {1.0}


def test_texts_are_needed(tmp_path: Path, do: Do) -> None:
    with pytest.raises(BadConfig, match="rollback_above needs texts"):
        make(health={"rollback_above": 2.0})
    with pytest.raises(BadConfig, match=r"rollback_above: Input should be greater than 1"):
        make(health={"texts": ["a b"], "rollback_above": 1.0})
    empty = tmp_path / "texts.txt"
    empty.write_text("\n")
    with pytest.raises(BadConfig, match="no text to judge edits by"):
        do(make(health={"file": str(empty), "rollback_above": 2.0}))
    with pytest.raises(BadConfig, match="no text has a token to predict"):
        do(make(health={"texts": [""], "rollback_above": 2.0}))


def test_runs_without_a_limit_keep_their_names() -> None:
    plain = make(health={"texts": ["a b"]})
    assert "rollback_above" in plain.model_dump()["health"]
    assert make(health={"texts": ["a b"], "rollback_above": None}).digest() == plain.digest()
    assert make(health={"texts": ["a b"], "rollback_above": 2.0}).digest() != plain.digest()


def test_one_patch_can_be_judged(lm: LanguageModel, texts: list[str]) -> None:
    spec = sequence(texts, 2.0)
    facts = plan.load_data(spec).cases[0].facts
    editor = spec.build_editor()
    patch = editor.edit(lm, facts, editor.fit(lm)).patch
    digest, before = lm.digest(), mean_perplexity(lm, texts)
    found = cg.perplexity_ratio(lm, patch, texts)
    assert lm.digest() == digest
    assert not len(lm.patches)
    with patch.apply(lm):
        assert found == pytest.approx(mean_perplexity(lm, texts) / before, rel=1e-4)
    assert found > 1
    nothing = editor.edit(lm, [], editor.fit(lm)).patch
    assert cg.perplexity_ratio(lm, nothing, texts) == 1
    with pytest.raises(BadConfig, match="no text has a token"):
        cg.perplexity_ratio(lm, patch, [""])
