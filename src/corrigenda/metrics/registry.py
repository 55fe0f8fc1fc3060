"""All metrics by name: collected from the subject files, looked up and evaluated.

A name is `<what>@<protocol>`, with `:<measure>` where a protocol has several; metrics of
measurements have no protocol, since no answer is judged. Each subject file ends in its `METRICS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from corrigenda.errors import NotResampled, UnknownMetric, did_you_mean
from corrigenda.metrics import (
    appending,
    categories,
    collapse,
    conflict,
    consistency,
    cost,
    counterfact,
    erasure,
    error_types,
    fluency,
    hallucinations,
    locality,
    locating,
    long_targets,
    natural,
    projection,
    ripple,
    robustness,
    round_trip,
    sentiment,
    sequences,
    success,
    survival,
)
from corrigenda.metrics.estimate import BOOTSTRAP, Bootstrap, Estimate
from corrigenda.metrics.metric import Metric, RunRecords
from corrigenda.metrics.selection import at
from corrigenda.metrics.tasks import answers, choices, measured

METRICS: tuple[Metric, ...] = (
    *success.METRICS,
    *natural.METRICS,
    *locality.METRICS,
    *counterfact.METRICS,
    *categories.METRICS,
    *appending.METRICS,
    *hallucinations.METRICS,
    *long_targets.METRICS,
    *ripple.METRICS,
    *fluency.METRICS,
    *consistency.METRICS,
    *sentiment.METRICS,
    *erasure.METRICS,
    *conflict.METRICS,
    *round_trip.METRICS,
    *sequences.METRICS,
    *collapse.METRICS,
    *robustness.METRICS,
    *error_types.METRICS,
    *cost.METRICS,
    *locating.METRICS,
    *round_trip.RESIDUALS,
    *projection.METRICS,
    *choices.METRICS,
    *answers.METRICS,
    *measured.METRICS,
)
"""All metrics, subject by subject, in the order of tables."""


def names() -> list[str]:
    """Return the names of all metrics, in the order of tables."""
    return [one.name for one in METRICS]


def metric(name: str) -> Metric:
    """Return a metric by its name; also of one task or treatment, as `task_accuracy/rte@rank`.

    Raises:
        UnknownMetric (CG505): no metric by that name, or not under that protocol.

    Example:
        >>> metric("score@rank").arrow
        '^'
    """
    found = {one.name: one for one in METRICS}
    if name not in found:
        of_task = {one.name: one for one in _metrics_of_task(_task_in(name))}
        if name in of_task:
            return of_task[name]
        near = [one for one in found if one.partition("@")[0] == name.partition("@")[0]]
        hint = f"Did you mean {_quote(near)}?" if near else did_you_mean(name, [*found])
        raise UnknownMetric(f'no metric is called "{name}".', hint=hint)
    return found[name]


def evaluate(
    records: RunRecords, wanted: Iterable[str] | None = None, *, bootstrap: Bootstrap = BOOTSTRAP
) -> list[Estimate]:
    """Return estimates of one run.

    Args:
        records: Of one run. Of a sequence, metrics of sequences read all moments, the others the
            last; cut the rows with `selection.at` for an earlier one.
        wanted: Names of metrics. None takes the ones that find at least one case, without legacy
            ones and those that repeat another.
        bootstrap: How to find intervals. Where cases cannot be resampled so (CG509), a metric has a
            value and no interval.

    Raises:
        UnknownMetric (CG505): a name is unknown.
        MixedRows (CG506): rows of several runs, or two answers to one probe.
    """
    rows = records.rows
    last = RunRecords(at(rows, max((row.edits for row in rows), default=0)), records.measurements)

    def estimate(one: Metric) -> Estimate:
        own = records if one.sequence else last
        try:
            return one.compute(own, bootstrap)
        except NotResampled:
            plain = one.compute(own, bootstrap._replace(hierarchical=False))
            return replace(plain, low=math.nan, high=math.nan, bootstrap=bootstrap)

    if wanted is not None:
        return [estimate(metric(name)) for name in wanted]
    asked = {(row.family, row.protocol) for row in records.rows}
    read = {name for one in records.measurements for name in (one.name, one.family)}
    sequential = any(row.position for row in records.rows)
    found = [
        estimate(one)
        for one in (*METRICS, *_task_metrics(records))
        if not one.legacy
        and not one.repeats
        and (sequential or not one.sequence)
        and (
            one.reads in read
            if one.protocol is None
            else (one.reads.partition("/")[0], one.protocol) in asked
        )
    ]
    return [one for one in found if one.n]


def _task_metrics(records: RunRecords) -> list[Metric]:
    """Return the metrics of each task that was asked or measured."""
    found = [
        one
        for task in choices.names_of_tasks(records.rows)
        for one in (*choices.metrics_of(task), *answers.metrics_of(task))
    ]
    for task in measured.names_of_tasks(records.measurements):
        found += measured.metrics_of(task)
    for treatment in survival.names_of_treatments(records.measurements):
        found += survival.metrics_of(treatment)
    return found


def _metrics_of_task(task: str) -> list[Metric]:
    if not task:
        return []
    return [
        *choices.metrics_of(task),
        *answers.metrics_of(task),
        *measured.metrics_of(task),
        *survival.metrics_of(task.partition("/")[0]),
    ]


def _task_in(name: str) -> str:
    """Return the task in the name of a metric of one task; empty in other names."""
    return name.partition("/")[2].partition("@")[0]


def _quote(found: Sequence[str]) -> str:
    return " or ".join(f'"{one}"' for one in found[:4])
