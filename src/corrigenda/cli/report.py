"""`corrigenda report` and `corrigenda compare`: results of runs, as tables and pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from corrigenda.cli import options, output
from corrigenda.errors import BadConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from corrigenda.reports.comparison import MetricComparison
    from corrigenda.reports.sections import Report
    from corrigenda.run.spec import Intervals

Runs = Annotated[
    Path, typer.Option("--runs", metavar="FOLDER", help="Folder of all runs.", show_default=True)
]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", metavar="NAME", help="Show this metric; may be repeated."),
]

_KNOWN = ".html, .md, .tex, .json"


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Runs, by folder, id or the beginning of one."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help=f"What to write: {_KNOWN}."),
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "",
    metric: Metrics = None,
    case: Annotated[
        str | None, typer.Option(help="Case whose generations are shown side by side.")
    ] = None,
    level: Annotated[
        float | None, typer.Option(help="Level of the intervals; the first run's if not given.")
    ] = None,
    hierarchical: Annotated[
        bool, typer.Option("--hierarchical", help="Resample answers within cases too.")
    ] = False,
    folder: Runs = Path("runs"),
    as_json: options.AsJson = False,
) -> None:
    """Report the results of runs: tables, curves, error types, generations, and citations.

    An HTML file holds everything and needs no network. Without --output the tables are printed.
    """
    if out is not None:
        _require_form(out)
        options.check_folder(out)
    from corrigenda.files import write_text
    from corrigenda.reports import content, plain
    from corrigenda.run import store

    recorded = [store.load(run, folder) for run in runs]
    made = content.build_report(
        recorded,
        title=title,
        metrics=metric or (),
        case=case,
        intervals=_change_intervals(recorded[0].spec.intervals, level, hierarchical),
    )
    if out is not None:
        write_text(out, _render(made, out))
    output.show(
        {**plain.convert_report(made), "file": str(out) if out else None},
        as_json=as_json,
        people=lambda console: _draw(console, made, out),
    )


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN_A", help="A run, by folder or id.")],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="A run on the same cases.")],
    metric: Metrics = None,
    folder: Runs = Path("runs"),
    as_json: options.AsJson = False,
) -> None:
    """Compare two runs case by case: the difference of every metric, and whether it is chance."""
    from corrigenda.reports import comparison
    from corrigenda.reports.plain import convert_estimate, convert_run
    from corrigenda.run import store

    one, other = store.load(first, folder), store.load(second, folder)
    found = comparison.compare(one, other, metric or ())
    output.show(
        {
            "first": convert_run(one),
            "second": convert_run(other),
            "metrics": [
                {
                    "metric": line.metric.name,
                    "first": convert_estimate(line.first),
                    "second": convert_estimate(line.second),
                    "difference": convert_estimate(line.difference),
                    "p_value": line.p_value,
                }
                for line in found
            ],
        },
        as_json=as_json,
        people=lambda console: _draw_comparison(
            console,
            found,
            (one.spec.editor.title, other.spec.editor.title),
            one.spec.intervals.level,
        ),
    )


def _require_form(out: Path) -> None:
    if out.suffix.lower() not in _KNOWN.split(", "):
        raise BadConfig(f'"{out.name}" names no form of report.', hint=f"Use one of {_KNOWN}.")


def _change_intervals(own: Intervals, level: float | None, hierarchical: bool) -> Intervals:
    """Return the interval settings of a run, changed as the options say."""
    if level is not None and not 0 < level < 1:
        raise BadConfig(f"{level:g} is no level of an interval.", hint="Give 0.95 or 0.99.")
    changes = {"level": level or own.level, "hierarchical": hierarchical or own.hierarchical}
    return own.model_copy(update=changes)


def _render(made: Report, out: Path) -> str:
    """Return a report in the form that the suffix of the file names."""
    from corrigenda.reports import plain
    from corrigenda.reports.page import render_page

    forms = {
        ".html": render_page,
        ".md": plain.render_markdown,
        ".tex": plain.render_latex,
        ".json": plain.render_json,
    }
    return forms[out.suffix.lower()](made)


def _draw(console: Console, made: Report, out: Path | None) -> None:
    if out is not None:
        console.print(f"{len(made.groups)} table(s) in {out}", soft_wrap=True)
        return
    from corrigenda.reports import numbers

    for group in made.groups:
        columns = ["metric", "", "n", "unedited", *group.labels]
        rows = [
            [
                line.metric.name,
                line.metric.arrow,
                line.num_cases,
                numbers.format_value(line.before, line.metric.scale),
                *(numbers.format_cell(one, line.metric.scale) for one in line.estimates),
            ]
            for line in group.lines
        ]
        console.print(output.table(columns, rows, title=group.title))
        console.print()
    console.print(numbers.describe_signs(made.bootstrap))


def _draw_comparison(
    console: Console, found: Sequence[MetricComparison], titles: tuple[str, str], level: float
) -> None:
    from corrigenda.reports import numbers

    rows = [
        [
            line.metric.name,
            line.metric.arrow,
            numbers.format_value(line.first, line.metric.scale),
            numbers.format_value(line.second, line.metric.scale),
            numbers.format_cell(line.difference, line.metric.scale),
            "-" if line.p_value is None else f"{line.p_value:.3g}",
            numbers.format_num_cases([line.difference]),
        ]
        for line in found
    ]
    console.print(output.table(["metric", "", *titles, "difference", "p", "n"], rows))
    console.print(
        f"\nDifferences are paired over common cases, with {100 * level:.6g} % intervals; p is "
        "that of the paired randomisation test, two-sided, one metric at a time."
    )
