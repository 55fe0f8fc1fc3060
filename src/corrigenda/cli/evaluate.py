"""`corrigenda evaluate`: run a recipe and print its methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from corrigenda.cli import options, output
from corrigenda.progress import report_stage

if TYPE_CHECKING:
    from corrigenda.metrics.estimate import Estimate
    from corrigenda.reports.evaluation import Evaluation

# Between the columns of a table.
_EVALUATION = "evaluation"
_GAP = 2


def evaluate(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe by its name, or a TOML file.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="Another model than the recipe's.")
    ] = None,
    executor: Annotated[
        str, typer.Option("--executor", help="Where the work is done: local, or ray.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Number of workers, with ray.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of all runs.")
    ] = Path("runs"),
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Most cases of each benchmark.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FOLDER", help="Public files; downloaded if not given."),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Ask in the model's chat template; as the recipe says if not given.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Another dtype than the recipe's.", show_default=False)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Another device than the recipe's; auto spreads over all."),
    ] = None,
    quantization: options.Quantization = None,
    attention: options.Attention = None,
    as_json: options.AsJson = False,
) -> None:
    """Evaluate the methods of a recipe: for each case edit, ask, and take the edit off.

    A run that was interrupted resumes; one that is finished is only read. Every answer is a row
    in FOLDER/RUN/rows.parquet. Exit status 1 means that some edits failed.
    """
    report_stage(_EVALUATION, 0, 1)
    import corrigenda

    found = corrigenda.evaluate(
        recipe,
        model=model,
        limit=limit,
        data=data,
        folder=out,
        executor=executor,
        workers=workers,
        chat=chat,
        placing={
            "dtype": dtype,
            "device": device,
            "quantization": quantization,
            "attention": attention,
        },
    )
    output.show(
        {"recipe": recipe, **found.to_json()},
        as_json=as_json,
        people=lambda console: _draw(console, found),
    )
    for run in found.runs:
        for reason, number in found.problems[run.manifest.run].items():
            output.notice(f"{run.spec.editor.title}: {number} x {reason}")
    if found.has_errors:
        raise typer.Exit(output.FINDING)


def _draw(console: Console, found: Evaluation) -> None:
    from corrigenda.reports import numbers

    names = [
        (one.metric.name, one.metric.arrow, numbers.format_num_cases(one.estimates))
        for one in found.lines
    ]
    columns = [["unedited", *(_format_cell(one.before, one.metric.scale) for one in found.lines)]]
    columns += [
        [
            run.spec.editor.title,
            *(_format_cell(one.estimates[place], one.metric.scale) for one in found.lines),
        ]
        for place, run in enumerate(found.runs)
    ]
    heads = [("metric", "", "n"), *names]
    taken = sum(max(len(head[place]) for head in heads) + _GAP for place in range(3))
    widths = [max(len(part) for cell in own for part in cell.split("\n")) for own in columns]
    for number, places in enumerate(_split_columns(widths, console.width - taken)):
        title = found.title if number == 0 else ""
        table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
        for head in heads[0]:
            # A name is typed back, so it is not broken over lines.
            table.add_column(head, no_wrap=True)
        for place in places:
            table.add_column(Text(columns[place][0]), justify="right", overflow="fold")
        for row, name in enumerate(names):
            table.add_row(*name, *(Text(columns[place][row + 1]) for place in places))
        console.print(table)
    console.print(f"\n{numbers.describe_signs(found.bootstrap)}")
    for run in found.runs:
        console.print(f"{run.spec.editor.title}: {run.folder}", soft_wrap=True)


def _format_cell(estimate: Estimate | None, scale: float) -> str:
    """Return the text of a value, with its interval on the next line."""
    from corrigenda.reports import numbers

    value, interval = (
        numbers.format_value(estimate, scale),
        numbers.format_interval(estimate, scale),
    )
    return f"{value}\n{interval}".rstrip()


def _split_columns(widths: Sequence[int], room: int) -> list[list[int]]:
    """Split columns over tables that fit the room; a table has at least one, however wide."""
    parts: list[list[int]] = []
    left = 0
    for place, width in enumerate(widths):
        if not parts or width + _GAP > left:
            parts.append([])
            left = room
        parts[-1].append(place)
        left -= width + _GAP
    return parts
