"""Confidence intervals of shares that keep their level for few cases, and for clustered answers.

The interval of Clopper and Pearson for an effective number of independent answers (Korn and
Graubard 1998). Answers of one case are a cluster: the more alike they are, the fewer answers they
are worth, down to one for each case.
"""

# Letters: a, b parameters of a beta distribution - x point in [0, 1]

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

_ADDED_CASES = 1.0
_STEPS = 200
_TINY = 1e-300
_PRECISION = 1e-14
_HALVINGS = 60


class Interval(NamedTuple):
    """Lower and upper end."""

    low: float
    high: float


def share_interval(
    counted: Sequence[float], possible: Sequence[float], *, level: float, within: float = 0.0
) -> Interval:
    """Return the interval of a share that is a ratio of sums over cases.

    With p the share, n the number of cases and v its estimated variance over cases, the answers are
    worth p (1 - p) / v independent ones, and less by Student's distribution for few cases; never
    less than the cases themselves. Variances of few cases, most of them alike, are too small: half
    a case of share 0 and half a case of share 1 are added to them. In simulations the level is kept
    from 5 cases on, whatever the share and the correlation of answers.

    Args:
        counted: What each case adds to the numerator: for a mean over cases, its value in [0, 1].
        possible: What each case adds to the denominator: for a mean over cases, 1.
        level: Probability with which the interval covers the share.
        within: Variance of the share that drawing other answers to the same cases would add.

    Example:
        >>> low, high = share_interval([1.0] * 6, [1.0] * 6, level=0.95)
        >>> round(low, 3), high
        (0.541, 1.0)

    Reference: Korn and Graubard 1998, "Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data"; the floor and the added case are ours.
    """
    total = math.fsum(possible)
    share = math.fsum(counted) / total
    num_cases = len(counted)
    squares = math.fsum(
        (value - share * size) ** 2 for value, size in zip(counted, possible, strict=True)
    )
    added = _ADDED_CASES / 2 * ((1 - share) ** 2 + share**2) * (total / num_cases) ** 2
    variance = num_cases / (num_cases - 1) * (squares + added) / total**2 + within
    ratio = NormalDist().inv_cdf((1 + level) / 2) / student_quantile(level, num_cases - 1)
    # Cases of unequal size are worth fewer cases of one size.
    least = total**2 / math.fsum(one**2 for one in possible)
    number = max(share * (1 - share) / variance * ratio**2, least)
    return exact_interval(share * number, number, level)


@lru_cache(maxsize=1 << 14)
def exact_interval(successes: float, number: float, level: float) -> Interval:
    """Return the interval of Clopper and Pearson; numbers need not be whole.

    Example:
        >>> [round(one, 4) for one in exact_interval(9, 10, 0.95)]
        [0.555, 0.9975]
    """
    tail = (1 - level) / 2
    failures = max(0.0, number - successes)
    low = beta_quantile(tail, successes, failures + 1) if successes > 0 else 0.0
    high = beta_quantile(1 - tail, successes + 1, failures) if failures > 0 else 1.0
    return Interval(low, high)


def expanded_tail(level: float, num_cases: int) -> float:
    """Return the tail of a percentile interval so that for a mean it has the width of Student's.

    Percentiles of resampled means are too narrow for few cases: they use the normal distribution,
    and the variance that divides by n.

    Reference: Hesterberg 2015, "What teachers should know about the bootstrap", section 5.3.
    """
    if num_cases < 2:
        return (1 - level) / 2
    width = student_quantile(level, num_cases - 1) * math.sqrt(num_cases / (num_cases - 1))
    return NormalDist().cdf(-width)


@lru_cache(maxsize=1 << 12)
def student_quantile(level: float, freedom: float) -> float:
    """Return t such that Student's distribution is in [-t, t] with a probability.

    Example:
        >>> round(student_quantile(0.95, 5), 4)
        2.5706
    """
    x = beta_quantile(1 - level, freedom / 2, 0.5)
    return math.sqrt(freedom * (1 - x) / x)


def beta_quantile(probability: float, a: float, b: float) -> float:
    """Return the quantile of a beta distribution."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if beta_distribution(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def beta_distribution(x: float, a: float, b: float) -> float:
    """Return the distribution function of a beta distribution (regularised incomplete beta).

    Example:
        >>> round(beta_distribution(0.5, 2, 3), 6)
        0.6875
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_distribution(1 - x, b, a)
    front = math.exp(
        a * math.log(x) + b * math.log1p(-x) - math.lgamma(a) - math.lgamma(b) + math.lgamma(a + b)
    )
    return front * _continued_fraction(x, a, b) / a


def _continued_fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    numerator, denominator = 1.0, 1 - (a + b) * x / (a + 1)
    denominator = 1 / (denominator or _TINY)
    value = denominator
    for m in range(1, _STEPS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            denominator = 1 / ((1 + term * denominator) or _TINY)
            numerator = (1 + term / numerator) or _TINY
            change = numerator * denominator
            value *= change
        if abs(change - 1) < _PRECISION:
            break
    return value
