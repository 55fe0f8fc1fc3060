"""ConflictEdit and RoundEdit: the worked examples, and the bounds of legacy numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrigenda.metrics.conflict import (
    ALONE,
    BACK,
    IMPLIED,
    NEW,
    NO_COUNTERPART,
    NO_OBJECTS,
    OLD,
    THERE,
    TIED,
    TRUE_OBJECT,
    ZERO_BEFORE,
    conflict_magnitude,
    conflict_score,
    distortion,
    jensen_shannon,
    round_distortion,
    round_success,
    success_alone,
    tied_fact_damage,
)
from corrigenda.metrics.selection import NOT_COMPARED
from corrigenda.rows import Row
from tests.support.rows import RANK


def likely(role: str, rounds: int, values: list[float], before: float | None = None) -> list[Row]:
    """A fact's prompts with these P~ after some rounds."""
    return [
        Row(
            case="1",
            role=role,
            probe=probe,
            protocol=RANK,
            rounds=rounds,
            log_probs=[math.log(value) if value else -math.inf],
            log_probs_before=None if before is None else [math.log(before)],
        )
        for probe, value in enumerate(values)
    ]


def against(role: str, rounds: int, own: float, rival: float) -> Row:
    return Row(
        case="1",
        role=role,
        protocol=RANK,
        rounds=rounds,
        log_probs=[math.log(own)],
        rival_log_probs=[[math.log(rival)]],
    )


RECORD = [
    *likely(OLD, 1, [0.8, 0.8]),
    *likely(OLD, 2, [0.1, 0.3]),
    *likely(NEW, 2, [0.4, 0.2]),
    *likely(TIED, 2, [0.1], before=0.5),
]


def test_record_of_two_prompts() -> None:
    assert conflict_score(RECORD).value == 1
    assert conflict_magnitude(RECORD).value == pytest.approx(0.75)
    assert tied_fact_damage(RECORD).value == pytest.approx(0.8)


def test_magnitude_is_clipped_below() -> None:
    rows = [*likely(OLD, 1, [0.1]), *likely(OLD, 2, [0.5])]
    assert conflict_magnitude(rows).value == -1
    assert conflict_magnitude(rows, clipped=False).value == pytest.approx(-4)


def test_tied_fact_may_be_held_against_the_moment_between() -> None:
    rows = [*likely(TIED, 1, [0.2]), *likely(TIED, 2, [0.1], before=0.5)]
    assert tied_fact_damage(rows, intermediate=True).value == pytest.approx(0.5)


def test_ties_fail_and_what_was_not_asked_is_counted() -> None:
    rows = [*likely(OLD, 2, [0.2]), *likely(NEW, 2, [0.2])]
    assert conflict_score(rows).value == 0
    assert conflict_score(rows, implied=True).skipped == {NO_COUNTERPART: 1}
    assert conflict_score([*rows, *likely(IMPLIED, 2, [0.3])], implied=True).value == 1
    nothing = [*likely(OLD, 1, [0.0]), *likely(OLD, 2, [0.0])]
    assert conflict_magnitude(nothing).skipped == {ZERO_BEFORE: 1}


def test_second_edit_alone() -> None:
    assert success_alone([against(ALONE, 1, 0.3, 0.2)]).value == 1
    assert success_alone([against(ALONE, 1, 0.2, 0.2)]).value == 0


@pytest.mark.parametrize(("second", "value"), [(0.4, 1.0), (0.1, 0.5)])
def test_each_way_of_the_round_is_half_a_point(second: float, value: float) -> None:
    rows = [against(THERE, 1, 0.3, 0.2), against(BACK, 2, second, 0.2)]
    assert round_success(rows).value == value


BEFORE, AFTER = [0.2, 0.1, 0.1], [0.6, 0.05, 0.15]


def test_distortion() -> None:
    found = distortion(BEFORE, AFTER)
    assert found.divergence == pytest.approx(0.044941, abs=5e-7)
    assert (found.ignored, found.failed) == (0.5, 0.0)


def round_trip(*weights: float) -> list[Row]:
    """Three true objects under prompts that raise or lower all P~ alike."""
    rows = [
        Row(
            case="1",
            role=TRUE_OBJECT,
            probe=10 * index + prompt,
            protocol=RANK,
            rounds=2,
            expected=[[f"object {index}"]],
            log_probs=[math.log(AFTER[index] * weight)],
            log_probs_before=[math.log(BEFORE[index] * weight)],
        )
        for index in (1, 2, 0)
        for prompt, weight in enumerate(weights)
    ]
    back = against(BACK, 2, 0.6, 0.1)
    return [*rows, Row(**{**vars(back), "expected": [["object 0"]], "probe": 90})]


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ({}, 0.044941),
        ({"bits": True}, 0.064836),
        ({"legacy_mean": True}, 0.014980),
        ({"part": "ignored"}, 0.5),
        ({"part": "failed"}, 0.0),
    ],
)
def test_distortion_of_rows(flags: dict[str, object], value: float) -> None:
    found = round_distortion(round_trip(1.0), **flags)
    assert found.value == pytest.approx(value, abs=5e-7)
    assert ("legacy" in found.metric) is ("legacy_mean" in flags)


def test_prompts_of_an_object_are_averaged_first() -> None:
    assert round_distortion(round_trip(0.5, 1.5)).value == pytest.approx(0.044941, abs=5e-7)


def test_objects_need_the_unedited_model_and_the_restored_one() -> None:
    found = round_distortion(likely(TRUE_OBJECT, 2, [0.5]))
    assert (found.n, found.skipped) == (0, {NOT_COMPARED: 1})
    found = round_distortion(round_trip(1.0)[:-1])
    assert (found.n, found.skipped) == (0, {NO_OBJECTS: 1})


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=12), st.data())
@settings(max_examples=60, deadline=None)
def test_legacy_distortion_is_bounded_by_the_number_of_objects(before, data) -> None:
    """34.66 is the most that can be printed for two objects."""
    size = len(before)
    after = data.draw(st.lists(st.floats(0.01, 1), min_size=size, max_size=size))
    assert 0 <= distortion(before, after).divergence / size <= math.log(2) / size + 1e-12


def test_divergence_of_disjoint_distributions() -> None:
    assert jensen_shannon([1, 0], [0, 1]) == pytest.approx(math.log(2))
    assert 100 * jensen_shannon([1, 0], [0, 1]) / 2 == pytest.approx(34.66, abs=5e-3)
    assert jensen_shannon([0.5, 0.5], [0.5, 0.5]) == 0
