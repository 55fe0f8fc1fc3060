"""Tables of runs: estimates by metric and run, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from corrigenda.benchmarks.benchmark import BENCHMARKS
from corrigenda.metrics.collapse import ROLLBACK
from corrigenda.metrics.estimate import Bootstrap, Estimate
from corrigenda.metrics.metric import Metric, RunRecords
from corrigenda.metrics.registry import evaluate, metric
from corrigenda.run.store import Recorded

# Shown by other lines of the same table, or of interest only on request.
_LEFT_OUT = (
    "cost/",
    "cost_per_edit/",
    "errors_",
    "edit_wise",
    "locality_correct",
    "instance_wise",
    "graph_residual",
)
_SHOWN_ANYWAY = ("cost/edit_seconds",)


class Line(NamedTuple):
    """One metric of several runs.

    Attributes:
        metric: What is measured.
        estimates: One for each run; None where it has no case.
    """

    metric: Metric
    estimates: tuple[Estimate | None, ...]


def make_lines(
    runs: Sequence[Recorded], metrics: Sequence[str] = (), bootstrap: Bootstrap | None = None
) -> list[Line]:
    """Return the estimates of several runs, metric by metric.

    Args:
        runs: The runs.
        metrics: Names of metrics; without any, those of the first run's specification, else the
            default measure of all that the rows allow.
        bootstrap: How to find intervals; None as the first run's specification says.

    Raises:
        UnknownMetric (CG505): a name is not known.
    """
    if not runs:
        return []
    wanted = list(metrics) or list(runs[0].spec.metrics)
    bootstrap = bootstrap or runs[0].spec.intervals.bootstrap()
    headline = [] if wanted else _list_headline(runs)
    tables: list[dict[str, Estimate]] = []
    for run in runs:
        records = RunRecords(run.rows, run.measurements)
        found = evaluate(records, wanted or None, bootstrap=bootstrap)
        known = {one.metric for one in found}
        further = [name for name in headline if name not in known and _is_asked(name, run)]
        found += evaluate(records, further, bootstrap=bootstrap)
        tables.append({one.metric: one for one in found})
    names = wanted or _choose_names(headline, tables)
    return [
        Line(metric(name), tuple(_drop_empty(table.get(name)) for table in tables))
        for name in names
    ]


def count_problems(run: Recorded) -> Counter[str]:
    """Count answers that are missing, by reason, and edits that failed or were rolled back.

    Of an edit that failed the error is a reason of its own; cases whose edit was rolled back are
    asked all the same.
    """
    found = Counter(row.skipped for row in run.rows if row.skipped)
    found.update(one.skipped.splitlines()[0] for one in run.measurements if one.name == "error")
    rolled_back = sum(one.name == ROLLBACK and one.values[1] == 1 for one in run.measurements)
    return found + Counter({"edit rolled back, perplexity rose too far": rolled_back})


def list_exclusions(run: Recorded) -> list[tuple[str, str, int]]:
    """Return what the benchmarks of a run left out or flagged: benchmark, reason and number.

    Records are dropped, probes skipped; flagged cases, such as edits to what was true already, are
    part of the run.
    """
    words = {
        "dropped": "records dropped",
        "skipped": "probes left out",
        "flagged": "cases flagged",
        "unknown_fields": "records with the unknown field",
    }
    found: list[tuple[str, str, int]] = []
    for title, counts in run.manifest.counts.items():
        for key, what in words.items():
            reasons = counts.get(key) if isinstance(counts, dict) else None
            if isinstance(reasons, dict):
                found += [
                    (title, f"{what}: {reason}", count)
                    for reason, count in reasons.items()
                    if isinstance(count, int)
                ]
    return found


def _list_names(tables: Sequence[dict[str, Estimate]]) -> list[str]:
    from corrigenda.metrics.registry import names

    found = {name for table in tables for name in table}
    known = [name for name in names() if name in found]
    return [*known, *sorted(found.difference(known))]


def _list_headline(runs: Sequence[Recorded]) -> list[str]:
    """Return the metrics that the papers of the runs' benchmarks report, in their order."""
    known = BENCHMARKS.names()
    used = dict.fromkeys(one.name for run in runs for one in run.spec.benchmark)
    found = [name for one in used if one in known for name in BENCHMARKS.get(one).headline]
    return list(dict.fromkeys(found))


def _is_asked(name: str, run: Recorded) -> bool:
    """Return whether a run has answers, or measurements, that a metric reads."""
    wanted = metric(name)
    if wanted.protocol is None:
        return any(wanted.reads in (one.name, one.family) for one in run.measurements)
    family = wanted.reads.partition("/")[0]
    return any((row.family, row.protocol) == (family, wanted.protocol) for row in run.rows)


def _choose_names(headline: Sequence[str], tables: Sequence[dict[str, Estimate]]) -> list[str]:
    """Return the headline metrics that were found, then the other default measures, none twice."""
    names = _list_names(tables)
    first = [name for name in headline if any(_drop_empty(table.get(name)) for table in tables)]
    repeated = {metric(name).repeats for name in first}
    others = [name for name in names if is_shown(name) and name not in {*first, *repeated}]
    return first + others


def is_shown(name: str) -> bool:
    """Return whether tables that list no metrics show this one."""
    if name in _SHOWN_ANYWAY:
        return True
    if name.startswith("judge_agreement"):
        return True
    return (":" not in name or name.endswith(":judge")) and not name.startswith(_LEFT_OUT)


def _drop_empty(estimate: Estimate | None) -> Estimate | None:
    return estimate if estimate is not None and estimate.n else None
