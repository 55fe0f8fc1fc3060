"""All metrics by name, for reports: where better is, what range, what is read, how to compute it.

A name is `<what>@<protocol>`, with `:<measure>` where a protocol has several; metrics of
measurements have no protocol, since no answer is judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from corrigenda.cases import Protocol
from corrigenda.errors import NotResampled, UnknownMetric, did_you_mean
from corrigenda.metrics.estimate import BOOTSTRAP, Bootstrap, Estimate
from corrigenda.metrics.selection import at
from corrigenda.rows import Measurement, Row


class Better(StrEnum):
    """Which way a metric improves; reports show it as an arrow."""

    HIGHER = "higher"
    LOWER = "lower"
    AS_BEFORE = "as before"
    """Best where it equals the value of the unedited model."""


class Records(NamedTuple):
    """Everything recorded in one run.

    Attributes:
        rows: Answers.
        measurements: Other numbers.
    """

    rows: Sequence[Row]
    measurements: Sequence[Measurement] = ()


Compute = Callable[[Records, Bootstrap], Estimate]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric as reports list it.

    Attributes:
        name: Unique; ends in the protocol.
        group: Module that computes it.
        title: A few words.
        better: Which way it improves.
        low: Least possible value; None without bound.
        high: Greatest possible value; None without bound.
        protocol: How the answers were taken; None for measurements.
        reads: Role or family of the rows, or name of the measurements.
        scale: Factor that tables of the field print it with.
        legacy: Whether it is kept only to compare with published numbers.
        sequence: Whether it reads all moments of a sequence, not one.
        compute: The estimate from the records of one run.
    """

    name: str
    group: str
    title: str
    better: Better
    low: float | None
    high: float | None
    protocol: Protocol | None
    reads: str
    scale: float
    legacy: bool
    sequence: bool
    compute: Compute

    @property
    def arrow(self) -> str:
        """Sign of `better`, in ASCII: ^, v or =."""
        return {"higher": "^", "lower": "v", "as before": "="}[self.better]


def metrics() -> tuple[Metric, ...]:
    """All metrics, group by group."""
    from corrigenda.metrics import listing

    return listing.METRICS


def names() -> list[str]:
    """Names of all metrics."""
    return [one.name for one in metrics()]


def metric(name: str) -> Metric:
    """A metric by its name.

    Raises:
        UnknownMetric (CG505): no metric by that name, or not under that protocol.

    Example:
        >>> metric("score@rank").arrow
        '^'
    """
    from corrigenda.metrics import _task_listing

    found = {one.name: one for one in metrics()}
    if name not in found:
        if (of_task := _task_listing.named(name)) is not None:
            return of_task
        near = [one for one in found if one.partition("@")[0] == name.partition("@")[0]]
        hint = f"Did you mean {_quoted(near)}?" if near else did_you_mean(name, [*found])
        raise UnknownMetric(f'no metric is called "{name}".', hint=hint)
    return found[name]


def evaluate(
    records: Records, wanted: Iterable[str] | None = None, *, bootstrap: Bootstrap = BOOTSTRAP
) -> list[Estimate]:
    """Estimates of one run.

    Args:
        records: Of one run. Of a sequence, metrics of sequences read all moments, the others the
            last; cut the rows with `selection.at` for an earlier one.
        wanted: Names of metrics. None takes all but legacy ones, and of those the ones that find
            at least one case.
        bootstrap: How to find intervals. Where cases cannot be resampled so (CG509), a metric has a
            value and no interval.

    Raises:
        UnknownMetric (CG505): a name is unknown.
        MixedRows (CG506): rows of several runs, or two answers to one probe.
    """
    rows = records.rows
    last = Records(at(rows, max((row.edits for row in rows), default=0)), records.measurements)

    def computed(one: Metric) -> Estimate:
        own = records if one.sequence else last
        try:
            return one.compute(own, bootstrap)
        except NotResampled:
            plain = one.compute(own, bootstrap._replace(hierarchical=False))
            return replace(plain, low=math.nan, high=math.nan, bootstrap=bootstrap)

    if wanted is not None:
        return [computed(metric(name)) for name in wanted]
    from corrigenda.metrics import _task_listing

    asked = {(row.family, row.protocol) for row in records.rows}
    measured = {name for one in records.measurements for name in (one.name, one.family)}
    sequential = any(row.position for row in records.rows)
    found = [
        computed(one)
        for one in (*metrics(), *_task_listing.of_tasks(records))
        if not one.legacy
        and (sequential or not one.sequence)
        and (
            one.reads in measured
            if one.protocol is None
            else (one.reads.partition("/")[0], one.protocol) in asked
        )
    ]
    return [one for one in found if one.n]


def _quoted(found: Sequence[str]) -> str:
    return " or ".join(f'"{one}"' for one in found[:4])
