"""Values that a report consists of: tables, curves, points, matrices, answers of one case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from corrigenda.metrics import sequences
from corrigenda.metrics.estimate import Bootstrap, Estimate
from corrigenda.metrics.registry import Metric
from corrigenda.reports import numbers
from corrigenda.reports.citations import Citation
from corrigenda.run.store import Recorded


class TableLine(NamedTuple):
    """Metric of several runs.

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
        """Number of cases, formatted."""
        return numbers.format_num_cases(self.estimates)


class TableSection(NamedTuple):
    """Table of a part of the answers.

    Attributes:
        title: Which part: a benchmark, or the kinds of one metric.
        lines: Metric by metric, or kind by kind.
        names: How the lines are called.
    """

    title: str
    lines: tuple[TableLine, ...]
    names: tuple[str, ...]


class Curve(NamedTuple):
    """Metric of one run over the edits of a sequence.

    Attributes:
        label: The run.
        edits: Edits in force at checkpoints, rising.
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
        curves: One for each run: all edits so far, asked at a checkpoint.
        immediate: The same edits, each asked right after it; empty where only checkpoints were
            asked.
    """

    title: str
    scale: float
    curves: tuple[Curve, ...]
    immediate: tuple[Curve, ...] = ()


class TradeOffPoint(NamedTuple):
    """One run in the trade-off: shares in [0, 1] with their intervals."""

    label: str
    gained: Estimate
    kept: Estimate


class TradeOff(NamedTuple):
    """Success of edits against locality, each run a point."""

    gained: Metric
    kept: Metric
    points: tuple[TradeOffPoint, ...]


class Matrix(NamedTuple):
    """Success of each edit of a run at each moment of its sequence."""

    label: str
    matrix: sequences.SuccessMatrix


class ErrorShares(NamedTuple):
    """Shares of error types among the answers to edited prompts of one run.

    Attributes:
        label: The run.
        shares: By type, in the order of the card; they sum to 1.
        n: Number of answers.
    """

    label: str
    shares: dict[str, float]
    n: int


class ProbeAnswer(NamedTuple):
    """Answer to a probe.

    Attributes:
        text: What was generated; or the likelier answer; or the number of tokens that are right.
        right: Whether it is right by the default measure of its metric; None if that is undecided.
    """

    text: str
    right: bool | None

    @property
    def mark(self) -> str:
        """Sign of `right`: +, - or none."""
        return {True: "+", False: "-", None: ""}[self.right]


class ProbeAnswers(NamedTuple):
    """Probe of a case with the answers before the edit and in every run."""

    role: str
    protocol: str
    prompt: str
    expected: str
    before: ProbeAnswer
    answers: tuple[ProbeAnswer, ...]


class SideBySide(NamedTuple):
    """Answers of all runs to the probes of one case."""

    case: str
    probes: tuple[ProbeAnswers, ...]


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
        side_by_side: None where no answer was recorded.
        problems: What is missing, by run: reason and number.
    """

    title: str
    runs: tuple[Recorded, ...]
    labels: tuple[str, ...]
    lines: tuple[TableLine, ...]
    parts: tuple[TableSection, ...]
    charts: tuple[Chart, ...]
    trade_off: TradeOff | None
    errors: tuple[ErrorShares, ...]
    matrices: tuple[Matrix, ...]
    side_by_side: SideBySide | None
    problems: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class Report:
    """Groups of comparable runs, with what to cite.

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
