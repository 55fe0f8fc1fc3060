"""`corrigenda serve`: a model with and without patches over HTTP, in the form of OpenAI's API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from corrigenda.cli import options, output

if TYPE_CHECKING:
    from corrigenda.patch import Patch


def serve(
    model: options.Model,
    patch: Annotated[
        list[str] | None,
        typer.Option(
            "--patch",
            "-p",
            metavar="[NAME=]FILE",
            help="Serve the model with this patch, or with a book (a folder), as NAME or as "
            "MODEL-edited; may be repeated.",
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(help="Name of the model; that of its folder if not given.")
    ] = (""),
    host: Annotated[str, typer.Option(help="Where to listen; other than here needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="CORRIGENDA_TOKEN", help="Asked of every request.", show_default=False),
    ] = None,
    admin_token: Annotated[
        str | None,
        typer.Option(
            envvar="CORRIGENDA_ADMIN_TOKEN",
            help="Asked where patches are put on and taken off; the token if not given.",
            show_default=False,
        ),
    ] = None,
    patch_folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Patches in it may be put on while it runs."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name it may be called by; may be repeated, * is any."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most new tokens of an answer.")] = 1024,
    max_waiting: Annotated[int, typer.Option(min=1, help="Most answers in the queue.")] = 512,
    max_body: Annotated[int, typer.Option(min=1, help="Most bytes of a request.")] = 1 << 20,
    force: options.Force = False,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Serve a model, with and without patches, to clients of OpenAI's API; Ctrl+C ends it.

    Without patches it is called by its name, with them MODEL-edited.
    """
    import corrigenda
    from corrigenda.serving.server import require_extra
    from corrigenda.serving.settings import Access, Limits, require_safe

    require_extra()
    access = Access(token, admin_token, tuple(allowed_host or ()), patch_folder)
    require_safe(host, access)
    limits = Limits(max_body=max_body, max_tokens=max_tokens, max_waiting=max_waiting)
    named = [_split(entry) for entry in patch or ()]
    files = {file: options.open_patch(file) for _, file in named}
    lm = options.open_model(model, dtype=dtype, device=device)
    base_name = name or Path(lm.name).name
    patches: dict[str, list[Patch]] = {}
    for served, file in named:
        patches.setdefault(served or f"{base_name}-edited", []).append(files[file])

    def announce(address: str) -> None:
        names = [base_name, *patches]

        def draw(console: Console) -> None:
            console.print(f"{address}/v1 serves {', '.join(names)}; Ctrl+C ends it", soft_wrap=True)

        output.show({"address": address, "models": names}, as_json=as_json, people=draw)

    corrigenda.serve(
        lm,
        patches,
        name=base_name,
        host=host,
        port=port,
        access=access,
        limits=limits,
        files=files,
        force=force,
        ready=announce,
    )


def _split(entry: str) -> tuple[str, str]:
    """Return the name, empty where none is given, and the file of `[NAME=]FILE`."""
    name, sign, file = entry.partition("=")
    return (name, file) if sign and not Path(entry).exists() else ("", entry)
