"""Two runs on the same cases: the paired difference of every metric, and whether it is chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from corrigenda.errors import MissingData
from corrigenda.metrics.estimate import Estimate, difference
from corrigenda.metrics.registry import Metric
from corrigenda.run import summary
from corrigenda.run.store import Recorded

FLIPS = 10_000
_AT_ONCE = 2_000_000


class Compared(NamedTuple):
    """A metric of two runs.

    Attributes:
        metric: What is measured.
        first: Of the first run; None where it has none.
        second: Of the second run.
        difference: Mean over common cases of first minus second, with its interval; None for
            metrics that have no value of single cases.
        p_value: Of the paired randomisation test, two-sided; None without a difference.
    """

    metric: Metric
    first: Estimate | None
    second: Estimate | None
    difference: Estimate | None
    p_value: float | None


def compare(first: Recorded, second: Recorded, metrics: Sequence[str] = ()) -> list[Compared]:
    """Compare two runs, case by case.

    Differences are paired over cases, so intervals are over cases alone, at the first run's level.

    Args:
        first: A run.
        second: A run on the same cases, at least in part.
        metrics: Names of metrics; those of the first run, or their default measures, if empty.

    Raises:
        MissingData (CG604): the runs have no case in common.
        UnknownMetric (CG505): a name is not known.
    """
    ours, theirs = ({row.case for row in run.rows} for run in (first, second))
    if not ours & theirs:
        raise MissingData(
            f"the runs {first.manifest.run} and {second.manifest.run} have no case in common.",
            hint="Compare runs of the same benchmark.",
        )
    found: list[Compared] = []
    bootstrap = first.spec.intervals.bootstrap()._replace(hierarchical=False)
    for line in summary.make_lines([first, second], metrics, bootstrap):
        one, other = line.estimates
        paired = p_value = None
        if one is not None and other is not None and set(one.by_case) & set(other.by_case):
            paired = difference(line.metric.name, one, other)
            p_value = randomisation_test(
                [one.by_case[case] - other.by_case[case] for case in paired.by_case]
            )
        found.append(Compared(line.metric, one, other, paired, p_value))
    return found


def randomisation_test(differences: Sequence[float], *, flips: int = FLIPS, seed: int = 0) -> float:
    """Two-sided p of paired differences under random signs.

    All sign patterns are tried where there are no more than `flips`, else as many at random, the
    one observed among them.

    Example:
        >>> randomisation_test([1.0, 1.0, 1.0, 1.0])
        0.125
        >>> randomisation_test([0.0, 0.0])
        1.0
    """
    values = np.array([one for one in differences if one and not math.isnan(one)])
    if not len(values):
        return 1.0
    # Rounding must not tell equal sums apart.
    observed = abs(values.sum()) * (1 - 1e-12)
    if 2 ** len(values) <= flips:
        signs = 1 - 2 * ((np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1)
        return float((np.abs(signs @ values) >= observed).mean())
    generator = np.random.default_rng(seed)
    as_large = 1
    for begin in range(0, flips, size := max(1, _AT_ONCE // len(values))):
        count = min(size, flips - begin)
        signs = generator.integers(0, 2, (count, len(values)), dtype=np.int8) * 2 - 1
        as_large += int((np.abs(signs @ values) >= observed).sum())
    return as_large / (flips + 1)
