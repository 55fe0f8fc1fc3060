"""Gathers what a report shows from recorded runs, as the plain values of `sections`."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from corrigenda.cases import Protocol
from corrigenda.errors import MissingData
from corrigenda.metrics import error_types, sequences
from corrigenda.metrics.estimate import Bootstrap, Estimate
from corrigenda.metrics.metric import Better, Metric, RunRecords
from corrigenda.metrics.registry import evaluate
from corrigenda.metrics.selection import as_before, at, with_tag
from corrigenda.reports import forcing, numbers
from corrigenda.reports.citations import collect_citations
from corrigenda.reports.sections import (
    Chart,
    Curve,
    ErrorShares,
    Group,
    Matrix,
    Report,
    TableLine,
    TableSection,
    TradeOff,
    TradeOffPoint,
)
from corrigenda.reports.side_by_side import compare_answers
from corrigenda.rows import Row, Stage
from corrigenda.run import summary
from corrigenda.run.spec import DataSpec, Intervals
from corrigenda.run.store import Recorded

# What a trade-off shows: how far an edit carries, or else whether it takes, against what it leaves
# alone.
_GAINED = ("generalization", "reliability")
_KEPT = "locality"


def build_report(
    runs: Sequence[Recorded],
    *,
    title: str = "",
    metrics: Sequence[str] = (),
    case: str | None = None,
    intervals: Intervals | None = None,
) -> Report:
    """Gather what a report shows.

    Args:
        runs: What was recorded; runs on other cases, models or regimes form groups of their own.
        title: The heading; made from the groups if empty.
        metrics: Names of metrics; what the runs ask for, or their default measures, if empty.
        case: Case whose generations are shown; the first that has any if None.
        intervals: How sure the numbers are; as the first run's specification says if None.

    Raises:
        MissingData (CG604): no run, or no answer to the case asked for.
        UnknownMetric (CG505): a name is not known.
    """
    if not runs:
        raise MissingData("a report needs at least one run.", hint="Name runs by folder or id.")
    intervals = intervals or runs[0].spec.intervals
    together: dict[tuple[str, ...], list[Recorded]] = defaultdict(list)
    for run in runs:
        spec = run.spec.model_copy(update={"intervals": intervals})
        together[_describe_setting(run)].append(run._replace(spec=spec))
    groups = tuple(_build_group(setting, own, metrics, case) for setting, own in together.items())
    if case is not None and all(group.side_by_side is None for group in groups):
        raise MissingData(f'no run has an answer to a case "{case}".', hint="Leave out --case.")
    return Report(title or groups[0].title, groups, collect_citations(runs), intervals.bootstrap())


def describe_regime(run: Recorded) -> str:
    """Describe the regime of a run in a few words."""
    regime = run.spec.regime
    match regime.kind:
        case "single":
            return "single edits"
        case "batch":
            return f"batches of {regime.size}"
        case _:
            steps = f" in steps of {regime.size}" if regime.size > 1 else ""
            length = f" of {regime.length}" if regime.length else ""
            name = "continual mix" if regime.kind == "mix" else "sequence"
            return f"{name}{length}{steps}"


def _describe_setting(run: Recorded) -> tuple[str, ...]:
    data = " + ".join(_name_data(one) for one in run.spec.benchmark)
    trained = run.spec.train
    across = f" (trained on {trained.name})" if trained else ""
    return data + across, describe_regime(run), run.manifest.model, run.manifest.model_digest


def _name_data(one: DataSpec) -> str:
    return f"{one.name} {one.options['part']}" if "part" in one.options else one.name


def _build_group(
    setting: tuple[str, ...], runs: Sequence[Recorded], metrics: Sequence[str], case: str | None
) -> Group:
    labels = _label_runs(runs)
    lines = tuple(build_lines(runs, metrics))
    in_sequence = any(run.spec.regime.in_sequence for run in runs)
    problems = tuple(
        (label, reason, count)
        for label, run in zip(labels, runs, strict=True)
        for reason, count in sorted(summary.count_problems(run).items())
    )
    return Group(
        title=", ".join(setting[:3]),
        runs=tuple(runs),
        labels=labels,
        lines=lines,
        parts=(
            *_compare_protocols(runs),
            *_split_by_benchmark(runs, lines),
            *_split_by_kind(runs, lines),
        ),
        charts=tuple(_build_charts(runs, labels, lines)) if in_sequence else (),
        trade_off=_build_trade_off(labels, lines),
        errors=tuple(_count_errors(runs, labels)),
        matrices=tuple(_build_matrices(runs, labels)) if in_sequence else (),
        side_by_side=compare_answers(runs, case),
        problems=problems,
        exclusions=tuple(
            dict.fromkeys(one for run in runs for one in summary.list_exclusions(run))
        ),
    )


def _label_runs(runs: Sequence[Recorded]) -> tuple[str, ...]:
    """Return the titles of the runs, with their ids where several share one."""
    titles = [run.spec.editor.title for run in runs]
    return tuple(
        title if titles.count(title) == 1 else f"{title} ({run.manifest.run[:6]})"
        for title, run in zip(titles, runs, strict=True)
    )


def build_lines(
    runs: Sequence[Recorded], metrics: Sequence[str] = (), bootstrap: Bootstrap | None = None
) -> Iterable[TableLine]:
    """Build the lines of a table: metric by metric the unedited model, each run, and the best.

    Args:
        runs: Runs; the unedited model is asked what the first one asks.
        metrics: Names of metrics; what the runs ask for, or their default measures, if empty.
        bootstrap: How to find intervals; as the first run's specification says if None.
    """
    bootstrap = bootstrap or runs[0].spec.intervals.bootstrap()
    found = summary.make_lines(runs, metrics, bootstrap)
    plain = [one.metric.name for one in found if not is_comparison(one.metric)]
    last = runs[0].rows
    last = at(last, max((row.edits for row in last), default=0))
    # Judged as answers of an edit that changed nothing.
    unedited = [dataclasses.replace(row, stage=Stage.AFTER) for row in as_before(last)]
    known = evaluate(RunRecords(unedited), plain, bootstrap=bootstrap)
    before = {one.metric: one for one in known if one.n}
    for one in found:
        own = before.get(one.metric.name)
        yield TableLine(
            one.metric, own, one.estimates, numbers.find_best(one.metric, one.estimates, own)
        )


def _compare_protocols(runs: Sequence[Recorded]) -> Iterable[TableSection]:
    """Make one table for each role that was asked with the answer fed and without."""
    for role in forcing.ROLES:
        measures = forcing.list_measures(runs[0].rows, role)
        found = {
            measure: line
            for measure in measures
            for line in build_lines(runs, [f"{role}@{measure}"])
            if any(line.estimates)
        }
        if found:
            names = tuple(forcing.LINES[measure] for measure in found)
            title = f"How much of {role} is teacher forcing"
            yield TableSection(title, (*found.values(),), names)


def _split_by_benchmark(
    runs: Sequence[Recorded], lines: Sequence[TableLine]
) -> Iterable[TableSection]:
    """Make one table for each benchmark, where a run has several."""
    tags = dict.fromkeys(
        tag for row in runs[0].rows for tag in row.tags if tag.startswith("benchmark=")
    )
    for tag in tags:
        own = [run._replace(rows=with_tag(run.rows, tag), measurements=[]) for run in runs]
        found = [
            line
            for line in build_lines(own, [line.metric.name for line in lines])
            if any(line.estimates)
        ]
        if found:
            names = tuple(line.metric.name for line in found)
            yield TableSection(tag.removeprefix("benchmark="), tuple(found), names)


def _split_by_kind(runs: Sequence[Recorded], lines: Sequence[TableLine]) -> Iterable[TableSection]:
    """Make one table for each metric that reads several kinds of one family of roles."""
    for line in lines:
        if line.metric.protocol is None or line.metric.sequence or "/" in line.metric.reads:
            continue
        roles = sorted({row.role for row in runs[0].rows if row.family == line.metric.reads})
        found: dict[str, TableLine] = {}
        for role in roles:
            own = [
                run._replace(
                    rows=[row for row in run.rows if row.role in (role, "condition")],
                    measurements=[],
                )
                for run in runs
            ]
            kind = next(iter(build_lines(own, [line.metric.name])))
            if any(kind.estimates):
                found[role] = kind
        if len(found) > 1:
            title = f"{line.metric.name}, kind by kind"
            yield TableSection(title, (*found.values(),), (*found,))


def is_comparison(one: Metric) -> bool:
    """Return whether a metric compares with the unedited model or describes the edit alone."""
    return (
        one.protocol is None
        or one.sequence
        or one.reads.partition("/")[0] in ("locality", "divergence", "robustness", "perplexity")
        or one.name.startswith("errors_")
    )


def _build_charts(
    runs: Sequence[Recorded], labels: Sequence[str], lines: Sequence[TableLine]
) -> Iterable[Chart]:
    """Build the curves of every metric of rows over the checkpoints of a sequence."""
    for line in lines:
        if line.metric.protocol is None or line.metric.sequence:
            continue
        curves: list[Curve] = []
        immediate: list[Curve] = []
        for label, run in zip(labels, runs, strict=True):
            curve = _build_curve(label, run, line.metric)
            if len(curve.edits) > 1:
                curves.append(curve)
                immediate += _build_immediate(label, run, line.metric, curve)
        if curves:
            title = f"{line.metric.title} ({line.metric.name})"
            yield Chart(title, line.metric.scale, (*curves,), (*immediate,))


def _build_curve(label: str, run: Recorded, wanted: Metric) -> Curve:
    """Build the curve of all edits so far, at checkpoints."""
    moments = sequences.find_checkpoints(_select_rows(run, wanted))
    return _evaluate_moments(label, run, wanted, {one: at(run.rows, one) for one in moments})


def _build_immediate(label: str, run: Recorded, wanted: Metric, curve: Curve) -> Iterable[Curve]:
    """Build the curve of the same edits, each asked right after its step, where they were."""
    # A metric of several roles cannot be formed where only some are asked between checkpoints.
    rows = [row for row in _select_rows(run, wanted) if row.position]
    if wanted.group != "success" or {row.edits for row in rows} <= {*curve.edits}:
        return
    size = run.spec.regime.size
    first: dict[str, int] = {}
    for row in rows:
        first[row.case] = min(row.edits, first.get(row.case, row.edits))
    conditions = [row for row in run.rows if row.stage is Stage.BEFORE]
    found: dict[int, list[Row]] = {}
    for moment in curve.edits:
        found[moment] = [
            dataclasses.replace(row, edits=moment)
            for row in rows
            if row.position <= moment
            and row.edits == first[row.case]
            and row.edits - row.position < size
        ]
        found[moment] += conditions
    made = _evaluate_moments(label, run, wanted, found)
    if made.edits:
        yield made


def _select_rows(run: Recorded, wanted: Metric) -> list[Row]:
    """Return the answers of the edited model that a metric reads."""
    return [
        row
        for row in run.rows
        if row.stage is Stage.AFTER
        and row.protocol == wanted.protocol
        and (row.role == wanted.reads or row.role.startswith(f"{wanted.reads}/"))
    ]


def _evaluate_moments(
    label: str, run: Recorded, wanted: Metric, rows: Mapping[int, Sequence[Row]]
) -> Curve:
    bootstrap = run.spec.intervals.bootstrap()
    found: dict[int, Estimate] = {}
    for moment, own in rows.items():
        (estimate,) = evaluate(RunRecords([*own]), [wanted.name], bootstrap=bootstrap)
        if estimate.n and not math.isnan(estimate.value):
            found[moment] = estimate
    return Curve(label, (*found,), (*found.values(),))


def _build_trade_off(labels: Sequence[str], lines: Sequence[TableLine]) -> TradeOff | None:
    kept = _find_share(lines, _KEPT)
    if kept is None:
        return None
    for what in _GAINED:
        gained = _find_share(lines, what)
        if gained is None:
            continue
        points = tuple(
            TradeOffPoint(label, one, other)
            for label, one, other in zip(labels, gained.estimates, kept.estimates, strict=True)
            if one is not None and other is not None
        )
        if points:
            return TradeOff(gained.metric, kept.metric, points)
    return None


def _find_share(lines: Sequence[TableLine], family: str) -> TableLine | None:
    """Return the metric of a family of roles; another share of its answers if it is not there."""
    named = [line for line in lines if line.metric.name.startswith(f"{family}@")]
    others = [
        line
        for line in lines
        if line.metric.reads.partition("/")[0] == family
        and (line.metric.low, line.metric.high) == (0.0, 1.0)
        and line.metric.better is Better.HIGHER
        and not line.metric.sequence
    ]
    return next(iter((*named, *others)), None)


def _count_errors(runs: Sequence[Recorded], labels: Sequence[str]) -> Iterable[ErrorShares]:
    for label, run in zip(labels, runs, strict=True):
        last = at(run.rows, max((row.edits for row in run.rows), default=0))
        decided, _ = error_types.verdicts(last)
        counts = Counter(verdict.outcome for _, verdict in decided)
        if decided:
            shares = {str(one): counts[one] / len(decided) for one in error_types.AnswerType}
            yield ErrorShares(label, shares, len(decided))


def _build_matrices(runs: Sequence[Recorded], labels: Sequence[str]) -> Iterable[Matrix]:
    for label, run in zip(labels, runs, strict=True):
        asked = {row.protocol for row in run.rows if row.family == "reliability"}
        for protocol in (Protocol.GREEDY, Protocol.TEACHER_FORCED, Protocol.RANK):
            if protocol in asked:
                found = sequences.success_matrix(run.rows, protocol=protocol)
                if len(found.moments) > 1:
                    yield Matrix(label, found)
                break
