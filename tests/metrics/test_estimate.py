"""Estimates: pooling, intervals, and that nothing depends on the order of rows."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from corrigenda.errors import NotResampled
from corrigenda.metrics import estimate as estimate_module
from corrigenda.metrics.estimate import (
    AnswerValue,
    Bootstrap,
    Estimate,
    difference,
    mean,
    over_cases,
    pool,
    ratio_of_sums,
    statistic,
)


def test_levels_are_pooled_one_by_one() -> None:
    items = [
        AnswerValue("A", 1, "x"),
        AnswerValue("A", 0, "y"),
        AnswerValue("A", 1, "y"),
        AnswerValue("B", 0),
    ]
    assert pool(items) == {"A": 0.75, "B": 0.0}


@pytest.mark.parametrize(
    ("by_method", "published"),
    [
        ((1.000, 0.942, 0.955, 0.929, 0.983, 0.998), 96.8),
        ((0.611, 0.333, 0.585, 0.552, 0.012, 0.216), 38.5),
    ],
    ids=["as reported", "in the wild"],
)
def test_published_means_over_methods(by_method: tuple[float, ...], published: float) -> None:
    """Reliability on QAEdit of FT-M, MEND, ROME, MEMIT, GRACE and WISE, Llama-2-7b-chat."""
    found = over_cases("m", [AnswerValue(str(i), value) for i, value in enumerate(by_method)])
    assert 100 * found.value == pytest.approx(published, abs=0.05)


def test_interval_holds_the_value_and_narrows_with_more_cases() -> None:
    widths = []
    for count in (20, 2000):
        found = over_cases("m@greedy", [AnswerValue(str(i), float(i % 2)) for i in range(count)])
        assert found.low <= found.value <= found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 5


def test_interval_is_close_to_the_normal_one() -> None:
    found = over_cases("m@greedy", [AnswerValue(str(i), float(i % 4 == 0)) for i in range(400)])
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert found.low == pytest.approx(0.25 - half, abs=0.01)
    assert found.high == pytest.approx(0.25 + half, abs=0.01)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        values = generator.random(60)
        found = over_cases("m", [AnswerValue(str(i), float(v)) for i, v in enumerate(values)])
        covered += found.low <= 0.5 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_order_changes_no_bit() -> None:
    items = [AnswerValue(str(i % 37), math.sin(i), str(i % 3)) for i in range(300)]
    shuffled = random.Random(0).sample(items, len(items))
    first, second = over_cases("m", items), over_cases("m", shuffled)
    assert first == second
    assert first.by_case == second.by_case


def test_seed_is_stated_and_counts() -> None:
    items = [AnswerValue(str(i), math.sin(i)) for i in range(30)]
    first = over_cases("m", items, bootstrap=Bootstrap(seed=1))
    second = over_cases("m", items, bootstrap=Bootstrap(seed=2))
    assert first.bootstrap.seed == 1
    assert first.value == second.value
    assert (first.low, first.high) != (second.low, second.high)


def test_no_case_has_no_value_and_one_case_no_interval() -> None:
    none = over_cases("m", [])
    assert math.isnan(none.value)
    assert (none.n, none.items) == (0, 0)
    one = over_cases("m", [AnswerValue("1", 0.5)])
    assert one.value == 0.5
    assert math.isnan(one.low)


def test_ratio_of_sums() -> None:
    found = statistic("m", {"a": (1.0, 4.0), "b": (3.0, 4.0)}, ratio_of_sums, items=2)
    assert found.value == 0.5


def test_difference_is_paired() -> None:
    first = over_cases("m", [AnswerValue("1", 1.0), AnswerValue("2", 0.5), AnswerValue("3", 1.0)])
    second = over_cases("m", [AnswerValue("1", 0.0), AnswerValue("2", 0.5)])
    found = difference("change", first, second)
    assert (found.value, found.n) == (0.5, 2)
    assert found.skipped == {"case without its counterpart": 1}


def test_mean_of_nothing_is_not_a_number() -> None:
    assert math.isnan(mean([]))


HIERARCHICAL = Bootstrap(hierarchical=True)


def width(found: Estimate) -> float:
    return found.high - found.low


def split_cases(count: int, answers: int = 2) -> list[AnswerValue]:
    """Cases that all have the mean 1/2, of answers that are 0 and 1."""
    return [AnswerValue(str(i), float(j % 2)) for i in range(count) for j in range(answers)]


def test_answers_within_cases_widen_the_interval() -> None:
    """All cases have one mean, so resampling them alone says that it is certain.

    With answers drawn too, the mean of n cases has the variance 1/4 / 2n.
    """
    items = split_cases(200)
    plain = over_cases("m", items, share=False)
    assert plain.low == plain.high == plain.value == 0.5
    own = Bootstrap(resamples=4000, hierarchical=True)
    half = 1.96 * math.sqrt(0.25 / 2 / 200)
    for share in (False, True):
        found = over_cases("m", items, bootstrap=own, share=share)
        assert found.value == 0.5
        assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.005)
        assert width(over_cases("m", items, share=share)) < width(found) / 8


def test_variance_within_cases_is_counted_once_more_than_between_them() -> None:
    """Of k answers to n cases: (s_b^2 + s_w^2/k) / n between, and s_w^2/k n more within."""
    generator = np.random.default_rng(3)
    items = [
        AnswerValue(str(i), float(level + generator.normal()))
        for i, level in enumerate(generator.normal(size=300))
        for _ in range(5)
    ]
    means = [*pool(items).values()]
    by_case = np.array([one.value for one in items]).reshape(300, 5)
    within = by_case.var(axis=1).mean() / 5
    more = Bootstrap(resamples=4000, hierarchical=True)
    ratio = width(over_cases("m", items, bootstrap=more)) / width(over_cases("m", items))
    assert ratio == pytest.approx(math.sqrt((np.var(means) + within) / np.var(means)), rel=0.06)
    assert ratio > 1.05


def test_cases_of_one_answer_have_the_interval_over_cases() -> None:
    single = [AnswerValue(str(i), math.sin(i)) for i in range(50)]
    # Kinds weigh the same and stay: of each, the only answer is always drawn.
    single += [AnswerValue(str(i), math.cos(i), "other") for i in range(0, 50, 2)]
    plain = over_cases("m", single)
    found = over_cases("m", single, bootstrap=HIERARCHICAL)
    assert (found.low, found.high) == (plain.low, plain.high)
    assert found.bootstrap.hierarchical


def test_cases_whose_answers_agree_have_the_interval_over_cases() -> None:
    items = [AnswerValue(str(i), float(i % 3 == 0)) for i in range(60) for _ in range(1 + i % 4)]
    plain = over_cases("m", items)
    found = over_cases("m", items, bootstrap=HIERARCHICAL)
    assert (found.low, found.high) == (plain.low, plain.high)


def test_kinds_are_drawn_from_by_themselves() -> None:
    """One kind always holds, the other never: however they are drawn, every case is 1/2."""
    items = [
        AnswerValue(str(i), float(k), str(k)) for i in range(20) for k in (0, 1) for _ in range(3)
    ]
    found = over_cases("m", items, bootstrap=HIERARCHICAL, share=False)
    assert found.low == found.high == 0.5
    share, alone = over_cases("m", items, bootstrap=HIERARCHICAL), over_cases("m", items)
    assert (share.low, share.high) == (alone.low, alone.high)


def test_order_changes_no_bit_of_hierarchical_intervals() -> None:
    items = [AnswerValue(str(i % 37), math.sin(i), str(i % 3)) for i in range(600)]
    first = over_cases("m", items, bootstrap=HIERARCHICAL)
    for seed in range(3):
        shuffled = random.Random(seed).sample(items, len(items))
        assert over_cases("m", shuffled, bootstrap=HIERARCHICAL) == first
    other = over_cases("m", items, bootstrap=HIERARCHICAL._replace(seed=1))
    assert (other.low, other.high) != (first.low, first.high)


def test_hierarchical_intervals_cover_the_truth_where_those_over_cases_do() -> None:
    """Prompts and cases are drawn anew each time; at 99 % the truth is missed now and then."""
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(60):
        levels = generator.normal(size=40)
        items = [
            AnswerValue(str(i), float(level + generator.normal()))
            for i, level in enumerate(levels)
            for _ in range(3)
        ]
        found = over_cases("m", items, bootstrap=Bootstrap(level=0.99, hierarchical=True))
        covered += found.low <= 0 <= found.high
    assert covered >= 57


def test_large_draws_are_those_of_small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Portions draw one after the other from the same stream, so all that changes is the draw."""
    items = split_cases(30, answers=4)
    whole = over_cases("m", items, bootstrap=HIERARCHICAL)
    monkeypatch.setattr(estimate_module, "_DRAWS_AT_ONCE", 30 * 7)
    portions = over_cases("m", items, bootstrap=HIERARCHICAL)
    assert width(portions) == pytest.approx(width(whole), rel=0.15)


def test_what_is_no_mean_of_answers_is_refused() -> None:
    several = [AnswerValue("1", 1.0), AnswerValue("2", 0.0)]
    with pytest.raises(NotResampled, match=r"^CG509 [\s\S]*m@x"):
        over_cases("m@x", several, bootstrap=HIERARCHICAL, answers=3)
    found = over_cases("m@x", several, bootstrap=HIERARCHICAL, answers=2, share=False)
    assert found.low == 0
    cases = {"a": (1.0, 4.0), "b": (3.0, 4.0)}
    with pytest.raises(NotResampled):
        statistic("m", cases, ratio_of_sums, items=8, bootstrap=HIERARCHICAL)
    each = statistic("m", cases, ratio_of_sums, items=2, bootstrap=HIERARCHICAL)
    assert each.low == statistic("m", cases, ratio_of_sums, items=2).low


def test_differences_are_of_cases_with_one_answer() -> None:
    first = over_cases("m", [AnswerValue("1", 1.0), AnswerValue("2", 0.5)], bootstrap=HIERARCHICAL)
    second = over_cases("m", [AnswerValue("1", 0.0), AnswerValue("2", 0.5)], bootstrap=HIERARCHICAL)
    assert difference("change", first, second).high == 1
    several = over_cases("m", split_cases(2), bootstrap=HIERARCHICAL)
    with pytest.raises(NotResampled):
        difference("change", several, several)
