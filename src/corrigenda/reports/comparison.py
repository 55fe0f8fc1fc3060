"""Paired comparison of two runs on the same cases, metric by metric, with a significance test."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from corrigenda.errors import MissingData
from corrigenda.metrics.estimate import Estimate, difference
from corrigenda.metrics.metric import Metric
from corrigenda.reports import numbers
from corrigenda.reports.plain import convert_estimate, convert_run
from corrigenda.run import store, summary
from corrigenda.run.store import Recorded
from corrigenda.tables import align_table, write_html_table

FLIPS = 10_000
_MOST_NUMBERS = 2_000_000


class MetricComparison(NamedTuple):
    """Metric of two runs, with their paired difference.

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


@dataclass(frozen=True, repr=False)
class Comparison:
    """Paired comparison of two runs, metric by metric; printed as a table.

    Attributes:
        first: A run.
        second: The run it is compared with.
        lines: Metric by metric.
    """

    first: Recorded
    second: Recorded
    lines: tuple[MetricComparison, ...]

    def __iter__(self) -> Iterator[MetricComparison]:
        """Iterate over the lines."""
        return iter(self.lines)

    def __len__(self) -> int:
        """Return the number of metrics."""
        return len(self.lines)

    @property
    def legend(self) -> str:
        """Return what the columns of the table mean."""
        level = 100 * self.first.spec.intervals.level
        return (
            f"Differences are paired over common cases, with {level:.6g} % intervals; p is that of "
            "the paired randomisation test, two-sided, one metric at a time."
        )

    def table(self) -> list[tuple[str, ...]]:
        """Return the table as text: a row of heads, then one row for each metric."""
        titles = (self.first.spec.editor.title, self.second.spec.editor.title)
        return [
            ("metric", "", *titles, "difference", "p", "n"),
            *(
                (
                    line.metric.name,
                    line.metric.arrow,
                    numbers.format_value(line.first, line.metric.scale),
                    numbers.format_value(line.second, line.metric.scale),
                    numbers.format_cell(line.difference, line.metric.scale),
                    "-" if line.p_value is None else f"{line.p_value:.3g}",
                    numbers.format_num_cases([line.difference]),
                )
                for line in self.lines
            ),
        ]

    def __repr__(self) -> str:
        """Return the table with its legend."""
        return f"{align_table(self.table())}\n{self.legend}"

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        return f"{write_html_table(self.table())}<p>{html.escape(self.legend)}</p>"

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists, as `corrigenda compare --json` prints them."""
        return {
            "first": convert_run(self.first),
            "second": convert_run(self.second),
            "metrics": [
                {
                    "metric": line.metric.name,
                    "first": convert_estimate(line.first),
                    "second": convert_estimate(line.second),
                    "difference": convert_estimate(line.difference),
                    "p_value": line.p_value,
                }
                for line in self.lines
            ],
        }


def compare(
    first: Recorded | str | Path,
    second: Recorded | str | Path,
    metrics: str | Sequence[str] = (),
    *,
    folder: str | Path = store.FOLDER,
) -> Comparison:
    """Compare two runs case by case: the paired difference of every metric, with its p-value.

    Differences are paired over cases, so intervals are over cases alone, at the first run's level.

    Args:
        first: A run: as recorded, its folder, its id or the beginning of one.
        second: A run on the same cases, at least in part.
        metrics: Names of metrics; those of the first run, or their default measures, if empty.
        folder: Where runs are stored.

    Raises:
        MissingData (CG604): no such run, or the runs have no case in common.
        UnknownMetric (CG505): a name is not known.
    """
    first, second = (
        run if isinstance(run, Recorded) else store.load(run, folder) for run in (first, second)
    )
    metrics = (metrics,) if isinstance(metrics, str) else metrics
    ours, theirs = ({row.case for row in run.rows} for run in (first, second))
    if not ours & theirs:
        raise MissingData(
            f"the runs {first.manifest.run} and {second.manifest.run} have no case in common.",
            hint="Compare runs of the same benchmark.",
        )
    found: list[MetricComparison] = []
    bootstrap = first.spec.intervals.bootstrap()._replace(hierarchical=False)
    for line in summary.make_lines([first, second], metrics, bootstrap):
        one, other = line.estimates
        paired = p_value = None
        if one is not None and other is not None and set(one.by_case) & set(other.by_case):
            paired = difference(line.metric.name, one, other)
            p_value = randomisation_test(
                [one.by_case[case] - other.by_case[case] for case in paired.by_case]
            )
        found.append(MetricComparison(line.metric, one, other, paired, p_value))
    return Comparison(first, second, tuple(found))


def randomisation_test(differences: Sequence[float], *, flips: int = FLIPS, seed: int = 0) -> float:
    """Return the two-sided p-value of paired differences under random signs.

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
    for begin in range(0, flips, size := max(1, _MOST_NUMBERS // len(values))):
        count = min(size, flips - begin)
        signs = generator.integers(0, 2, (count, len(values)), dtype=np.int8) * 2 - 1
        as_large += int((np.abs(signs @ values) >= observed).sum())
    return as_large / (flips + 1)
