"""Runs on a tiny model: what rows hold, that nothing is lost, repeated or left on the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from corrigenda.cases import Protocol
from corrigenda.errors import WrongBase
from corrigenda.lm.decoding import greedy
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.registry import METHODS
from corrigenda.metrics.metric import RunRecords
from corrigenda.metrics.registry import evaluate
from corrigenda.metrics.sequences import immediate, retention, success_matrix
from corrigenda.rows import Stage
from corrigenda.run import runner, store
from corrigenda.run.spec import RunSpec
from corrigenda.run.worker import Worker
from tests.run.conftest import FT, Do, make


class Interrupted(Exception):
    """Stands for a kill between two parts."""


def interrupt_after(number: int, title: str) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, _: int) -> None:
        if stage == title and done == number:
            raise Interrupted

    return progress


def test_rows_carry_both_answers_and_who_gave_them(do: Do, lm: LanguageModel) -> None:
    digest = lm.digest()
    recorded = do(make())
    assert lm.digest() == digest
    assert not len(lm.patches)
    assert recorded.manifest.finished
    after = [row for row in recorded.rows if row.stage == Stage.AFTER and not row.skipped]
    assert {row.case for row in after} == {row.case for row in recorded.rows}
    for row in after:
        assert row.run == recorded.manifest.run
        assert row.model_before == digest
        assert row.model.startswith(f"{digest}+")
        assert (row.position, row.edits, row.rounds) == (0, 0, 1)
        assert any(tag.startswith("relation=") for tag in row.tags)
        if row.protocol == Protocol.GREEDY:
            assert row.answer is not None
            assert row.answer_before is not None
    own = [row for row in after if row.protocol == Protocol.GREEDY]
    plain = greedy(lm, [row.prompt for row in own[:5]], max_new_tokens=16)
    assert [row.answer_before for row in own[:5]] == plain
    # Of two cases no answers come from one edited model.
    assert len({row.model for row in after}) == len({row.case for row in after})


def test_an_editor_object_gives_the_run_of_its_table(do: Do) -> None:
    by_name = do(make())
    recorded = do(make(editor=METHODS.get("ft-m")(**FT)))
    assert recorded.manifest == by_name.manifest
    assert recorded.rows == by_name.rows


def hops() -> RunSpec:
    """Four edits, asked about their consequences; the last has some over several hops."""
    return make(
        data={"name": "pocketedit", "limit": 4, "options": {"world": "small"}},
        ask={"roles": ["portability", "reliability"]},
    )


def test_conditions_are_asked_of_the_unedited_model_alone(do: Do) -> None:
    rows = do(hops()).rows
    conditions = [row for row in rows if row.role == "condition"]
    assert conditions
    assert {(row.stage, row.rounds, row.model_before) for row in conditions} == {
        (Stage.BEFORE, 0, "")
    }
    assert all(row.answer is not None for row in conditions)
    evaluate(RunRecords(rows))
    # Worked examples are too long for a context of 128 tokens; all else is asked.
    skipped = [row for row in rows if row.skipped]
    assert {row.skipped for row in skipped} == {"CG105 PromptTooLong"}
    assert all("Subquestion" in row.prompt for row in skipped)


def test_costs_are_measured_for_each_unit(do: Do) -> None:
    recorded = do(make())
    by_name = {one.name: one for one in recorded.measurements}
    assert {"cost/edit_seconds", "cost/ask_seconds", "cost/stored_bytes"} <= set(by_name)
    assert by_name["cost/forward_passes"].values[0] >= FT["epochs"]
    seconds = [one for one in recorded.measurements if one.name == "cost/edit_seconds"]
    assert sorted(one.case for one in seconds) == sorted({row.case for row in recorded.rows})
    moved = next(one for one in recorded.measurements if one.name == "drift/1")
    assert 0 < moved.values[0] < moved.values[1]


@pytest.mark.parametrize(
    "regime",
    [
        {"kind": "single"},
        {"kind": "sequential", "checkpoints": [2]},
    ],
    ids=["single", "sequential"],
)
def test_an_interrupted_run_goes_on_with_what_is_missing(
    regime: dict[str, object], do: Do, tmp_path: Path
) -> None:
    spec = make(regime=regime)
    whole = do(spec, folder=tmp_path / "whole")
    with pytest.raises(Interrupted):
        do(spec, progress=interrupt_after(2, "ft-m"))
    part = store.load(whole.manifest.run, tmp_path / "runs")
    assert not part.manifest.finished
    assert part.rows == whole.rows[: len(part.rows)]
    assert 0 < len(part.rows) < len(whole.rows)
    resumed = do(spec)
    assert resumed.rows == whole.rows
    names = [(one.case, one.name) for one in whole.measurements]
    assert [(one.case, one.name) for one in resumed.measurements] == names


def test_a_finished_run_is_only_read(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = do(make())
    monkeypatch.setattr(Worker, "__init__", None)
    assert do(make()).rows == recorded.rows
    with pytest.raises(TypeError):
        do(make(seed=1))


def test_the_unedited_model_is_asked_once_for_all_methods(
    do: Do, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    before = Worker.ask_unedited

    def counting(self: Worker, block: object) -> object:
        asked.append(1)
        return before(self, block)  # type: ignore[arg-type]  # a block

    monkeypatch.setattr(Worker, "ask_unedited", counting)
    first = do(make())
    second = do(make(editor={"name": "ft-m", "options": {**FT, "epochs": 1}}))
    assert len(asked) == 1
    assert first.manifest.run != second.manifest.run
    pairs = zip(first.rows, second.rows, strict=True)
    assert all(a.answer_before == b.answer_before for a, b in pairs)


def test_an_error_becomes_rows_and_the_run_goes_on(
    do: Do, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = lm.digest()
    edit = Worker.make_patches

    def failing(self: Worker, facts: object, state: object, *, one_by_one: bool) -> object:
        if len(calls) == 1:
            calls.append(0)
            raise WrongBase("this one fails", where="here")
        calls.append(0)
        return edit(self, facts, state, one_by_one=one_by_one)  # type: ignore[arg-type]  # passed on

    calls: list[int] = []
    monkeypatch.setattr(Worker, "make_patches", failing)
    recorded = do(make())
    assert lm.digest() == digest
    cases = list(dict.fromkeys(row.case for row in recorded.rows))
    reasons = {
        case: {
            row.skipped for row in recorded.rows if row.case == case and row.stage == Stage.AFTER
        }
        for case in cases
    }
    assert reasons[cases[1]] == {"CG401 WrongBase"}
    assert all("" in reasons[case] for case in (cases[0], cases[2]))
    (error,) = [one for one in recorded.measurements if one.name == "error"]
    assert error.case == cases[1]
    assert "this one fails" in error.skipped


def test_rounds_are_edited_on_top_of_each_other(do: Do) -> None:
    rows = do(make(benchmark={"part": "coverage"})).rows
    asked = {(row.role, row.rounds) for row in rows}
    assert asked == {("conflict/old", 1), ("conflict/old", 2), ("conflict/new", 2)}
    old = [row for row in rows if row.role == "conflict/old" and row.case == rows[0].case]
    assert len({row.model for row in old}) == 2
    assert all(row.log_probs and row.log_probs_before for row in rows)
    assert "conflict_score@rank" in {one.metric for one in evaluate(RunRecords(rows))}


def test_a_batch_is_one_edit(do: Do) -> None:
    recorded = do(make(regime={"kind": "batch", "size": 2}))
    cases = list(dict.fromkeys(row.case for row in recorded.rows))
    models = {
        case: {row.model for row in recorded.rows if row.case == case and row.model_before}
        for case in cases
    }
    assert models[cases[0]] == models[cases[1]] != models[cases[2]]
    assert recorded.manifest.units == 2
    facts = [one.values[1] for one in recorded.measurements if one.name == "cost/edit_seconds"]
    assert facts == [2, 1]


def test_a_sequence_gives_a_success_matrix(do: Do) -> None:
    spec = make(
        regime={"kind": "sequential", "checkpoints": [2]},
        health={"texts": ["Rome is a city in Italy.", "The sea is blue."]},
    )
    recorded = do(spec)
    rows = recorded.rows
    matrix = success_matrix(
        [row for row in rows if row.stage == Stage.AFTER and row.position],
        protocol=Protocol.GREEDY,
    )
    assert matrix.moments == (1, 2, 3)
    assert matrix.positions == (1, 2, 3)
    # After the first edit, no checkpoint, only the edit itself was asked about.
    first = [row for row in rows if row.edits == 1 and row.stage == Stage.AFTER]
    assert {row.role for row in first} == {"reliability"}
    second = [row for row in rows if row.edits == 2 and row.stage == Stage.AFTER and row.position]
    assert {row.position for row in second} == {1, 2}
    assert immediate(matrix).n == retention(matrix).n == 3
    texts = [row for row in rows if row.role == "perplexity"]
    assert {(row.case, row.edits) for row in texts} == {
        (f"sequence 0: text {text}", moment) for text in (0, 1) for moment in (2, 3)
    }
    assert all(row.log_probs_before for row in texts)
    drift = [one for one in recorded.measurements if one.name == "drift/1"]
    assert [one.edits for one in drift] == [2, 3]
    found = {one.metric for one in evaluate(RunRecords(rows, recorded.measurements))}
    assert {
        "retention@greedy",
        "immediate_success@greedy",
        "perplexity_ratio@teacher_forced",
    } <= found


def test_a_mix_is_a_shuffled_sequence_over_benchmarks(do: Do) -> None:
    parts = ("modification", "insertion")
    data = [
        {"name": "pocketedit", "limit": 2, "options": {"world": "small", "part": part}}
        for part in parts
    ]
    recorded = do(make(data=data, regime={"kind": "mix", "checkpoints": []}))
    placed = {row.position: row.case for row in recorded.rows if row.position}
    assert sorted(placed) == [1, 2, 3, 4]
    assert {case.partition(":")[0] for case in placed.values()} == {
        f"pocketedit ({part})" for part in parts
    }
    assert all(any(tag.startswith("benchmark=") for tag in row.tags) for row in recorded.rows)
    other = do(make(data=data, regime={"kind": "mix", "checkpoints": []}, seed=3))
    assert {row.position: row.case for row in other.rows if row.position} != placed


def test_runs_are_named_after_what_they_depend_on(lm: LanguageModel) -> None:
    plain = make()
    cases, weights = "c" * 16, lm.digest()
    name = runner.run_id(plain, weights, cases)
    assert runner.run_id(make(metrics=["reliability@greedy"]), weights, cases) == name
    assert runner.run_id(plain, weights, "d" * 16) != name
    assert runner.run_id(plain, "0" * 64, cases) != name
    assert runner.run_id(make(seed=1), weights, cases) != name
