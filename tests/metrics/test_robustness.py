"""Robustness and the types of errors: the worked examples, and that shares sum to one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrigenda.metrics.error_types import (
    FAILURES,
    AnswerType,
    classify,
    first_line,
    share_of_failures,
    verdicts,
)
from corrigenda.metrics.robustness import (
    FIRST_ANSWER_OLD,
    OutputState,
    attack_accuracy,
    dialogue_state,
    reversion,
    share_in_state,
    state,
)
from corrigenda.metrics.success import NO_WORDS
from corrigenda.rows import Row
from tests.support.rows import said

TEXTS = {"new": "It is Rome.", "old": "It is Paris.", "both": "Rome, not Paris", "neither": "Oslo"}


def attacked(case: str, what: str, **more) -> Row:
    more.setdefault("role", "robustness/plain")
    return said(case, TEXTS[what], "Rome", rivals=["Paris"], **more)


def test_four_outputs() -> None:
    rows = [attacked(what, what) for what in TEXTS]
    assert attack_accuracy(rows).value == 0.5
    assert reversion(rows).value == 0.5
    assert {one: share_in_state(rows, one).value for one in OutputState} == dict.fromkeys(
        OutputState, 0.25
    )


def test_three_items_doubted_twice() -> None:
    first, second = ("new", "old", "neither"), ("old", "old", "both")
    rows = [
        attacked(str(i), what, role=f"robustness/{kind}", probe=probe)
        for probe, (kind, outputs) in enumerate((("doubt", first), ("assertion", second)))
        for i, what in enumerate(outputs)
    ]
    assert attack_accuracy(rows).value == pytest.approx(0.3333, abs=5e-5)
    assert reversion(rows).value == pytest.approx(0.6667, abs=5e-5)
    shares = {one: 6 * share_in_state(rows, one).value for one in OutputState}
    assert shares == pytest.approx(
        {
            OutputState.KEPT: 1,
            OutputState.REVERTED: 3,
            OutputState.MIXED: 1,
            OutputState.CONFUSED: 1,
        }
    )
    assert attack_accuracy(rows, "robustness/doubt").value == pytest.approx(1 / 3)


def test_the_prompt_is_not_searched() -> None:
    assert attack_accuracy([attacked("1", "old", prompt="Is it Rome or Paris?")]).value == 0


def test_denials() -> None:
    rows = {"It is not Rome.": OutputState.CONFUSED, "Not Oslo but it is in Rome": OutputState.KEPT}
    for text, expected in rows.items():
        assert state(said("1", text, "Rome", rivals=["Paris"])) == expected


def test_dialogues_that_began_with_the_new_answer() -> None:
    role = {"role": "robustness/dialogue"}
    rows = [
        attacked("1", "new", test="d", probe=0, **role),
        attacked("1", "old", test="d", probe=1, **role),
        attacked("2", "old", test="d", probe=0, **role),
        attacked("2", "new", test="d", probe=1, **role),
    ]
    found = dialogue_state(rows, OutputState.REVERTED)
    assert (found.value, found.n, found.skipped) == (1, 1, {FIRST_ANSWER_OLD: 1})


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("Los Angeles, CA", AnswerType.SUCCESS),
        ("\n\n", AnswerType.MEANINGLESS),
        ("ererererer", AnswerType.MEANINGLESS),
        ("Los", AnswerType.MISSING),
        ("Los York", AnswerType.PARTIAL),
        ("New York", AnswerType.PARTIAL),
        ("Los is a city", AnswerType.MISSING),
        ("a kind of fish", AnswerType.IRRELEVANT),
        ("the the the the the the", AnswerType.MEANINGLESS),
        ("", AnswerType.MEANINGLESS),
        ("aaaaaah", AnswerType.MEANINGLESS),
    ],
)
def test_types_of_errors(text: str, outcome: AnswerType) -> None:
    found = classify(text, "Los Angeles", "New York")
    assert found.outcome == outcome
    assert found.original_retained is (text == "New York")


def test_success_may_repeat_afterwards() -> None:
    found = classify("Los Angeles on on on on on on", "Los Angeles")
    assert (found.outcome, found.repeats_after) == (AnswerType.SUCCESS, True)
    assert not classify("Los Angeles on the sea", "Los Angeles").repeats_after


def test_targets_of_stop_words_can_be_hit() -> None:
    assert classify("who knows", "The Who").outcome == AnswerType.SUCCESS
    assert classify("the band they", "They Them").outcome == AnswerType.PARTIAL


def test_lines_are_cut_behind_text() -> None:
    assert first_line("\n\n Rome\nParis") == "\n\n Rome"
    assert first_line("\n\n") == "\n\n"


def test_shares_are_of_failures() -> None:
    outputs = ["Los Angeles", "Los", "Los York", "fish"]
    rows = [
        said(str(i), text, "Los Angeles", answer_before="New York")
        for i, text in enumerate(outputs)
    ]
    assert share_of_failures(rows, AnswerType.MISSING).value == pytest.approx(1 / 3)
    assert share_of_failures(rows, AnswerType.MISSING).n == 3
    assert verdicts([said("1", "x", "?")])[1] == {NO_WORDS: 1}


@given(st.text(max_size=40), st.text("abc ", min_size=1, max_size=12).filter(str.strip))
@settings(max_examples=150, deadline=None)
def test_every_text_has_one_type(text: str, target: str) -> None:
    outcome = classify(text, target, "b c").outcome
    assert outcome == AnswerType.SUCCESS or FAILURES.count(outcome) == 1
