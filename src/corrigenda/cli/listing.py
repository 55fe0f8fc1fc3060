"""`corrigenda methods` and `corrigenda models`: lists of methods, cards, and models."""

from __future__ import annotations

from textwrap import shorten
from typing import Annotated

import typer
from rich.console import Console

from corrigenda.cli import options, output
from corrigenda.errors import BadConfig


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Method whose card is shown; all are listed if not given.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Count the parameters that each method changes or adds."),
    ] = None,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """List the methods: family, training, batches, what changes; with NAME, show its card."""
    if name is not None:
        if model is not None:
            raise BadConfig("parameters are counted for all methods: give NAME or --model.")
        _show_card(name, as_json)
        return
    import corrigenda

    lm = options.open_model(model, dtype=dtype, device=device) if model else None
    rows = corrigenda.list_methods(lm)

    def draw(console: Console) -> None:
        if lm is None:
            columns = ("method", "family", "training", "batch", "what changes")
            cells = [(row.name, row.group, row.training, row.batch, row.changes) for row in rows]
        else:
            columns = ("method", "family", "batch", "parameters")
            cells = [
                (
                    *(row.name, row.group, row.batch),
                    _shorten(row.formula) if row.parameters is None else row.parameters,
                )
                for row in rows
            ]
        table = output.table(columns, cells)
        for column in table.columns:
            column.no_wrap = True
        console.print(table)
        if lm is None:
            console.print("\nDetails: corrigenda methods NAME", highlight=False)

    output.show(
        {"model": lm.name if lm else None, "methods": [row._asdict() for row in rows]},
        as_json=as_json,
        people=draw,
    )


def _shorten(formula: str) -> str:
    """Cut a formula to the room that a line of 80 columns leaves for it."""
    return shorten(formula, 38, placeholder=" ...")


def _show_card(name: str, as_json: bool) -> None:
    """Print the card of a method: its summary as a table, and its text."""
    from rich.markdown import Markdown
    from rich.padding import Padding

    from corrigenda.methods.registry import METHODS

    name = METHODS.resolve(name)
    matter, text = METHODS.card(name), METHODS.card_text(name)
    titles = {
        "family": "family",
        "choose_when": "choose it for",
        "not_when": "not when",
        "area": "what changes",
        "parameters": "parameters",
        "training": "training before",
        "batch": "many facts at once",
        "sequential": "edit after edit",
        "presets": "presets",
        "paper": "paper",
        "url": "",
    }

    def draw(console: Console) -> None:
        cells = [(title, matter[key]) for key, title in titles.items() if key in matter]
        table = output.table((name, str(matter["title"])), cells)
        table.columns[0].no_wrap = True
        console.print(Padding(table, (0, 0, 1, 0)))
        console.print(Markdown(text))

    output.show({"method": dict(matter), "card": text}, as_json=as_json, people=draw)


def models(as_json: options.AsJson = False) -> None:
    """List the models that are known by name, and the architectures that are understood."""
    import corrigenda
    from corrigenda.files import format_bytes

    listing = corrigenda.list_models()

    def draw(console: Console) -> None:
        rows = [(item.name, item.available, item.about) for item in listing.shipped]
        console.print(output.table(("model", "present", "what it is"), rows))
        console.print()
        others = [
            (item.name, item.installed, item.licence, format_bytes(item.size), item.about)
            for item in listing.installable
        ]
        columns = ("model of a package", "installed", "licence", "size", "what it is")
        console.print(output.table(columns, others))
        for item in listing.installable:
            if not item.installed:
                console.print(f"{item.name}: {item.install}", soft_wrap=True)
        console.print()
        families = [(item.name, ", ".join(item.model_types)) for item in listing.families]
        console.print(output.table(("family", "model_type"), families))
        console.print(
            "\nAny model of these families: a folder, a .gguf file, or a name on the Hugging Face "
            "hub.",
            soft_wrap=True,
        )

    data = {
        "shipped": [item._asdict() for item in listing.shipped],
        "installable": [item._asdict() for item in listing.installable],
        "families": [item._asdict() for item in listing.families],
    }
    output.show(data, as_json=as_json, people=draw)
