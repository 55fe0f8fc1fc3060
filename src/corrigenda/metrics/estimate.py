"""Estimates with intervals: answers pooled to cases, and cases resampled.

Answers are pooled in levels, each an unweighted mean: tokens of an answer, answers of a kind, kinds
of a case, cases. Levels that are absent are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from corrigenda.errors import NotResampled
from corrigenda.metrics.intervals import Interval, expanded_tail, share_interval

Numbers = NDArray[np.float64]
Statistic = Callable[[Numbers], Numbers]
"""Maps values of shape `(resamples, cases, columns)` to one number per resample."""

_DRAWS_AT_ONCE = 4_000_000

_Columns = Sequence[Sequence[Sequence[Numbers]]]
"""Values of answers by column, case and kind."""


FEWEST = 10
"""Number of cases below which tables warn."""


class Bootstrap(NamedTuple):
    """Settings of an interval.

    Shares have an interval that is computed (see `intervals.share_interval`), other estimates
    percentiles over resamples of cases, which are widened for few cases.

    A hierarchical one draws cases, and then as many answers of each drawn case as it has of every
    kind: it speaks of other questions about the cases too. CounterFact+ takes `level=0.99`.

    Attributes:
        seed: Of the resampling; equal rows give equal intervals in any order.
        resamples: How many.
        level: Share of resamples inside the interval.
        hierarchical: Whether the answers of each drawn case are resampled too.
    """

    seed: int = 0
    resamples: int = 1000
    level: float = 0.95
    hierarchical: bool = False


BOOTSTRAP = Bootstrap()
"""The default: seed 0, 1000 resamples, 95 %."""


class AnswerValue(NamedTuple):
    """The value of one answer, or of one test.

    Attributes:
        case: Its case.
        value: The value.
        kind: Its kind within the case; kinds weigh the same, whatever their number of answers.
    """

    case: str
    value: float
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The value of a metric with its interval.

    Attributes:
        metric: Name, with the protocol.
        value: The estimate; NaN without cases.
        low: Lower end of the interval; NaN with fewer than two cases.
        high: Upper end of the interval.
        n: Number of cases.
        items: Number of answers (or of tests, where a metric counts tests).
        skipped: Number of answers left out, by reason.
        bootstrap: How the interval was found.
        by_case: The value of each case; empty where only all cases together have one.
    """

    metric: str
    value: float
    low: float
    high: float
    n: int
    items: int
    skipped: Mapping[str, int] = field(default_factory=dict[str, int])
    bootstrap: Bootstrap = BOOTSTRAP
    by_case: Mapping[str, float] = field(default_factory=dict[str, float], repr=False)

    @property
    def has_few_cases(self) -> bool:
        """Whether there are fewer cases than `FEWEST`, too few to tell methods apart."""
        return self.n < FEWEST


def mean(values: Iterable[float]) -> float:
    """Return the mean, rounded once, so that the order does not matter; NaN of nothing.

    Example:
        >>> mean([0.1, 0.2, 0.6])
        0.3
    """
    known = list(values)
    return math.fsum(known) / len(known) if known else math.nan


def pool(items: Iterable[AnswerValue]) -> dict[str, float]:
    """Return the mean over kinds of the mean over answers, for each case.

    Example:
        >>> values = [(1, "alias"), (0.5, "reason"), (1, "reason")]
        >>> pool(AnswerValue("A", value, kind) for value, kind in values)
        {'A': 0.875}
    """
    kinds: dict[str, dict[str, list[float]]] = {}
    for item in items:
        kinds.setdefault(item.case, {}).setdefault(item.kind, []).append(item.value)
    return {case: mean(map(mean, own.values())) for case, own in kinds.items()}


def over_cases(
    metric: str,
    items: Iterable[AnswerValue],
    *,
    skipped: Mapping[str, int] | None = None,
    bootstrap: Bootstrap = BOOTSTRAP,
    answers: int | None = None,
    share: bool = True,
) -> Estimate:
    """Return the mean over cases of the pooled answers.

    Args:
        metric: Name of the estimate.
        items: Values of answers.
        skipped: Number of answers left out, by reason.
        bootstrap: How to find the interval.
        answers: Number of answers the values come from, where one value may come from several.
        share: Whether the values are shares in [0, 1], which have an interval of their own.

    Raises:
        NotResampled (CG509): a hierarchical interval of values that come from several answers.
    """
    known = list(items)
    by_case = pool(known)
    if bootstrap.hierarchical and answers is not None and answers > len(known):
        raise _refuse_resampling(metric)
    return statistic(
        metric,
        {case: (value,) for case, value in by_case.items()},
        items=len(known),
        skipped=skipped,
        bootstrap=bootstrap,
        by_case=by_case,
        columns=[known],
        share=share,
    )


def column_means(values: Numbers) -> Numbers:
    """Return means over cases, by column; a case without a value in a column is left out of it."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def first_mean(values: Numbers) -> Numbers:
    """Return the mean of the first column."""
    return column_means(values)[:, 0]


def ratio_of_sums(values: Numbers) -> Numbers:
    """Return the sum of the first column over that of the second."""
    totals = values.sum(axis=1)
    empty = np.full(len(totals), np.nan)
    return np.divide(totals[:, 0], totals[:, 1], out=empty, where=totals[:, 1] != 0)


def statistic(
    metric: str,
    cases: Mapping[str, Sequence[float]],
    of: Statistic = first_mean,
    *,
    items: int,
    skipped: Mapping[str, int] | None = None,
    bootstrap: Bootstrap = BOOTSTRAP,
    by_case: Mapping[str, float] | None = None,
    columns: Sequence[Sequence[AnswerValue]] | None = None,
    share: bool = False,
) -> Estimate:
    """Return a statistic of numbers per case, with a percentile interval over resampled cases.

    Args:
        metric: Name of the estimate.
        cases: The numbers of each case, equally many; NaN where a case has none.
        of: The statistic.
        items: Number of answers the cases come from.
        skipped: Number of answers left out, by reason.
        bootstrap: How to find the interval.
        by_case: Values of single cases.
        columns: The items each number of a case is pooled from, column by column; None where a case
            is one answer, or its numbers are pooled in another way.

        share: Whether the statistic is the mean of shares in [0, 1], or a ratio of sums of counts:
            then its interval is that of `share_interval`, which holds for few cases too.

    Raises:
        NotResampled (CG509): a hierarchical interval without `columns`, of more items than cases.

    Example:
        >>> statistic("share", {"a": (1.0,), "b": (0.0,)}, items=2).value
        0.5
    """
    names = sorted(cases)
    values = np.array([list(cases[name]) for name in names], dtype=np.float64)
    low = high = value = math.nan
    answers: _Columns = ()
    if bootstrap.hierarchical:
        if columns is None and items > len(names):
            raise _refuse_resampling(metric)
        answers = [_group_by_kind(own, names) for own in columns or ()]
    if names:
        value = float(of(values[None])[0])
    if len(names) > 1:
        if share and _are_shares(values):
            low, high = _interval_of_share(values, bootstrap, answers)
        else:
            low, high = _interval(values, of, bootstrap, answers)
    return Estimate(
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=len(names),
        items=items,
        skipped=dict(sorted((skipped or {}).items())),
        bootstrap=bootstrap,
        by_case={name: by_case[name] for name in sorted(by_case)} if by_case else {},
    )


def _are_shares(values: Numbers) -> bool:
    """Whether all cases have a value in [0, 1], or counts of which the first is not the larger."""
    possible = values[:, 1] if values.shape[1] > 1 else np.ones(len(values))
    counted = values[:, 0]
    return bool(np.all((counted >= 0) & (counted <= possible)) and possible.sum() > 0)


def _interval_of_share(values: Numbers, bootstrap: Bootstrap, answers: _Columns) -> Interval:
    possible = values[:, 1].tolist() if values.shape[1] > 1 else [1.0] * len(values)
    within = 0.0
    if answers:
        # Of each case, the variance of the mean over its kinds that a draw of answers has.
        variances = [
            sum(float(kind.var()) / len(kind) for kind in kinds) / len(kinds) ** 2
            for kinds in answers[0]
        ]
        within = math.fsum(variances) / len(values) ** 2
    return share_interval(values[:, 0].tolist(), possible, level=bootstrap.level, within=within)


def _interval(
    values: Numbers, of: Statistic, bootstrap: Bootstrap, answers: _Columns
) -> tuple[float, float]:
    generator = np.random.default_rng(bootstrap.seed)
    # Of its own, so that the same cases are drawn as without answers.
    within = np.random.default_rng([bootstrap.seed, 1])
    count = len(values)
    at_once = max(1, _DRAWS_AT_ONCE // values.size)
    drawn: list[Numbers] = []
    for begin in range(0, bootstrap.resamples, at_once):
        size = min(at_once, bootstrap.resamples - begin)
        cases = generator.integers(count, size=(size, count))
        drawn.append(of(_pool_drawn_answers(values[cases], cases, answers, within)))
    found = np.concatenate(drawn)
    found = found[~np.isnan(found)]
    if not len(found):
        return math.nan, math.nan
    tail = expanded_tail(bootstrap.level, count)
    # Without interpolation, which is undefined where both neighbours are infinite.
    low, high = np.quantile(found, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def _pool_drawn_answers(
    values: Numbers, cases: NDArray[np.int64], answers: _Columns, generator: np.random.Generator
) -> Numbers:
    """Pool each drawn case from a draw of its answers; in place.

    Args:
        values: Of shape `(resamples, cases, columns)`.
        cases: Numbers of the drawn cases, of shape `(resamples, cases)`.
        answers: Values of answers; without any, `values` are those of the cases as they are.
        generator: Draws answers.
    """
    if not answers:
        return values
    places = np.argsort(cases, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(cases.ravel(), minlength=len(answers[0])))
    flat = values.reshape(-1, values.shape[-1])
    for case, own in enumerate(np.split(places, ends[:-1])):
        for column, of_cases in enumerate(answers):
            kinds = of_cases[case]
            if any(len(kind) > 1 for kind in kinds):
                means = [
                    kind[generator.integers(len(kind), size=(len(own), len(kind)))].mean(axis=1)
                    for kind in kinds
                ]
                flat[own, column] = np.mean(means, axis=0)
    return values


def _group_by_kind(items: Sequence[AnswerValue], names: Sequence[str]) -> list[list[Numbers]]:
    """Return values of answers by case and kind, in an order that does not depend on theirs."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for item in items:
        if item.case in found:
            found[item.case].setdefault(item.kind, []).append(item.value)
    return [
        [np.array(sorted(values)) for _, values in sorted(found[name].items())] for name in names
    ]


def _refuse_resampling(metric: str) -> NotResampled:
    return NotResampled(
        "the value of a case is no mean of its answers here, so they cannot be resampled.",
        where=metric,
        hint="Take an interval over cases alone: Bootstrap(hierarchical=False).",
    )


def count_cases(estimates: Iterable[Estimate | None]) -> str:
    """Return the number of cases, the least and the most where they differ; few are marked.

    Example:
        >>> count_cases([statistic("m", {"a": (1.0,)}, items=1), None])
        '1 (< 10)'
    """
    found = sorted({one.n for one in estimates if one is not None})
    if not found:
        return "0"
    number = "-".join(str(one) for one in dict.fromkeys((found[0], found[-1])))
    return f"{number} (< {FEWEST})" if found[0] < FEWEST else number


def difference(metric: str, first: Estimate, second: Estimate) -> Estimate:
    """Return the paired mean of `first - second` over common cases; others count as skipped.

    Raises:
        NotResampled (CG509): a hierarchical interval, where a case has several answers.

    Example:
        >>> cases = {"a": (1.0,), "b": (0.5,)}
        >>> after = statistic("x", cases, items=2, by_case={"a": 1.0, "b": 0.5})
        >>> before = statistic("x", cases, items=2, by_case={"a": 0.0, "b": 0.5})
        >>> difference("change", after, before).value
        0.5
    """
    common = sorted(set(first.by_case) & set(second.by_case))
    alone = len(set(first.by_case) ^ set(second.by_case))
    by_case = {case: first.by_case[case] - second.by_case[case] for case in common}
    several = first.items > first.n or second.items > second.n
    if first.bootstrap.hierarchical and several:
        raise _refuse_resampling(metric)
    return statistic(
        metric,
        {case: (value,) for case, value in by_case.items()},
        items=min(first.items, second.items),
        skipped={"case without its counterpart": alone} if alone else {},
        bootstrap=first.bootstrap,
        by_case=by_case,
        columns=[[AnswerValue(*one) for one in by_case.items()]],
    )
