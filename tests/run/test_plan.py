"""How cases become units, and which probes are due when."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corrigenda.cases import Case, Probe, Protocol
from corrigenda.errors import NoCases
from corrigenda.facts import Fact
from corrigenda.run import plan
from corrigenda.run.spec import RunSpec
from tests.run.conftest import make

FACTS = (Fact(prompt="Rome is in", target="Spain"), Fact(prompt="Rome is in", target="Italy"))


def probe(role: str, **more: object) -> Probe:
    return Probe(prompt="Rome is in", role=role, protocol=Protocol.GREEDY, **more)  # type: ignore[arg-type]  # fields


def cases(count: int) -> list[Case]:
    return [
        Case(id=str(index), facts=FACTS[:1], probes=(probe("reliability"),))
        for index in range(count)
    ]


def regime(**values: object) -> RunSpec:
    return make(regime=values)


def test_probes_are_due_after_their_rounds() -> None:
    case = Case(
        id="1",
        facts=FACTS,
        rounds=((0,), (1,)),
        probes=(
            probe("condition"),
            probe("before/chain", after=(0,)),
            probe("conflict/old", after=(1, 2)),
            probe("conflict/new", after=(2,)),
            probe("reliability"),
        ),
    )
    due = {number: [index for index, _ in plan.list_due(case, number)] for number in range(3)}
    assert due == {0: [0, 1], 1: [2], 2: [2, 3, 4]}


def test_single_edits_and_batches() -> None:
    units = plan.plan_units(regime(kind="single"), cases(3))
    assert [len(unit.cases) for unit in units] == [1, 1, 1]
    assert [unit.label for unit in units] == ["0", "1", "2"]
    units = plan.plan_units(regime(kind="batch", size=2), cases(3))
    assert [len(unit.cases) for unit in units] == [2, 1]
    assert all(len(unit.parts) == 1 for unit in units)


def test_a_sequence_is_asked_in_full_at_checkpoints_and_at_its_end() -> None:
    (unit,) = plan.plan_units(regime(kind="sequential", size=2, checkpoints=[4]), cases(7))
    steps = list(unit.steps)
    assert [step.end for step in steps] == [2, 4, 6, 7]
    assert [step.asked_again for step in steps] == [False, True, False, True]
    first, second = plan.plan_units(regime(kind="sequential", length=4), cases(7))
    assert (len(first.cases), len(second.cases)) == (4, 3)


def test_names_follow_content_and_order() -> None:
    units = plan.plan_units(regime(kind="single"), cases(3))
    again = plan.plan_units(regime(kind="single"), cases(3))
    assert [unit.id for unit in units] == [unit.id for unit in again]
    assert len({unit.id for unit in units}) == 3
    parts = [part for unit in units for part in unit.parts]
    assert parts == sorted(parts)


def test_questions_of_all_cases_are_asked_in_portions_once_each() -> None:
    blocks = plan.plan_queries(regime(kind="single"), cases(100))
    assert [len(block) for block in blocks] == [1, 1]
    assert blocks[0] == plan.plan_queries(regime(kind="batch", size=7), cases(100))[0]


def test_roles_can_be_chosen_and_conditions_stay() -> None:
    spec = make(
        data={"name": "pocketedit", "limit": 4, "options": {"world": "small"}},
        ask={"roles": ["portability"], "without": ["portability/one_hop_steps"]},
    )
    roles = {one.role for case in plan.load_data(spec).cases for one in case.probes}
    assert "condition" in roles
    assert "portability/one_hop" in roles
    assert "portability/one_hop_steps" not in roles
    assert {role.partition("/")[0] for role in roles} == {"condition", "portability"}


def test_protocols_are_set_for_all() -> None:
    data = plan.load_data(make(ask={"protocols": ["teacher_forced", "greedy"]}))
    own = [one for one in data.cases[0].probes if one.role == "reliability"]
    assert {one.protocol for one in own} == {Protocol.TEACHER_FORCED, Protocol.GREEDY}


def test_training_facts_have_paraphrases_and_neighbours() -> None:
    facts = plan.load_training_facts(make().benchmark[0])
    assert len(facts) == 3
    assert all(fact.paraphrases and fact.neighbours for fact in facts)


def test_a_run_without_a_usable_case_says_why(tmp_path: Path) -> None:
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps([record(subject="Rome"), record(subject="Oslo")]))
    spec = make(data={"name": "zsre", "path": str(path)})
    with pytest.raises(
        NoCases, match=r"2 records read, 2 x the subject is not in the prompt"
    ) as one:
        plan.load_data(spec)
    assert str(path) in str(one.value)
    path.write_text("[]")
    with pytest.raises(NoCases, match=r"CG607 .* 0 records read"):
        plan.load_data(spec)


def record(subject: str) -> dict[str, str | list[str]]:
    return {
        "subject": subject,
        "src": "What is the capital of France?",
        "pred": "Paris",
        "rephrase": "Which city is the capital of France?",
        "alt": "Rome",
        "answers": ["Paris"],
        "loc": "nq question: who wrote it",
        "loc_ans": "Dante",
        "cond": "Paris >> Rome || What is the capital of France?",
    }


def test_a_run_that_asks_nothing_says_why() -> None:
    with pytest.raises(NoCases, match=r"no probe of 3 cases is asked(.|\n)*reliabilty"):
        plan.load_data(make(ask={"roles": ["reliabilty"]}))
    texts = make(ask={"roles": ["reliabilty"]}, health={"texts": ["Rome is a city."]})
    assert len(plan.load_data(texts).cases) == 3
