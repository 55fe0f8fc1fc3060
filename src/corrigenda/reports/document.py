"""A report as a value: printed as tables, shown in a notebook, saved in any of its forms."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from corrigenda.errors import BadConfig, MissingData
from corrigenda.files import write_text
from corrigenda.reports import content, plain, sections
from corrigenda.reports.evaluation import Evaluation
from corrigenda.reports.numbers import describe_signs, format_cell
from corrigenda.reports.page import render_page
from corrigenda.reports.sections import Report
from corrigenda.run import store
from corrigenda.run.spec import Intervals
from corrigenda.run.store import Recorded
from corrigenda.tables import align_table, write_html_table

FORMS: dict[str, Callable[[Report], str]] = {
    ".html": render_page,
    ".md": plain.render_markdown,
    ".tex": plain.render_latex,
    ".json": plain.render_json,
}
"""Forms in which a report is saved, by the ending of the file."""


@dataclass(frozen=True, repr=False)
class Document:
    """A report that can be printed, shown and saved.

    Attributes:
        content: Its tables, curves, generations and citations.
    """

    content: Report

    def save(self, path: str | Path) -> Path:
        """Write the report; the ending of the name decides the form: .html, .md, .tex or .json.

        Raises:
            BadConfig (CG502): another ending.
            MissingExtra (CG504): an HTML page needs matplotlib and jinja2.
            WriteFailed (CG601): the file could not be written.
        """
        check_form(path)
        return write_text(path, FORMS[Path(path).suffix.lower()](self.content))

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists, as `corrigenda report --json` prints them."""
        return plain.convert_report(self.content)

    def __repr__(self) -> str:
        """Return the tables as text."""
        tables = [f"{one.title}\n{align_table(_rows(one))}\n" for one in self.content.groups]
        return "\n".join([*tables, describe_signs(self.content.bootstrap)])

    def _repr_html_(self) -> str:
        """Return the tables as HTML, for notebooks."""
        return "".join(
            f"<h4>{html.escape(one.title)}</h4>{write_html_table(_rows(one))}"
            for one in self.content.groups
        )


def report(
    runs: Recorded | Evaluation | str | Path | Sequence[Recorded | str | Path],
    *,
    title: str = "",
    metrics: str | Sequence[str] = (),
    case: str | None = None,
    level: float | None = None,
    hierarchical: bool = False,
    folder: str | Path = store.FOLDER,
) -> Document:
    """Return the report of runs: tables, curves, error types, generations, and what to cite.

    Args:
        runs: One run or several: as recorded, their folders, ids or the beginnings of ids; or an
            evaluation. Runs on other cases, models or regimes form groups of their own.
        title: The heading; made from the groups if empty.
        metrics: Names of metrics; what the runs ask for, or their default measures, if empty.
        case: Case whose generations are shown; the first that has any if None.
        level: Level of the intervals; that of the first run's specification if None.
        hierarchical: Whether answers are resampled within cases too.
        folder: Where runs are stored.

    Raises:
        MissingData (CG604): no such run, or no answer to the case asked for.
        UnknownMetric (CG505): a name is not known.
        BadConfig (CG502): a level that is none.

    Example:
        ```python
        cg.report(cg.evaluate("pocket-quick", limit=5)).save("report.html")
        ```
    """
    if isinstance(runs, Evaluation):
        runs = runs.runs
    several = [runs] if isinstance(runs, Recorded | str | Path) else runs
    recorded = [run if isinstance(run, Recorded) else store.load(run, folder) for run in several]
    if not recorded:
        raise MissingData("a report needs at least one run.", hint="Name runs by folder or id.")
    return Document(
        content.build_report(
            recorded,
            title=title,
            metrics=(metrics,) if isinstance(metrics, str) else metrics,
            case=case,
            intervals=_intervals(recorded[0].spec.intervals, level, hierarchical),
        )
    )


def check_form(path: str | Path) -> None:
    """Refuse a file whose ending names no form of report.

    Raises:
        BadConfig (CG502): it names none.
    """
    if Path(path).suffix.lower() not in FORMS:
        raise BadConfig(
            f'"{Path(path).name}" names no form of report.', hint=f"Use one of {', '.join(FORMS)}."
        )


def _intervals(own: Intervals, level: float | None, hierarchical: bool) -> Intervals:
    """Return the intervals of a run, with what was asked for instead."""
    if level is not None and not 0 < level < 1:
        raise BadConfig(f"{level:g} is no level of an interval.", hint="Give 0.95 or 0.99.")
    changes = {"level": level or own.level, "hierarchical": hierarchical or own.hierarchical}
    return own.model_copy(update=changes)


def _rows(group: sections.Group) -> list[tuple[str, ...]]:
    return [
        ("metric", "", "n", "unedited", *group.labels),
        *(
            (
                line.metric.name,
                line.metric.arrow,
                line.num_cases,
                format_cell(line.before, line.metric.scale),
                *(format_cell(one, line.metric.scale) for one in line.estimates),
            )
            for line in group.lines
        ),
    ]
