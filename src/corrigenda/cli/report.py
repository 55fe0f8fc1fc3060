"""`corrigenda report` and `corrigenda compare`: results of runs, as tables and pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from corrigenda.cli import options, output

if TYPE_CHECKING:
    from corrigenda.reports.sections import Report

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
        from corrigenda.reports.document import check_form

        check_form(out)
        options.check_folder(out)
    import corrigenda

    made = corrigenda.report(
        runs,
        title=title,
        metrics=metric or (),
        case=case,
        level=level,
        hierarchical=hierarchical,
        folder=folder,
    )
    if out is not None:
        made.save(out)
    output.show(
        {**made.to_json(), "file": str(out) if out else None},
        as_json=as_json,
        people=lambda console: _draw(console, made.content, out),
    )


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN_A", help="A run, by folder or id.")],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="A run on the same cases.")],
    metric: Metrics = None,
    folder: Runs = Path("runs"),
    as_json: options.AsJson = False,
) -> None:
    """Compare two runs case by case: the difference of every metric, and whether it is chance."""
    import corrigenda

    found = corrigenda.compare(first, second, metric or (), folder=folder)

    def draw(console: Console) -> None:
        heads, *rows = found.table()
        console.print(output.table(heads, rows))
        console.print(f"\n{found.legend}")

    output.show(found.to_json(), as_json=as_json, people=draw)


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
