"""CounterFact, CounterFact+ : the worked examples, and the published scores."""

from __future__ import annotations

import math

import pytest

from corrigenda.cases import Protocol
from corrigenda.metrics.counterfact import (
    ROLES,
    harmonic,
    harmonic_score,
    magnitude,
    neighborhood_divergence,
    score,
)
from corrigenda.metrics.estimate import Bootstrap
from corrigenda.metrics.locality import divergence
from corrigenda.metrics.selection import probability
from corrigenda.rows import Row
from tests.support.rows import RANK, ranked

RECORD = [
    ranked("1", 0.7, 2.3),
    ranked("1", 1.2, 0.9, role="generalization", probe=1),
    ranked("1", 0.4, 1.1, role="generalization", probe=2),
    ranked("1", 0.5, 0.6, role="locality/neighborhood", probe=3),
    ranked("1", 1.0, 1.0, role="locality/neighborhood", probe=4),
]


@pytest.mark.parametrize(
    ("what", "share", "difference"),
    [("efficacy", 1, 0.396326), ("paraphrase", 0.5, 0.116037), ("neighborhood", 0.5, 0.028860)],
)
def test_record(what: str, share: float, difference: float) -> None:
    assert score(RECORD, what).value == share
    assert magnitude(RECORD, what).value == pytest.approx(difference, abs=6e-7)


@pytest.mark.parametrize(
    ("parts", "published"),
    [
        ((15.2, 17.7, 83.5), 22.4),
        ((99.4, 77.0, 46.9), 67.6),
        ((15.7, 18.5, 83.0), 23.1),
        ((50.2, 50.4, 50.2), 50.3),
        ((98.9, 88.6, 73.7), 85.8),
    ],
    ids=["none", "FT-W", "MEND", "ROME", "MEMIT"],
)
def test_published_scores_of_ten_thousand_edits(parts: tuple[float, ...], published: float) -> None:
    """The parts are rounded to a tenth, and so is the score."""
    assert harmonic(parts) == pytest.approx(published, abs=0.1)


def test_magnitude_is_a_difference_of_geometric_means() -> None:
    own, rival = probability([-0.7, -0.7]), probability([-2.3])
    assert (own, rival) == pytest.approx((0.496585, 0.100259), abs=5e-7)
    assert magnitude(RECORD, "efficacy").value == pytest.approx(own - rival)


def test_score_of_record() -> None:
    found = harmonic_score(RECORD)
    assert found.value == pytest.approx(0.6)
    assert found.metric == "score@rank"


@pytest.mark.parametrize(
    ("parts", "published"),
    [
        ((100, 96.4, 75.4), 89.19),
        ((99.9, 99.1, 78.9), 91.53),
        ((22.2, 24.7, 78.1), 30.51),
    ],
)
def test_published_scores(parts: tuple[float, ...], published: float) -> None:
    assert harmonic(parts) == pytest.approx(published, abs=5e-3)


def test_score_is_a_harmonic_mean_of_means() -> None:
    """Means of records' harmonic means would give 0.5 here: one record has a part that is 0."""
    rows = [Row(**{**vars(row), "case": case}) for case in "12" for row in RECORD]
    rows[5] = ranked("2", 2.0, 1.0)
    assert harmonic_score(rows).value == pytest.approx(3 / (2 + 2 + 2))
    assert harmonic((0.0, 1, 1)) == 0


def test_hierarchical_intervals_of_the_record_draw_its_prompts() -> None:
    """As many records as one likes, all alike: only prompts can be drawn otherwise."""
    rows = [Row(**{**vars(row), "case": str(case)}) for case in range(30) for row in RECORD]
    alone, own = Bootstrap(level=0.99), Bootstrap(level=0.99, hierarchical=True)
    for what, moves in (("efficacy", False), ("paraphrase", True), ("neighborhood", True)):
        plain, found = score(rows, what, bootstrap=alone), score(rows, what, bootstrap=own)
        assert plain.low <= plain.value <= plain.high
        assert (found.low < plain.low and plain.high < found.high) is moves
        assert moves or (found.low, found.high) == (plain.low, plain.high)
    plain, found = harmonic_score(rows), harmonic_score(rows, bootstrap=own)
    assert plain.low == pytest.approx(0.6) == plain.high
    assert found.value == plain.value
    assert found.low < 0.6 < found.high
    # Both halves of S that move are means of 60 prompts, of which a record holds two.
    assert found.high < 3 / (1 + 2 / 0.8)


def test_no_score_without_paraphrases() -> None:
    found = harmonic_score([one for one in RECORD if one.role != "generalization"])
    assert math.isnan(found.value)
    assert found.n == 0
    rows = [one for one in RECORD if one.role != "generalization"]
    assert harmonic_score(rows, bootstrap=Bootstrap(hierarchical=True)).n == 0


def test_whole_answers_are_labelled() -> None:
    row = Row(
        case="1",
        role="reliability",
        protocol=RANK,
        log_probs=[-1.0, -1.0],
        rival_log_probs=[[-1.5]],
    )
    assert score([row], "efficacy").value == 1
    whole = score([row], "efficacy", normalization="sum")
    assert (whole.value, whole.metric) == (0, "efficacy_score@rank:sum")


def test_distracted_neighborhood() -> None:
    rows = [
        ranked("1", 0.5, 0.9, role=ROLES["neighborhood"]),
        ranked("1", 1.4, 1.1, role=ROLES["distracted_neighborhood"], probe=1),
    ]
    assert score(rows, "neighborhood").value == 1
    assert score(rows, "distracted_neighborhood").value == 0
    assert magnitude(rows, "neighborhood").value == pytest.approx(0.199961, abs=5e-7)
    found = magnitude(rows, "distracted_neighborhood").value
    assert found == pytest.approx(math.exp(-1.4) - math.exp(-1.1), abs=1e-12)
    assert found == pytest.approx(-0.086274, abs=5e-7)


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ({}, 0.085123),
        ({"reverse": True}, 0.092033),
        ({"reverse": True, "legacy_vocabulary_mean": True}, 0.030678),
    ],
)
def test_divergence_of_neighbours(flags: dict[str, bool], value: float) -> None:
    unedited, edited = [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]
    row = Row(
        case="1",
        role="divergence/neighborhood",
        protocol=Protocol.GREEDY,
        divergence=[divergence(unedited, edited), 7.0],
        divergence_reversed=[divergence(unedited, edited, reverse=True), 7.0],
        vocabulary=3,
    )
    found = neighborhood_divergence([row], **flags)
    assert found.value == pytest.approx(value, abs=5e-7)
    assert ("legacy" in found.metric) is ("legacy_vocabulary_mean" in flags)
