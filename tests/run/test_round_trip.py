"""Runs that edit and edit back: what is left of weights and answers, beside a graph of facts."""

from __future__ import annotations

import pytest

from corrigenda.cases import Case
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.metrics.metric import RunRecords
from corrigenda.metrics.registry import evaluate
from corrigenda.rows import Measurement
from corrigenda.run import round_trip
from corrigenda.run.spec import RunSpec
from tests.run.conftest import Do, make

GRACE = {"layer": 1, "steps": 2}
THERE = Fact(prompt="A is in", target="C", subject="A", before="B")
BACK = Fact(prompt="A is in", target="B", subject="A", before="C")
ELSEWHERE = Fact(prompt="A is in", target="D", subject="A", before="C")


def case(*facts: Fact) -> Case:
    rounds = tuple((index,) for index in range(len(facts)))
    return Case(id="one", facts=facts, probes=(), rounds=rounds)


def test_only_what_is_restored_goes_back() -> None:
    assert round_trip.is_round_trip(case(THERE, BACK))
    assert not round_trip.is_round_trip(case(THERE, ELSEWHERE))
    assert not round_trip.is_round_trip(case(THERE))


def rounds(**changes: object) -> RunSpec:
    options = {"world": "small", "part": "round"}
    data = {"name": "pocketedit", "limit": 2, "options": options}
    return make(data=data, ask={"max_new_tokens": 4, "roles": ["restoration", "round"]}, **changes)


def named(measured: list[Measurement], name: str) -> list[Measurement]:
    return [one for one in measured if one.name == name]


def test_what_is_left_is_recorded(do: Do, lm: LanguageModel) -> None:
    recorded = do(rounds())
    left = named(recorded.measurements, "restoration/residual")
    assert [one.case for one in left] == list(dict.fromkeys(row.case for row in recorded.rows))
    for one in left:
        there, back = one.values
        assert there > 0
        assert back > 0
    graph = named(recorded.measurements, "restoration/graph")
    assert [one.values for one in graph] == [[2.0, 0.0]] * 2
    rows = [row for row in recorded.rows if row.family == "restoration"]
    assert {row.rounds for row in rows} == {2}
    assert {row.kind for row in rows} == {"edited", "paraphrase"}
    assert all(row.answer_before is not None and row.divergence for row in rows)
    found = {one.metric: one for one in evaluate(RunRecords(recorded.rows, recorded.measurements))}
    ratios = [one.values[1] / one.values[0] for one in left]
    assert found["parameter_residual"].value == pytest.approx(sum(ratios) / 2)
    assert found["graph_residual"].value == 0
    assert found["restoration_divergence@greedy"].value > 0
    assert found["restoration@greedy"].n == 2
    # Taking the patches off leaves nothing.
    assert round_trip.measure_distance(lm) == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"regime": {"kind": "sequential"}}, round_trip.IN_SEQUENCE),
        ({"editor": {"name": "grace", "options": GRACE}}, round_trip.NOT_WEIGHTS),
        ({"editor": {"name": "ft-m", "options": {"layer": 9}}}, "CG"),
    ],
    ids=["sequence", "prompts", "failed"],
)
def test_what_has_no_residual_says_why(changes: dict[str, object], reason: str, do: Do) -> None:
    left = named(do(rounds(**changes)).measurements, "restoration/residual")
    assert left
    assert all(one.skipped.startswith(reason) for one in left)
