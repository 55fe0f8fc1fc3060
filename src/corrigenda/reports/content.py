"""What a report shows, as plain values: runs that can be compared, with their tables and curves."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from corrigenda.cases import Protocol
from corrigenda.errors import MissingData
from corrigenda.metrics import error_types, sequences
from corrigenda.metrics.estimate import Bootstrap, Estimate
from corrigenda.metrics.metric import Metric, RunRecords
from corrigenda.metrics.registry import evaluate
from corrigenda.metrics.selection import as_before, at, with_tag
from corrigenda.reports import numbers
from corrigenda.reports.citations import Citation, citations
from corrigenda.rows import Row, Stage
from corrigenda.run import summary
from corrigenda.run.spec import DataSpec, Intervals
from corrigenda.run.store import Recorded

# What a trade-off shows: how far an edit carries, or else whether it takes, against what it leaves
# alone.
_GAINED = ("generalization", "reliability")
_KEPT = "locality"


class TableLine(NamedTuple):
    """A metric of several runs.

    Attributes:
        metric: What is measured.
        before: The unedited model; None where the metric compares with it.
        estimates: One for each run.
        best: Places of the best among them.
    """

    metric: Metric
    before: Estimate | None
    estimates: tuple[Estimate | None, ...]
    best: frozenset[int]

    @property
    def num_cases(self) -> str:
        """Number of cases, as it is written."""
        return numbers.num_cases(self.estimates)


class Part(NamedTuple):
    """A table of a part of the answers.

    Attributes:
        title: Which part: a benchmark, or the kinds of one metric.
        lines: Metric by metric, or kind by kind.
        names: How the lines are called.
    """

    title: str
    lines: tuple[TableLine, ...]
    names: tuple[str, ...]


class Curve(NamedTuple):
    """A number over the edits of a sequence.

    Attributes:
        label: The run.
        edits: Edits in force, rising.
        estimates: One for each.
    """

    label: str
    edits: tuple[int, ...]
    estimates: tuple[Estimate, ...]


class Chart(NamedTuple):
    """Curves of several runs.

    Attributes:
        title: What is drawn.
        scale: Factor that numbers are shown with.
        curves: One for each run.
    """

    title: str
    scale: float
    curves: tuple[Curve, ...]


class Point(NamedTuple):
    """One run in the trade-off: shares in [0, 1] with their intervals."""

    label: str
    gained: Estimate
    kept: Estimate


class TradeOff(NamedTuple):
    """What is gained against what is kept, each run a point."""

    gained: Metric
    kept: Metric
    points: tuple[Point, ...]


class Matrix(NamedTuple):
    """Success of each edit of a run at each moment of its sequence."""

    label: str
    matrix: sequences.SuccessMatrix


class ErrorShares(NamedTuple):
    """How the answers to edited prompts of one run divide into types.

    Attributes:
        label: The run.
        shares: By type, in the order of the card; they sum to 1.
        n: Number of answers.
    """

    label: str
    shares: dict[str, float]
    n: int


class Asked(NamedTuple):
    """One probe of a case with what everybody said."""

    role: str
    prompt: str
    expected: str
    before: str
    answers: tuple[str, ...]


class SideBySide(NamedTuple):
    """Generations of one case, by all runs."""

    case: str
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class Group:
    """Runs on the same cases of the same model in the same regime.

    Attributes:
        title: Benchmarks, regime and model.
        runs: The runs, in the order given.
        labels: What tables call them.
        lines: Metric by metric.
        parts: The same for each of several benchmarks, and metrics kind by kind.
        charts: Curves over a sequence; empty outside sequences.
        trade_off: None where one side was not measured.
        errors: Error types; empty where nothing was generated.
        matrices: Success matrices; empty outside sequences.
        side_by_side: None where no case has a generation.
        problems: What is missing, by run: reason and number.
    """

    title: str
    runs: tuple[Recorded, ...]
    labels: tuple[str, ...]
    lines: tuple[TableLine, ...]
    parts: tuple[Part, ...]
    charts: tuple[Chart, ...]
    trade_off: TradeOff | None
    errors: tuple[ErrorShares, ...]
    matrices: tuple[Matrix, ...]
    side_by_side: SideBySide | None
    problems: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class Report:
    """Everything a report shows.

    Attributes:
        title: Its heading.
        groups: Runs that can be compared, group by group.
        citations: What was used, to be cited.
        bootstrap: How its intervals were found.
    """

    title: str
    groups: tuple[Group, ...]
    citations: tuple[Citation, ...]
    bootstrap: Bootstrap


def report(
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
        together[_setting(run)].append(run._replace(spec=spec))
    groups = tuple(_group(setting, own, metrics, case) for setting, own in together.items())
    if case is not None and all(group.side_by_side is None for group in groups):
        raise MissingData(f'no run has an answer to a case "{case}".', hint="Leave out --case.")
    return Report(title or groups[0].title, groups, citations(runs), intervals.bootstrap())


def regime_name(run: Recorded) -> str:
    """The regime of a run in a few words."""
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


def _setting(run: Recorded) -> tuple[str, ...]:
    data = " + ".join(_data_name(one) for one in run.spec.benchmark)
    trained = run.spec.train
    across = f" (trained on {trained.name})" if trained else ""
    return data + across, regime_name(run), run.manifest.model, run.manifest.model_digest


def _data_name(one: DataSpec) -> str:
    return f"{one.name} {one.options['part']}" if "part" in one.options else one.name


def _group(
    setting: tuple[str, ...], runs: Sequence[Recorded], metrics: Sequence[str], case: str | None
) -> Group:
    labels = _labels(runs)
    lines = tuple(_lines(runs, metrics))
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
        parts=(*_by_benchmark(runs, lines), *_by_kind(runs, lines)),
        charts=tuple(_charts(runs, labels, lines)) if in_sequence else (),
        trade_off=_trade_off(labels, lines),
        errors=tuple(_errors(runs, labels)),
        matrices=tuple(_matrices(runs, labels)) if in_sequence else (),
        side_by_side=_side_by_side(runs, case),
        problems=problems,
    )


def _labels(runs: Sequence[Recorded]) -> tuple[str, ...]:
    """Titles of the runs; with the id where several share one."""
    titles = [run.spec.editor.title for run in runs]
    return tuple(
        title if titles.count(title) == 1 else f"{title} ({run.manifest.run[:6]})"
        for title, run in zip(titles, runs, strict=True)
    )


def _lines(runs: Sequence[Recorded], metrics: Sequence[str]) -> Iterable[TableLine]:
    found = summary.make_lines(runs, metrics)
    plain = [one.metric.name for one in found if not _compares(one.metric)]
    last = runs[0].rows
    last = at(last, max((row.edits for row in last), default=0))
    # Judged as answers of an edit that changed nothing.
    unedited = [dataclasses.replace(row, stage=Stage.AFTER) for row in as_before(last)]
    bootstrap = runs[0].spec.intervals.bootstrap()
    known = evaluate(RunRecords(unedited), plain, bootstrap=bootstrap)
    before = {one.metric: one for one in known if one.n}
    for one in found:
        own = before.get(one.metric.name)
        yield TableLine(
            one.metric, own, one.estimates, numbers.best(one.metric, one.estimates, own)
        )


def _by_benchmark(runs: Sequence[Recorded], lines: Sequence[TableLine]) -> Iterable[Part]:
    """One table for each benchmark, where a run has several."""
    tags = dict.fromkeys(
        tag for row in runs[0].rows for tag in row.tags if tag.startswith("benchmark=")
    )
    for tag in tags:
        own = [run._replace(rows=with_tag(run.rows, tag), measurements=[]) for run in runs]
        found = [
            line
            for line in _lines(own, [line.metric.name for line in lines])
            if any(line.estimates)
        ]
        if found:
            names = tuple(line.metric.name for line in found)
            yield Part(tag.removeprefix("benchmark="), tuple(found), names)


def _by_kind(runs: Sequence[Recorded], lines: Sequence[TableLine]) -> Iterable[Part]:
    """One table for each metric that reads several kinds of one family of roles."""
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
            kind = next(iter(_lines(own, [line.metric.name])))
            if any(kind.estimates):
                found[role] = kind
        if len(found) > 1:
            title = f"{line.metric.name}, kind by kind"
            yield Part(title, (*found.values(),), (*found,))


def _compares(one: Metric) -> bool:
    """Whether a metric is about the difference from the unedited model, or about the edit alone."""
    return (
        one.protocol is None
        or one.sequence
        or one.reads.partition("/")[0] in ("locality", "divergence", "robustness", "perplexity")
        or one.name.startswith("errors_")
    )


def _charts(
    runs: Sequence[Recorded], labels: Sequence[str], lines: Sequence[TableLine]
) -> Iterable[Chart]:
    """Every metric of rows, at every moment of the sequence that was asked."""
    for line in lines:
        if line.metric.protocol is None or line.metric.sequence:
            continue
        curves = [_curve(label, run, line.metric) for label, run in zip(labels, runs, strict=True)]
        curves = [curve for curve in curves if len(curve.edits) > 1]
        if curves:
            yield Chart(f"{line.metric.title} ({line.metric.name})", line.metric.scale, (*curves,))


def _curve(label: str, run: Recorded, wanted: Metric) -> Curve:
    rows, bootstrap = run.rows, run.spec.intervals.bootstrap()
    moments = sorted({row.edits for row in rows if row.stage is Stage.AFTER})
    found: dict[int, Estimate] = {}
    for moment in moments:
        (estimate,) = evaluate(RunRecords(at(rows, moment)), [wanted.name], bootstrap=bootstrap)
        if estimate.n and not math.isnan(estimate.value):
            found[moment] = estimate
    return Curve(label, (*found,), (*found.values(),))


def _trade_off(labels: Sequence[str], lines: Sequence[TableLine]) -> TradeOff | None:
    kept = next((line for line in lines if line.metric.name.startswith(f"{_KEPT}@")), None)
    if kept is None:
        return None
    for what in _GAINED:
        gained = next((line for line in lines if line.metric.name.startswith(f"{what}@")), None)
        if gained is None:
            continue
        points = tuple(
            Point(label, one, other)
            for label, one, other in zip(labels, gained.estimates, kept.estimates, strict=True)
            if one is not None and other is not None
        )
        if points:
            return TradeOff(gained.metric, kept.metric, points)
    return None


def _errors(runs: Sequence[Recorded], labels: Sequence[str]) -> Iterable[ErrorShares]:
    for label, run in zip(labels, runs, strict=True):
        last = at(run.rows, max((row.edits for row in run.rows), default=0))
        decided, _ = error_types.verdicts(last)
        counts = Counter(verdict.outcome for _, verdict in decided)
        if decided:
            shares = {str(one): counts[one] / len(decided) for one in error_types.AnswerType}
            yield ErrorShares(label, shares, len(decided))


def _matrices(runs: Sequence[Recorded], labels: Sequence[str]) -> Iterable[Matrix]:
    for label, run in zip(labels, runs, strict=True):
        asked = {row.protocol for row in run.rows if row.family == "reliability"}
        for protocol in (Protocol.GREEDY, Protocol.TEACHER_FORCED, Protocol.RANK):
            if protocol in asked:
                found = sequences.success_matrix(run.rows, protocol=protocol)
                if len(found.moments) > 1:
                    yield Matrix(label, found)
                break


def _side_by_side(runs: Sequence[Recorded], case: str | None) -> SideBySide | None:
    tables = [_generations(run) for run in runs]
    for wanted in [case] if case is not None else tables[0]:
        keys = list(tables[0].get(wanted, {}))
        if not keys:
            continue
        asked: list[Asked] = []
        for key in keys:
            row = tables[0][wanted][key]
            answers = tuple(
                "" if (own := table.get(wanted, {}).get(key)) is None else own.answer or ""
                for table in tables
            )
            expected = " and ".join("/".join(group) for group in row.expected)
            asked.append(Asked(row.role, row.prompt, expected, row.answer_before or "", answers))
        return SideBySide(wanted, tuple(asked))
    return None


def _generations(run: Recorded) -> dict[str, dict[int, Row]]:
    """The last greedy answer to every probe, by case and probe."""
    found: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in run.rows:
        if row.protocol is Protocol.GREEDY and row.stage is Stage.AFTER and row.answer is not None:
            held = found[row.case].get(row.probe)
            if held is None or row.edits >= held.edits:
                found[row.case][row.probe] = row
    return found
