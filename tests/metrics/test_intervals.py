"""Intervals of shares cover the truth as often as they promise, for few cases and clusters too."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from corrigenda.metrics.estimate import (
    FEWEST,
    AnswerValue,
    Bootstrap,
    count_cases,
    over_cases,
    ratio_of_sums,
    statistic,
)
from corrigenda.metrics.intervals import (
    beta_quantile,
    exact_interval,
    expanded_tail,
    share_interval,
    student_quantile,
)

LEAST_COVERAGE = 0.93
SHARES = (0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.985)


@pytest.mark.parametrize("num_cases", [5, 6, 7, 8, 9, 10, 12, 15, 20, 30, 50, 100, 200])
def test_shares_of_single_answers_are_covered(num_cases: int) -> None:
    """Exactly: all numbers of successes, weighed by their probability."""
    intervals = []
    for successes in range(num_cases + 1):
        items = [AnswerValue(str(i), float(i < successes)) for i in range(num_cases)]
        found = over_cases("m", items)
        intervals.append((found.low, found.high))
    for share in (*SHARES, *np.linspace(0.01, 0.99, 50)):
        covered = sum(
            math.comb(num_cases, x) * share**x * (1 - share) ** (num_cases - x)
            for x, (low, high) in enumerate(intervals)
            if low <= share <= high
        )
        assert covered >= LEAST_COVERAGE, share


def clustered(num_cases: int) -> Iterator[tuple[float, list[AnswerValue]]]:
    """Cases of several answers, from independent to nearly equal ones; with their true share."""
    generator = np.random.default_rng(num_cases)
    for share in SHARES:
        for answers, correlation in ((3, 0.0), (3, 0.6), (10, 0.1), (10, 0.6), (30, 0.9)):
            for _ in range(60):
                own = np.full(num_cases, share)
                if correlation:
                    size = 1 / correlation - 1
                    own = generator.beta(share * size, (1 - share) * size, num_cases)
                right = generator.random((num_cases, answers)) < own[:, None]
                yield (
                    share,
                    [
                        AnswerValue(str(case), float(one))
                        for case, answer in enumerate(right)
                        for one in answer
                    ],
                )


@pytest.mark.parametrize("num_cases", [5, 6, 8, 10, 14, 20])
def test_shares_of_several_answers_a_case_are_covered(num_cases: int) -> None:
    covered = [
        found.low <= share <= found.high
        for share, items in clustered(num_cases)
        for found in (over_cases("m", items),)
    ]
    assert np.mean(covered) >= LEAST_COVERAGE


@pytest.mark.slow
@pytest.mark.parametrize("num_cases", [5, 10, 20, 50, 100, 200])
def test_shares_are_covered_in_each_setting(num_cases: int) -> None:
    found: dict[tuple[float, int], list[bool]] = {}
    for _ in range(10):
        for number, (share, items) in enumerate(clustered(num_cases)):
            one = over_cases("m", items)
            found.setdefault((share, number // 60), []).append(one.low <= share <= one.high)
    assert min(map(np.mean, found.values())) >= LEAST_COVERAGE - 0.02


def test_clusters_of_many_cases_are_neither_ignored_nor_overdone() -> None:
    """Equal answers are worth one for each case, independent ones each nearly one."""
    generator = np.random.default_rng(0)
    equal = generator.random((400, 1)) < np.full((400, 10), 0.5)
    apart = generator.random((400, 10)) < 0.5
    for right, worth in ((equal, 400), (apart, 4000)):
        items = [AnswerValue(str(i), float(x)) for i, own in enumerate(right) for x in own]
        found = over_cases("m", items)
        assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / worth**0.5, rel=0.08)


def test_ratios_of_counts_are_shares_too() -> None:
    """Two facts a case: MQuAKE's edit-wise success; cases of unequal size count as fewer."""
    even = {str(i): (float(2 * (i % 2)), 2.0) for i in range(40)}
    found = statistic("m", even, ratio_of_sums, items=80, share=True)
    assert (found.low, found.high) == pytest.approx(tuple(exact_interval(20, 40, 0.95)), abs=1e-9)
    uneven = {**even, "40": (40.0, 40.0)}
    wide = statistic("m", uneven, ratio_of_sums, items=120, share=True)
    assert wide.high - wide.low > found.high - found.low


def test_levels_are_those_asked_for() -> None:
    items = [AnswerValue(str(i), float(i % 3 > 0)) for i in range(12)]
    narrow, wide = (over_cases("m", items, bootstrap=Bootstrap(level=x)) for x in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_means_of_few_cases_have_wider_percentiles() -> None:
    """Plain percentiles of six cases cover a mean in 87 of 100 samples or fewer."""
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        items = [AnswerValue(str(i), float(x)) for i, x in enumerate(generator.normal(size=6))]
        found = over_cases("m", items, share=False)
        covered += found.low <= 0 <= found.high
    assert covered / 300 >= LEAST_COVERAGE - 0.02
    assert expanded_tail(0.95, 6) < 0.004
    assert expanded_tail(0.95, 10_000) == pytest.approx(0.025, abs=1e-4)


def test_quantiles_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the extra `metrics`")
    for a, b in ((2, 3), (0.5, 0.5), (9, 2), (100.3, 3.2), (1, 200), (60, 140)):
        for probability in (0.0005, 0.025, 0.5, 0.975):
            found = beta_quantile(probability, a, b)
            assert found == pytest.approx(stats.beta.ppf(probability, a, b), abs=1e-9)
    for freedom in (1, 4, 5, 19, 199.5):
        wanted = stats.t.ppf(0.975, freedom)
        assert student_quantile(0.95, freedom) == pytest.approx(wanted, rel=1e-6)


def test_nothing_right_and_everything_right_are_not_certain() -> None:
    low, high = share_interval([0.0] * 6, [1.0] * 6, level=0.95)
    assert (low, high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 6)))
    low, high = share_interval([1.0] * 6, [1.0] * 6, level=0.95)
    assert (low, high) == (pytest.approx(0.025 ** (1 / 6)), 1.0)


def test_few_cases_are_marked() -> None:
    few, many = (
        over_cases("m", [AnswerValue(str(i), 1.0) for i in range(count)])
        for count in (FEWEST - 1, FEWEST)
    )
    assert (few.has_few_cases, many.has_few_cases) == (True, False)
    assert count_cases([few]) == "9 (< 10)"
    assert count_cases([many, None]) == "10"
    assert count_cases([many, few]) == "9-10 (< 10)"
    assert count_cases([]) == "0"
