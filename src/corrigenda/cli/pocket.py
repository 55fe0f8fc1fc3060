"""`corrigenda pocket`: the model that comes with the package: its facts, its card, its training."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="The pocket model: its facts, its card, its training.")


@app.callback()
def _options() -> None:
    pass
