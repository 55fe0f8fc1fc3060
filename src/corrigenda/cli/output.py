"""Results on stdout (tables for people, JSON for programs), everything else on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from corrigenda.errors import CorrigendaError
from corrigenda.progress import close_progress

FINDING = 1
MISUSE = 2
DEFECT = 70

_JSON = "corrigenda.json"


def stdout() -> Console:
    """Return the console for results."""
    return Console(highlight=False, soft_wrap=False)


def stderr() -> Console:
    """Return the console for progress, notices and errors."""
    return Console(stderr=True, highlight=False)


def wants_json(ctx: typer.Context, value: bool) -> bool:
    """Record `--json` for the report of errors; the option's callback."""
    ctx.meta[_JSON] = value
    return value


def show(data: Mapping[str, object], *, as_json: bool, people: Callable[[Console], None]) -> None:
    """Print a result: `data` as one JSON object, or what `people` draws; progress ends."""
    close_progress()
    if as_json:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        people(stdout())


def notice(text: str) -> None:
    """Print a notice on stderr, apart from the result."""
    stderr().print(Text(text, style="yellow"), soft_wrap=True)


def report(error: CorrigendaError, ctx: typer.Context) -> None:
    """Print a coded error on stderr, and as JSON on stdout where `--json` was given."""
    console = stderr()
    console.print(Text(str(error), style="red"), soft_wrap=True)
    if ctx.meta.get(_JSON):
        details = {
            "code": error.code,
            "error": type(error).__name__,
            "message": error.message,
            "where": error.where,
            "hint": error.hint,
        }
        typer.echo(json.dumps({"error": details}, indent=2, ensure_ascii=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> Table:
    """Lay out rows of text; columns whose cells are all numbers are set to the right."""
    result = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(
            isinstance(row[index], int | float) and not isinstance(row[index], bool) for row in rows
        )
        result.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        result.add_row(*(Text(_format_cell(value)) for value in row))
    return result


def _format_cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case list() | tuple():
            return ", ".join(map(str, value))
        case _:
            return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))
