"""Estimates: pooling, intervals, and that nothing depends on the order of rows."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from corrigenda.metrics.estimate import (
    Bootstrap,
    Item,
    difference,
    mean,
    over_cases,
    pool,
    ratio_of_sums,
    statistic,
)


def test_levels_are_pooled_one_by_one() -> None:
    items = [Item("A", 1, "x"), Item("A", 0, "y"), Item("A", 1, "y"), Item("B", 0)]
    assert pool(items) == {"A": 0.75, "B": 0.0}


def test_interval_holds_the_value_and_narrows_with_more_cases() -> None:
    widths = []
    for count in (20, 2000):
        found = over_cases("m@greedy", [Item(str(i), float(i % 2)) for i in range(count)])
        assert found.low <= found.value <= found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 5


def test_interval_is_close_to_the_normal_one() -> None:
    found = over_cases("m@greedy", [Item(str(i), float(i % 4 == 0)) for i in range(400)])
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert found.low == pytest.approx(0.25 - half, abs=0.01)
    assert found.high == pytest.approx(0.25 + half, abs=0.01)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        values = generator.random(60)
        found = over_cases("m", [Item(str(i), float(v)) for i, v in enumerate(values)])
        covered += found.low <= 0.5 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_order_changes_no_bit() -> None:
    items = [Item(str(i % 37), math.sin(i), str(i % 3)) for i in range(300)]
    shuffled = random.Random(0).sample(items, len(items))
    first, second = over_cases("m", items), over_cases("m", shuffled)
    assert first == second
    assert first.by_case == second.by_case


def test_seed_is_stated_and_counts() -> None:
    items = [Item(str(i), math.sin(i)) for i in range(30)]
    first = over_cases("m", items, bootstrap=Bootstrap(seed=1))
    second = over_cases("m", items, bootstrap=Bootstrap(seed=2))
    assert first.bootstrap.seed == 1
    assert first.value == second.value
    assert (first.low, first.high) != (second.low, second.high)


def test_no_case_has_no_value_and_one_case_no_interval() -> None:
    none = over_cases("m", [])
    assert math.isnan(none.value)
    assert (none.n, none.items) == (0, 0)
    one = over_cases("m", [Item("1", 0.5)])
    assert one.value == 0.5
    assert math.isnan(one.low)


def test_ratio_of_sums() -> None:
    found = statistic("m", {"a": (1.0, 4.0), "b": (3.0, 4.0)}, ratio_of_sums, items=2)
    assert found.value == 0.5


def test_difference_is_paired() -> None:
    first = over_cases("m", [Item("1", 1.0), Item("2", 0.5), Item("3", 1.0)])
    second = over_cases("m", [Item("1", 0.0), Item("2", 0.5)])
    found = difference("change", first, second)
    assert (found.value, found.n) == (0.5, 2)
    assert found.skipped == {"case without its counterpart": 1}


def test_mean_of_nothing_is_not_a_number() -> None:
    assert math.isnan(mean([]))
