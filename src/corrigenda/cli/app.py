"""`corrigenda app`: correct facts in a browser on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from corrigenda.cli import options, output


def app(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL|BOOK]",
            help="A name of `corrigenda models`, a folder, a .gguf file, a name on the hub; or the "
            "folder of a book.",
        ),
    ] = "pocket",
    host: Annotated[str, typer.Option(help="Where to listen; other than here needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="CORRIGENDA_TOKEN", help="Asked of every browser once.", show_default=False
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name it may be called by; may be repeated, * is any."),
    ] = None,
    runs: Annotated[
        Path, typer.Option("--runs", metavar="FOLDER", help="Folder of runs of `evaluate`.")
    ] = Path("runs"),
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Correct facts in a browser: ask, correct, look where, compare, undo; Ctrl+C ends it.

    Nothing leaves this machine. Corrections are kept in the book where one is opened; else they
    last until the end, so export what you want to keep.
    """
    from corrigenda.app.server import require_app_extra, run_app
    from corrigenda.serving.settings import Access, require_safe

    require_app_extra()
    access = Access(token, hosts=tuple(allowed_host or ()))
    require_safe(host, access)
    from corrigenda.books.folder import is_book

    book = None
    if is_book(model):
        from corrigenda.books import Book

        book = Book.open(model)
    name = model if book is None else book.base.name
    lm = options.open_model(name, dtype=dtype, device=device)

    def announce(address: str) -> None:
        def draw(console: Console) -> None:
            asked = " and asks for the token" if token else ""
            console.print(f"{address} shows {lm.name}{asked}; Ctrl+C ends it", soft_wrap=True)

        data = {"address": address, "model": lm.name, "book": None if book is None else model}
        output.show(data, as_json=as_json, people=draw)

    run_app(lm, book, host=host, port=port, access=access, runs=runs, ready=announce)
