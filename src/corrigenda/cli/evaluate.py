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
from corrigenda.errors import BadConfig
from corrigenda.progress import report_stage

if TYPE_CHECKING:
    from corrigenda.metrics.estimate import Estimate
    from corrigenda.reports.evaluation import Evaluation
    from corrigenda.run.spec import Recipe

# Between the columns of a table.
_EVALUATION = "evaluation"
_GAP = 2


def evaluate(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="A recipe by its name, a TOML file, or a benchmark by its name.",
            show_default=False,
        ),
    ] = None,
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
    cases: Annotated[
        Path | None,
        typer.Option("--cases", metavar="FILE", help="Cases of your own, as JSON lines or CSV."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option("--methods", metavar="NAMES", help="Methods, separated by commas."),
    ] = None,
    protocols: Annotated[
        str | None,
        typer.Option(
            "--protocols",
            metavar="NAMES",
            help="Protocols, separated by commas: teacher_forced, greedy, generate, chat, rank.",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="URL|MODEL|FUNCTION",
            help="Judge of natural answers: an endpoint, a local model, or module:function.",
        ),
    ] = None,
    judge_model: Annotated[
        str, typer.Option("--judge-model", help="Name of the model of an endpoint.")
    ] = "",
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="System message of the protocol chat."),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option(
            "--before", metavar="MODEL|URL", help="The model before an edit made elsewhere."
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            "--after",
            metavar="MODEL|PATCH|ADAPTER|URL",
            help="The same after it: a model, a patch, an adapter of peft, or an endpoint.",
        ),
    ] = None,
    endpoint_model: Annotated[
        str, typer.Option("--endpoint-model", help="Name of the model of an endpoint.")
    ] = "",
    as_json: options.AsJson = False,
) -> None:
    """Evaluate the methods of a recipe: for each case edit, ask, and take the edit off.

    With --before and --after nothing is edited: two models are asked the same.

    A run that was interrupted resumes; one that is finished is only read. Every answer is a row
    in FOLDER/RUN/rows.parquet. Exit status 1 means that some edits failed.
    """
    report_stage(_EVALUATION, 0, 1)
    import corrigenda
    from corrigenda.run.named_recipe import find_recipe, read_judge

    chosen = find_recipe(
        recipe,
        cases=cases,
        methods=_split_names(methods),
        protocols=_split_names(protocols),
        judge=None if judge is None else read_judge(judge, judge_model),
        system=system,
    )
    if before is not None or after is not None:
        _referee(chosen, before, after, endpoint_model, limit, data, out, as_json)
        return
    found = corrigenda.evaluate(
        chosen,
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
        {"recipe": recipe or str(cases), **found.to_json()},
        as_json=as_json,
        people=lambda console: _draw(console, found),
    )
    for run in found.runs:
        for reason, number in found.problems[run.manifest.run].items():
            output.notice(f"{run.spec.editor.title}: {number} x {reason}")
    if found.has_errors:
        raise typer.Exit(output.FINDING)


def _referee(
    recipe: Recipe,
    before: str | None,
    after: str | None,
    endpoint_model: str,
    limit: int | None,
    data: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Compare two models, and print the table."""
    from corrigenda.reports.refereed import referee

    if before is None or after is None:
        raise BadConfig("a comparison needs two models.", hint="Give both --before and --after.")
    found = referee(
        recipe,
        before=before,
        after=after,
        model=endpoint_model,
        limit=limit,
        data=data,
        folder=out,
    )
    output.show(
        found.to_json(),
        as_json=as_json,
        people=lambda console: console.print(Text(repr(found)), soft_wrap=True),
    )


def _split_names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


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
