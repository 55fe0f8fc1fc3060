"""`corrigenda cache`: what the cache holds, and its removal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from corrigenda.cli import options, output
from corrigenda.errors import BadConfig

if TYPE_CHECKING:
    from corrigenda.cache_listing import CacheEntry

app = typer.Typer(invoke_without_command=True, help="List what the cache holds, or remove it.")


@app.callback()
def show(ctx: typer.Context, as_json: options.AsJson = False) -> None:
    """List what the cache holds: what it is, its size, when it was written."""
    if ctx.invoked_subcommand is not None:
        return
    from corrigenda.cache_listing import list_cache
    from corrigenda.files import cache_folder, format_bytes

    entries = list_cache()
    folder = cache_folder()

    def draw(console: Console) -> None:
        if entries:
            console.print(_draw_entries(entries))
        total = format_bytes(sum(entry.size for entry in entries))
        console.print(f"{folder}: {total}", soft_wrap=True)

    data = {"folder": str(folder), "entries": [_to_json(entry) for entry in entries]}
    output.show(data, as_json=as_json, people=draw)


@app.command()
def clear(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="What to remove, as `corrigenda cache` lists it; everything if not given.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Remove what the cache holds; what is needed again is computed again."""
    from corrigenda.cache_listing import clear_cache
    from corrigenda.files import cache_folder, format_bytes

    if not yes:
        what = f'"{name}"' if name else "everything"
        if not sys.stdin.isatty():
            raise BadConfig(f"{what} would be removed from the cache.", hint="Confirm with --yes.")
        typer.confirm(f"Remove {what} from {cache_folder()}?", abort=True, err=True)
    removed = clear_cache(name)

    def draw(console: Console) -> None:
        if removed:
            console.print(_draw_entries(removed))
        console.print(f"removed: {format_bytes(sum(entry.size for entry in removed))}")

    data = {"removed": [_to_json(entry) for entry in removed]}
    output.show(data, as_json=as_json, people=draw)


def _draw_entries(entries: Sequence[CacheEntry]) -> object:
    from corrigenda.files import format_bytes

    rows = [
        (
            *(entry.name, entry.about, entry.files, format_bytes(entry.size)),
            f"{entry.written:%Y-%m-%d %H:%M}",
        )
        for entry in entries
    ]
    return output.table(("name", "what it is", "files", "size", "written"), rows)


def _to_json(entry: CacheEntry) -> dict[str, object]:
    return {**entry._asdict(), "written": entry.written.isoformat(timespec="seconds")}
