"""`corrigenda fix`: from a file of corrections to a patch, its card, and the fate of every line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text as Line

from corrigenda.cli import options, output
from corrigenda.cli.fix_menu import confirm_lines, run_menu
from corrigenda.cli.guarding import draw_report
from corrigenda.cli.progress import announce_loading

if TYPE_CHECKING:
    from corrigenda.fixing.fix import FixResult
    from corrigenda.fixing.search import SearchTrial

_BAR = 24


def fix(
    model: options.Model,
    corrections: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Corrections: CSV, TSV, JSONL, JSON, XLSX.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Patch, card and fates go here; named after FILE if not given.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", help="Take this method, without a search."),
    ] = None,
    budget: Annotated[float, typer.Option(min=0.01, help="Minutes of the search.")] = 5.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing, for scripts.")] = False,
    book: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Correct on top of this book, and keep the corrections in it; made if missing.",
        ),
    ] = None,
    limit: options.Limits = None,
    chat: options.Chat = None,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Make the corrections of a file true: find the method, edit, check what must not change.

    Columns: prompt (or question), answer, and where needed subject, old answer, paraphrases,
    neighbours; or subject, relation, answer. Lines that cannot be read are listed, the others go
    on. Exit status 1 means that a line is not true, contradicts another, or could not be read, or
    that the guard refused the edit.
    """
    from corrigenda.guarding.limits import parse_limits, set_limits

    limits = parse_limits(limit or ())
    set_limits(limits)
    folder = out or Path(f"{corrections.stem}-fix")
    options.check_folder(folder, folder=True)
    from corrigenda.fixing.lines import read_lines

    lines = read_lines(corrections)
    announce_loading(model)
    from corrigenda.fixing.card import write_files
    from corrigenda.fixing.fix import correct_lines
    from corrigenda.fixing.keeping import keep_in_book, list_earlier, open_book
    from corrigenda.fixing.search import EditMaker
    from corrigenda.fixing.understanding import understand

    lm = options.open_model(model, dtype=dtype, device=device)
    opened = open_book(book, lm) if book is not None else None
    asks = not yes and not as_json and sys.stdin.isatty() and sys.stdout.isatty()
    maker = EditMaker(lm, [opened.patch()] if opened else [], chat=chat)
    with maker.applied():
        understood = understand(lm, lines, list_earlier(opened))
        if asks:
            understood = confirm_lines(lm, understood)
    result = correct_lines(maker, understood, method=method, budget=budget, limits=limits)
    write_files(result, folder, model=model, source=corrections.name)
    kept = keep_in_book(opened, lm, result) if opened is not None else 0
    data = {
        "model": lm.name,
        "folder": str(folder),
        "book": str(book) if book is not None else None,
        "kept": kept,
        **result.to_json(),
    }

    def draw(console: Console) -> None:
        _draw(console, result, folder)
        if book is not None:
            console.print(f"{book}: {kept} corrections added", soft_wrap=True)

    output.show(data, as_json=as_json, people=draw)
    if asks and result.patch is not None:
        run_menu(lm, model, result, folder)
    if not result.succeeded:
        raise typer.Exit(output.FINDING)


def _draw(console: Console, result: FixResult, folder: Path) -> None:
    rows = [
        (
            one.number,
            one.fact.prompt if one.fact else "",
            one.before,
            one.fact.target if one.fact else "",
            one.after,
            f"{one.paraphrases[0]}/{one.paraphrases[1]}" if one.paraphrases[1] else "",
            f"{one.fate}: {one.reason}" if one.reason else str(one.fate),
        )
        for one in result.lines
    ]
    columns = ("line", "prompt", "before", "wanted", "after", "paraphrases", "")
    console.print(output.table(columns, rows))
    console.print()
    _draw_search(console, result.trials)
    if result.report is not None:
        draw_report(console, result.report)
    counts = ", ".join(f"{count} {fate}" for fate, count in result.counts.items())
    console.print(f"{len(result.lines)} lines: {counts}", soft_wrap=True)
    console.print(Line(f"{folder}: {', '.join(_list_files(folder))}"), soft_wrap=True)


def _draw_search(console: Console, trials: Sequence[SearchTrial]) -> None:
    """Print the trials; those on the Pareto front are marked, success is drawn as a bar."""
    tried = [one for one in trials if one.seconds]
    if not tried:
        return
    rows = [
        (
            f"{'*' if one.on_front else ' '} {one.approach.label}",
            "#" * round(_BAR * one.success) if not one.problem else "",
            one.success if not one.problem else one.problem,
            one.damage if not one.problem else "",
            f"{one.seconds:.0f} s",
        )
        for one in tried
    ]
    console.print(output.table(("* Pareto front", "", "success", "damage", "time"), rows))
    console.print()


def _list_files(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if one.is_file())
