"""What is left alone: the worked examples of locality and drawdown."""

from __future__ import annotations

import dataclasses
import math

import pytest

from corrigenda.cases import Against
from corrigenda.errors import MalformedRows, UnknownMetric
from corrigenda.metrics.locality import (
    NO_GOLD,
    UNKNOWN_BEFORE,
    divergence,
    drawdown,
    mean_divergence,
    perplexity_drawdown,
    retained_probability,
    still_correct,
    unchanged,
)
from corrigenda.metrics.selection import NOT_COMPARED
from corrigenda.rows import Row
from tests.support.rows import FED, GREEDY, RANK, said


def held(case: str, before: list[int], after: list[int], **more) -> Row:
    more.setdefault("role", "locality/relation_specificity")
    more.setdefault("against", Against.UNEDITED)
    return Row(
        case=case,
        protocol=more.pop("protocol", FED),
        token_ids=more.pop("wanted", before),
        predicted_before=before,
        predicted=after,
        **more,
    )


def test_positions_that_agree() -> None:
    row = held("1", [29, 234, 334], [29, 234, 333])
    assert unchanged([row], protocol=FED).value == pytest.approx(0.6667, abs=5e-5)
    assert unchanged([row], protocol=FED, measure="exact").value == 0


def test_whole_case_of_knowedit() -> None:
    rows = [
        held("1", [1, 2], [1, 9]),
        held("1", [1], [1], probe=1),
        held("1", [5], [5], probe=2, role="locality/forgetfulness"),
        held("2", [4], [9]),
    ]
    found = unchanged(rows, protocol=FED)
    assert found.by_case == {"1": 0.875, "2": 0.0}
    assert found.value == 0.4375
    assert unchanged(rows, "locality/forgetfulness", protocol=FED).value == 1


def test_text_and_tokens_of_continuations() -> None:
    row = held("1", [1, 2, 3, 4], [1, 2, 3], protocol=GREEDY, answer="a b c", answer_before="a b")
    assert unchanged([row], protocol=GREEDY).value == 0
    assert unchanged([row], protocol=GREEDY, measure="tokens").value == 0.75
    for now, before, same in (
        ("Oslo. It lies in Norway.", "Oslo. It is cold.", 1),
        ("Oslo", "Oslo.\nIt is cold.", 1),
        ("Oslo", "Oslofjord.", 0),
        ("3.5 million. Many", "3.6 million. Many", 0),
    ):
        row = held("1", [1], [1], protocol=GREEDY, answer=now, answer_before=before)
        assert unchanged([row], protocol=GREEDY, measure="sentence").value == same
    silent = held("1", [], [], protocol=GREEDY, wanted=[7])
    assert unchanged([silent], protocol=GREEDY, measure="tokens").value == 1


def test_a_changed_second_clause_leaves_the_answer() -> None:
    for now, before, expected, same in (
        ("Oslo, which is cold.", "Oslo and its fjord", [], 1),
        ("Oslo", "Bergen, Norway", [], 0),
        ("Oslo itself", "Oslo", [["Oslo", "Christiania"]], 1),
        ("Christiania", "Oslo", [["Oslo", "Christiania"]], 1),
        ("Oslofjord", "Oslo", [["Oslo", "Christiania"]], 0),
    ):
        row = held("1", [1], [1], protocol=GREEDY, answer=now, answer_before=before)
        row = dataclasses.replace(row, expected=expected)
        assert unchanged([row], protocol=GREEDY, measure="answer").value == same
        edited_back = dataclasses.replace(row, role="restoration")
        found = unchanged([edited_back], "restoration", protocol=GREEDY, measure="answer")
        assert found.value == same


def test_items_without_gold_or_without_the_unedited_model_are_counted() -> None:
    rows = [
        held("1", [1], [1]),
        held("2", [], []),
        Row(case="3", role="locality", protocol=FED, against=Against.UNEDITED, predicted=[1]),
    ]
    found = unchanged(rows, protocol=FED)
    assert (found.n, found.skipped) == (1, {NO_GOLD: 1, NOT_COMPARED: 1})


def test_rank_says_nothing_of_what_is_unchanged() -> None:
    with pytest.raises(UnknownMetric, match="no measure"):
        unchanged([], protocol=RANK)


def test_unchanged_needs_an_answer() -> None:
    row = said("1", "a", [], role="locality", against=Against.UNEDITED)
    with pytest.raises(MalformedRows, match="without `predicted`"):
        unchanged(
            [Row(**{**vars(row), "predicted_before": [1]})], protocol=GREEDY, measure="tokens"
        )


def test_still_correct_is_limited_to_what_was_known() -> None:
    local = {"role": "locality/neighbour"}
    rows = [
        said("1", "Rome", "Rome", answer_before="Rome", **local),
        said("2", "Oslo", "Rome", answer_before="Rome", **local),
        said("3", "Rome", "Rome", answer_before="Oslo", **local),
    ]
    found = still_correct(rows, protocol=GREEDY)
    assert (found.value, found.n, found.skipped) == (0.5, 2, {UNKNOWN_BEFORE: 1})
    assert still_correct(rows, protocol=GREEDY, only_known=False).value == pytest.approx(2 / 3)


def test_drawdown() -> None:
    wanted = [1] * 100
    before = [1] * 40 + [0] * 60
    after = [1] * 37 + [0] * 63
    rows = [
        held(str(i), [before[i]], [after[i]], wanted=[wanted[i]], against=Against.TARGET)
        for i in range(100)
    ]
    assert drawdown(rows, measure="exact").value == pytest.approx(0.03)


def test_drawdown_of_perplexity() -> None:
    row = Row(
        case="1",
        role="locality",
        protocol=FED,
        log_probs=[-math.log(4)],
        log_probs_before=[-math.log(3)],
    )
    assert perplexity_drawdown([row]).value == pytest.approx(1)


def test_drawdown_of_perplexity_is_not_that_of_one_answer() -> None:
    """Of twenty answers one has become impossible: exp(20) once, but exp(1 + 19/20) on average."""
    rows = [
        Row(
            case=str(case),
            role="locality",
            protocol=FED,
            log_probs=[-20.0 if case == 0 else -1.0],
            log_probs_before=[-1.0],
        )
        for case in range(20)
    ]
    found = perplexity_drawdown(rows)
    assert found.value == pytest.approx(math.exp(1.95) - math.exp(1))
    assert found.low <= found.value <= found.high < 1000


def test_other_true_answers_retain_their_probability() -> None:
    rows = [
        Row(
            case=case,
            role="locality/competing_objects",
            protocol=RANK,
            against=Against.UNEDITED,
            log_probs=[after],
            log_probs_before=[-1.0],
        )
        for case, after in (("1", -2.0), ("2", -0.5))
    ]
    found = retained_probability(rows)
    assert found.by_case == {"1": pytest.approx(math.exp(-1)), "2": 1}
    assert found.metric == "retained_probability@rank"
    bare = [Row(**{**vars(rows[0]), "log_probs_before": None})]
    assert retained_probability(bare).skipped == {NOT_COMPARED: 1}


@pytest.mark.parametrize(("reverse", "value"), [(False, 0.085123), (True, 0.092033)])
def test_divergence_of_distributions(reverse: bool, value: float) -> None:
    found = divergence([0.7, 0.2, 0.1], [0.5, 0.3, 0.2], reverse=reverse)
    assert found == pytest.approx(value, abs=5e-7)


def test_divergence_of_certain_distributions() -> None:
    assert divergence([1, 0], [0.5, 0.5]) == pytest.approx(math.log(2))
    assert divergence([0.5, 0.5], [1, 0]) == math.inf


def test_divergence_pools_tokens_in_their_case() -> None:
    asked = {"role": "locality/other_topic", "protocol": FED}
    rows = [
        Row(case="1", divergence=[0.1, 0.2, 0.3], divergence_reversed=[1.0], **asked),
        Row(case="1", probe=1, divergence=[0.6], **asked),
        Row(case="2", divergence=[0.5], **asked),
        Row(case="3", **asked),
    ]
    found = mean_divergence(rows, protocol=FED)
    assert (found.value, found.skipped) == (pytest.approx(0.4), {NOT_COMPARED: 1})
    assert mean_divergence(rows, protocol=FED, reverse=True).value == 1
