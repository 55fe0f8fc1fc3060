"""Table of a model before and after an edit that was made elsewhere."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from corrigenda.benchmarks.benchmark import BENCHMARKS, Benchmark
from corrigenda.files import make_folder, write_atomically
from corrigenda.metrics.estimate import BOOTSTRAP, Bootstrap, Estimate
from corrigenda.metrics.metric import Metric, RunRecords
from corrigenda.metrics.registry import evaluate, metric
from corrigenda.metrics.selection import as_before
from corrigenda.progress import Progress, show_progress
from corrigenda.reports import content, numbers
from corrigenda.reports.plain import convert_estimate
from corrigenda.rows import Row, Stage
from corrigenda.run import referee as referees
from corrigenda.run import summary
from corrigenda.run.spec import Recipe
from corrigenda.run.store import write_table
from corrigenda.tables import align_table

ROWS = "refereed.parquet"


class RefereedLine(NamedTuple):
    """One metric of both models; None where a model has none.

    Attributes:
        metric: What is measured.
        before: The model before the edit; None where the metric compares with it.
        after: The model after it.
    """

    metric: Metric
    before: Estimate | None
    after: Estimate


@dataclass(frozen=True, repr=False)
class RefereedTable:
    """Metrics of a model before and after an edit; printed as a table.

    Attributes:
        title: Heading.
        before: How the first model is called.
        after: How the second is called.
        lines: Metric by metric.
        rows: The answers.
        bootstrap: How intervals were found.
    """

    title: str
    before: str
    after: str
    lines: tuple[RefereedLine, ...]
    rows: tuple[Row, ...]
    bootstrap: Bootstrap

    @property
    def problems(self) -> dict[str, int]:
        """Return the reasons for missing answers with their number."""
        return dict(Counter(row.skipped for row in self.rows if row.skipped))

    def table(self) -> list[tuple[str, ...]]:
        """Return the table as text: a row of heads, then one row for each metric."""
        return [
            ("metric", "", "n", f"before: {self.before}", f"after: {self.after}"),
            *(
                (
                    line.metric.name,
                    line.metric.arrow,
                    numbers.format_num_cases([line.after]),
                    numbers.format_cell(line.before, line.metric.scale),
                    numbers.format_cell(line.after, line.metric.scale),
                )
                for line in self.lines
            ),
        ]

    def __repr__(self) -> str:
        """Return the table with its heading and legend."""
        parts = [self.title, align_table(self.table()), numbers.describe_signs(self.bootstrap)]
        parts += [f"{count} x {reason}" for reason, count in self.problems.items()]
        return "\n".join(filter(None, parts))

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists."""
        return {
            "title": self.title,
            "before": self.before,
            "after": self.after,
            "metrics": {
                line.metric.name: {
                    "before": None if line.before is None else convert_estimate(line.before),
                    "after": convert_estimate(line.after),
                }
                for line in self.lines
            },
            "problems": self.problems,
        }


def referee(
    recipe: Recipe,
    *,
    before: str,
    after: str,
    model: str = "",
    limit: int | None = None,
    data: str | Path | None = None,
    folder: str | Path | None = None,
    progress: Progress | bool | None = None,
) -> RefereedTable:
    """Compare a model with one that was edited elsewhere, on the cases of a recipe.

    Args:
        recipe: Its cases, protocols and judge are used; its methods are not.
        before: The model before the edit: a name, a folder, a .gguf file, or an address.
        after: The model after it: the same, or a patch or an adapter of peft for `before`.
        model: Name of the model of an endpoint.
        limit: Most cases.
        data: Folder of public files.
        folder: Where rows are written, as `refereed.parquet`; nowhere if None.
        progress: As in `evaluate`.

    Raises:
        UnknownModel (CG301), BadConfig (CG502), MissingExtra (CG504): a model cannot be opened, or
            both are the same.
        MissingData (CG604), MalformedRecords (CG603): the cases cannot be read.
        JudgeFailed (CG611): the judge gives no answer.
    """
    source = recipe.benchmark[0]
    kind: type[Benchmark] = BENCHMARKS.get(source.name)
    loaded = kind(**source.options).load(
        source.path or data, limit=limit or source.limit, seed=source.seed
    )
    with show_progress(progress) as report:
        found = referees.referee(
            before,
            after,
            loaded,
            ask=recipe.ask,
            model=model,
            device=recipe.device,
            progress=report,
        )
    if folder is not None:
        make_folder(Path(folder))
        path = Path(folder) / ROWS
        write_atomically(path, lambda part: write_table(part, found.rows, Row))
    bootstrap = recipe.intervals.bootstrap()
    lines = tuple(_build_lines(found.rows, recipe.metrics, kind.headline, bootstrap))
    title = recipe.title or source.name
    return RefereedTable(title, found.before, found.after, lines, tuple(found.rows), bootstrap)


def _build_lines(
    rows: Sequence[Row],
    metrics: Sequence[str],
    headline: Sequence[str],
    bootstrap: Bootstrap = BOOTSTRAP,
) -> list[RefereedLine]:
    after = evaluate(RunRecords(rows), list(metrics) or None, bootstrap=bootstrap)
    if not metrics:
        known = {one.metric for one in after}
        further = [name for name in headline if name not in known]
        after += [one for one in evaluate(RunRecords(rows), further, bootstrap=bootstrap)]
        order = [*headline, *(one.metric for one in after)]
        after = [one for one in after if one.metric in headline or summary.is_shown(one.metric)]
        after.sort(key=lambda one: order.index(one.metric))
    after = [one for one in after if one.n]
    names = [one.metric for one in after if not content.is_comparison(metric(one.metric))]
    unedited = [dataclasses.replace(row, stage=Stage.AFTER) for row in as_before(rows)]
    known_before = evaluate(RunRecords(unedited), names, bootstrap=bootstrap)
    before = {one.metric: one for one in known_before if one.n}
    return [RefereedLine(metric(one.metric), before.get(one.metric), one) for one in after]
