"""Regimes of the table of real models, on a tiny model with editors that do what is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from corrigenda.almanac.exam import ExamEdit
from corrigenda.errors import NonFinite
from corrigenda.facts import Fact
from corrigenda.knowledge.edit_trial import EditTrial, FactOutcome, Unedited
from corrigenda.patch import Header, WeightPatch
from corrigenda.patch.ledger import ledger_of
from corrigenda.testing.tiny import tiny_model

ROOT = Path(__file__).parents[2]
CASES = [ExamEdit(Fact(prompt=f"{name} speaks", target="Greek")) for name in ("Anna", "Ben", "Eva")]


@pytest.fixture(scope="module")
def judges():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "perf"))
        import real_judges

        yield real_judges


class Refusing:
    """Changes nothing, notes the states that came, and refuses an edit."""

    name = "refusing"

    def __init__(self, lm, *, refused):
        self.patch = WeightPatch({}, Header(method="refusing", base_digest=lm.digest()))
        self.refused, self.states = refused, []

    def search_ahead(self, lm: object, facts: object, state: object) -> None:
        """Do nothing."""

    def edit(self, lm, facts, state=None):
        self.states.append(state)
        if len(self.states) == self.refused:
            raise NonFinite("the loss is not a number")
        return self.patch, f"after {len(self.states)}"


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


def run(judges, lm, regime, *, refused=0, asked=CASES, budget=60.0):
    editor, active = Refusing(lm, refused=refused), []
    course = judges.EditCourse(
        EditTrial(lm, editor, Unedited(lm, [])),
        [lambda cases: active.append((len(cases), len(ledger_of(lm))))],
    )
    course.run(regime, CASES, asked, "first", budget)
    return editor, course, active


def test_a_refused_fact_is_counted_and_asked_of_the_model_as_it_is(judges, lm) -> None:
    editor, course, active = run(judges, lm, "single", refused=2)
    assert editor.states == ["first"] * 3
    assert active == [(1, 1), (1, 0), (1, 1)]
    assert (course.refused, course.asked) == ({"CG201": 1}, 3)
    assert [one.code for one in course.errors] == ["CG201"]
    assert len(course.cpu_seconds) == len(course.trial.num_bytes) == 2
    assert not len(ledger_of(lm))


def test_a_refused_fact_of_a_sequence_leaves_the_state_of_those_before(judges, lm) -> None:
    editor, course, active = run(judges, lm, "sequence", refused=2, asked=CASES[:1])
    assert editor.states == ["first", "after 1", "after 1"]
    assert active == [(1, 2)]
    assert course.asked == 1


def test_a_batch_is_one_edit(judges, lm) -> None:
    editor, _, active = run(judges, lm, "batch")
    assert editor.states == ["first"]
    assert active == [(3, 1)]
    assert run(judges, lm, "batch", refused=1)[1].refused == {"CG201": 3}


def test_no_fact_is_edited_alone_beyond_the_budget(judges, lm) -> None:
    _, course, active = run(judges, lm, "single", budget=-1.0)
    assert active == [(1, 1)]
    assert course.asked == 1


def test_shares_are_over_facts_and_forms_stay_apart(judges) -> None:
    def outcome(fact, *, chat, right):
        return FactOutcome(fact, chat, right, (right, True), (), ())

    outcomes = [outcome("a", chat=False, right=True), outcome("b", chat=False, right=False)]
    outcomes.append(outcome("a", chat=True, right=False))
    found = judges.estimate(outcomes, "paraphrase", chat=False)
    assert (found.value, found.n, found.items) == (0.75, 2, 4)
    value, low, high = judges.to_list(found)
    assert value == 0.75
    assert 0 < low < value < high <= 1
    assert judges.estimate(outcomes, "efficacy", chat=True).value == 0.0
    assert judges.estimate(outcomes, "locality", chat=False) is None
