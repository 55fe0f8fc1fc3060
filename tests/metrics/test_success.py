"""Reliability, generalization and portability: the worked examples, and what must be refused."""

from __future__ import annotations

import math
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrigenda.cases import Protocol
from corrigenda.errors import MalformedRows, MixedRows, UnknownMetric
from corrigenda.metrics.selection import as_before, at, probability
from corrigenda.metrics.success import (
    CONDITION_FAILS,
    NO_RIVAL,
    NO_TOKENS,
    NO_WORDS,
    SEVERAL_ANSWERS,
    effective,
    success,
)
from corrigenda.rows import Row, Stage
from tests.support.rows import FED, GREEDY, RANK, fed, ranked, said

reliability, generalization, portability = (
    partial(success, role=role) for role in ("reliability", "generalization", "portability")
)


def test_tokens_count_in_part_and_exactly_only_together() -> None:
    row = Row(
        case="1",
        role="reliability",
        protocol=FED,
        token_ids=[11, 12, 13],
        predicted=[11, 12, 99],
    )
    assert reliability([row], protocol=FED).value == pytest.approx(0.6667, abs=5e-5)
    assert reliability([row], protocol=FED, measure="exact").value == 0


def test_cases_weigh_the_same_whatever_their_number_of_tokens() -> None:
    rows = [fed("A", [1, 1, 0]), fed("B", [1])]
    assert reliability(rows, protocol=FED).value == pytest.approx(0.8333, abs=5e-5)


def test_paraphrases_are_averaged_inside_their_case_first() -> None:
    rows = [
        fed("A", [1], role="generalization"),
        fed("A", [0], role="generalization", probe=1),
        fed("B", [1], role="generalization"),
    ]
    found = generalization(rows, protocol=FED)
    assert (found.value, found.n, found.items) == (0.75, 2, 3)
    assert found.metric == "generalization@teacher_forced"


def test_portability_averages_kinds_inside_cases() -> None:
    rows = [
        fed("A", [1], role="portability/subject_alias"),
        fed("A", [1, 0], role="portability/reasoning", probe=1),
        fed("A", [1], role="portability/reasoning", probe=2),
        fed("B", [0], role="portability/logical_generalization"),
        fed("C", [1]),
    ]
    found = portability(rows, protocol=FED)
    assert found.by_case == {"A": 0.875, "B": 0.0}
    assert found.value == 0.4375


def test_whole_case_of_knowedit() -> None:
    rows = [
        fed("1", [1]),
        fed("1", [1], role="portability/subject_aliasing", probe=1),
        fed("1", [0], role="portability/logical_generalization", probe=2),
        fed("1", [1], role="portability/logical_generalization", probe=3),
        fed("2", [1, 0]),
    ]
    assert reliability(rows, protocol=FED).value == 0.75
    found = portability(rows, protocol=FED)
    assert (found.value, found.n) == (0.75, 1)


def test_zsre_booleans() -> None:
    rows = [
        fed("1", [1, 1, 0]),
        fed("1", [1, 0, 0], role="generalization", probe=1),
        fed("1", [0, 1], role="locality/natural_question", probe=2),
    ]
    assert reliability(rows, protocol=FED).value == pytest.approx(0.6667, abs=5e-5)
    assert generalization(rows, protocol=FED).value == pytest.approx(0.3333, abs=5e-5)
    assert success(rows, "locality", protocol=FED).value == 0.5


@pytest.mark.parametrize(
    ("text", "expected", "exact", "prefix", "contains"),
    [
        ("April 1st ends at noon on April 2nd", "April 1st", 0, 1, 1),
        (" The Louvre.", "louvre", 1, 1, 1),
        ("Paris, France", "Paris", 0, 1, 1),
        ("It is in Paris", "Paris", 0, 0, 1),
        ("Parisian", "Paris", 0, 0, 0),
    ],
)
def test_decisions_on_text(text: str, expected: str, exact: int, prefix: int, contains: int):
    rows = [said("1", text, expected)]
    found = [
        reliability(rows, protocol=GREEDY, measure=measure).value
        for measure in ("exact", "prefix", "contains")
    ]
    assert found == [exact, prefix, contains]


def test_all_tokens_of_an_answer_that_goes_on() -> None:
    """The answer fed is all right, the one generated begins with it and says another date too."""
    text = "April 1st ends at noon on April 2nd"
    tokens = {"token_ids": [10, 11, 12], "predicted": [10, 11, 12, 40, 41]}
    rows = [fed("1", [1, 1, 1]), said("1", text, "April 1st", **tokens)]
    assert reliability(rows, protocol=FED).value == 1
    assert reliability(rows, protocol=GREEDY, measure="tokens").value == 1
    assert reliability(rows, protocol=GREEDY, measure="exact").value == 0


def test_reversed_relations_are_scored_both_ways() -> None:
    """The spouse of A became B, so "The spouse of B is" expects A.

    Of three cases one draws the consequence, one gets the family name alone, one says the edited
    object again.
    """
    asked = {
        "role": "portability/logical_generalization",
        "prompt": "The spouse of Berta Brandt is",
        "expected": [["Anton Adler"]],
    }
    outputs = {
        "drawn": ([7, 8], " the painter Anton Adler, who"),
        "half": ([6, 8], " Carl Adler"),
        "edited": ([4, 5], " Berta Brandt"),
    }
    rows = [
        Row(
            case=case,
            protocol=protocol,
            token_ids=[7, 8],
            predicted=predicted,
            predicted_before=[4, 5],
            answer=text,
            answer_before=" unknown",
            **asked,
        )
        for case, (predicted, text) in outputs.items()
        for protocol in (FED, GREEDY)
    ]
    fed_tokens = portability(rows, protocol=FED)
    assert fed_tokens.by_case == {"drawn": 1.0, "half": 0.5, "edited": 0.0}
    contained = portability(rows, protocol=GREEDY, measure="contains")
    assert contained.by_case == {"drawn": 1.0, "half": 0.0, "edited": 0.0}
    # It does not begin with the name, so the default of the protocol is stricter.
    assert portability(rows, protocol=GREEDY).value == 0
    before = as_before(rows)
    for protocol, measure in ((FED, None), (GREEDY, "contains")):
        old = portability(before, protocol=protocol, measure=measure, stage=Stage.BEFORE)
        assert old.value == 0


def test_any_spelling_of_every_group() -> None:
    both = [["Paris"], ["Lyon", "Lyons"]]
    assert reliability([said("1", "Lyons, Paris", both)], protocol=GREEDY, measure="contains").value
    one = reliability([said("1", "Paris", both)], protocol=GREEDY, measure="contains")
    assert one.value == 0
    assert reliability([said("1", "Paris", both)], protocol=GREEDY).skipped == {SEVERAL_ANSWERS: 1}


def test_rank_is_strict_and_per_token() -> None:
    assert reliability([ranked("1", 0.7, 2.3)], protocol=RANK).value == 1
    assert reliability([ranked("1", 1.0, 1.0)], protocol=RANK).value == 0
    long = Row(
        case="1",
        role="reliability",
        protocol=RANK,
        log_probs=[-1.0] * 5,
        rival_log_probs=[[-1.1]],
    )
    assert reliability([long], protocol=RANK).value == 1


def test_probability_of_a_sequence() -> None:
    log_probs = [math.log(0.5), math.log(0.2)]
    assert probability(log_probs) == pytest.approx(0.31623, abs=5e-6)
    assert probability(log_probs, normalization="sum") == pytest.approx(0.10)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_all_tokens_right_means_that_greedy_decoding_gives_them(wanted, data) -> None:
    """A model that predicts by position, whatever it reads: both protocols see the same tokens."""
    predicted = data.draw(st.lists(st.integers(0, 3), min_size=len(wanted), max_size=len(wanted)))
    rows = [
        Row(
            case="1",
            role="reliability",
            protocol=protocol,
            token_ids=wanted,
            predicted=predicted,
        )
        for protocol in (FED, GREEDY)
    ]
    exact = reliability(rows, protocol=FED, measure="exact").value
    assert exact == float(reliability(rows, protocol=GREEDY, measure="tokens").value == 1)


def test_protocols_never_meet() -> None:
    rows = [fed("1", [1]), said("1", "no", "yes")]
    assert reliability(rows, protocol=FED).value == 1
    assert reliability(rows, protocol=GREEDY).value == 0


def test_runs_never_meet() -> None:
    with pytest.raises(MixedRows, match=r"CG506.*2 runs"):
        reliability([fed("1", [1], run="a"), fed("2", [1], run="b")], protocol=FED)


def test_the_same_answer_twice_is_refused() -> None:
    with pytest.raises(MixedRows, match="two answers to one probe"):
        reliability([fed("1", [1]), fed("1", [1])], protocol=FED)
    rows = [fed("1", [1], position=1, edits=1), fed("1", [0], position=1, edits=2)]
    with pytest.raises(MixedRows, match="after 1 and after 2 edits"):
        reliability(rows, protocol=FED)
    assert reliability(at(rows, 2), protocol=FED).value == 0


def test_empty_target_is_an_error_not_a_silent_drop() -> None:
    with pytest.raises(MalformedRows, match="expected answer is empty"):
        reliability([fed("1", [])], protocol=FED)
    with pytest.raises(MalformedRows, match="expected answer is empty"):
        reliability([said("1", "Rome", [])], protocol=GREEDY)


def test_answers_without_what_is_measured_are_refused() -> None:
    bare = {"case": "1", "role": "reliability"}
    for protocol, name in ((FED, "token_ids"), (GREEDY, "answer"), (RANK, "log_probs")):
        with pytest.raises(MalformedRows, match=f"without `{name}`"):
            reliability([Row(protocol=protocol, **bare)], protocol=protocol)
    text = said("1", "Rome", "Rome")
    found = reliability([text], protocol=GREEDY, measure="tokens")
    assert found.skipped == {NO_TOKENS: 1}
    unscored = Row(protocol=RANK, log_probs=[-1.0], rivals=["Paris"], **bare)
    with pytest.raises(MalformedRows, match="of every rival"):
        reliability([unscored], protocol=RANK)
    alone = Row(protocol=RANK, log_probs=[-1.0], **bare)
    assert reliability([alone], protocol=RANK).skipped == {NO_RIVAL: 1}


def test_skips_are_counted_by_reason() -> None:
    rows = [
        fed("1", [1]),
        Row(case="2", role="reliability", protocol=FED, skipped="prompt too long"),
        Row(case="3", role="reliability", protocol=FED, skipped="prompt too long"),
    ]
    found = reliability(rows, protocol=FED)
    assert (found.value, found.n, found.skipped) == (1, 1, {"prompt too long": 2})
    assert reliability([said("1", "x", "?!")], protocol=GREEDY).skipped == {NO_WORDS: 1}


def test_unknown_measure_names_the_closest() -> None:
    with pytest.raises(UnknownMetric, match='"contains"'):
        reliability([said("1", "a", "b")], protocol=GREEDY, measure="contain")


@pytest.mark.parametrize(("every", "value"), [(True, 0.0), (False, 1.0)])
def test_probes_of_a_test_count_once(every: bool, value: float) -> None:
    rows = [
        fed("1", [right], role="portability/reasoning", probe=right, test="t", every=every)
        for right in (0, 1)
    ]
    found = portability(rows, protocol=FED)
    assert (found.value, found.items) == (value, 1)


def test_tests_count_only_where_their_conditions_hold() -> None:
    asked = {"role": "portability/reasoning", "every": True}
    rows = [
        said("1", "Rome", "Rome", probe=0, test="a", **asked),
        said("1", "Oslo", "Rome", probe=1, test="b", **asked),
        said("1", "Italy", "Italy", probe=2, test="a", role="condition", stage=Stage.BEFORE),
        said("1", "Norway", "Italy", probe=3, test="b", role="condition", stage=Stage.BEFORE),
    ]
    found = portability(rows, protocol=GREEDY)
    assert (found.value, found.items, found.skipped) == (1, 1, {CONDITION_FAILS: 1})


def test_before_is_read_from_the_same_rows() -> None:
    row = said("1", "Rome", "Rome", answer_before="Paris")
    before = as_before([row])
    assert reliability(before, protocol=GREEDY, stage=Stage.BEFORE).value == 0
    assert reliability(before, protocol=GREEDY).n == 0
    alone = as_before([said("1", "Rome", "Rome")])
    assert reliability(alone, protocol=GREEDY, stage=Stage.BEFORE).skipped


def test_edits_that_were_true_before_are_left_out() -> None:
    rows = [
        said("1", "Rome", "Rome", answer_before="Paris"),
        said("2", "Rome", "Rome", answer_before="Rome"),
    ]
    kept, known = effective(rows, protocol=Protocol.GREEDY)
    assert ([row.case for row in kept], known) == (["1"], 1)
