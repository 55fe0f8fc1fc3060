"""`corrigenda methods` and `corrigenda models`: what there is."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from corrigenda.cli import options, output


def methods(
    model: Annotated[
        str | None,
        typer.Option("--model", help="Count the parameters that each method changes or adds."),
    ] = None,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Compare the methods: family, training, batches, the part edited, parameters changed."""
    import corrigenda

    lm = options.open_model(model, dtype=dtype, device=device) if model else None
    rows = corrigenda.list_methods(lm)

    def draw(console: Console) -> None:
        columns = ["method", "family", "training", "batch", "area edited", "parameters"]
        cells = [
            (
                *(row.name, row.family, row.training, row.batch, row.area),
                row.formula if row.parameters is None else row.parameters,
            )
            for row in rows
        ]
        table = output.table(columns, cells)
        # A name is typed back, so it stays in one piece.
        table.columns[0].no_wrap = True
        console.print(table)

    output.show(
        {"model": lm.name if lm else None, "methods": [row._asdict() for row in rows]},
        as_json=as_json,
        people=draw,
    )


def models(as_json: options.AsJson = False) -> None:
    """List the models that come with the package and the architectures that are understood."""
    import corrigenda

    listing = corrigenda.list_models()

    def draw(console: Console) -> None:
        rows = [(item.name, item.available, item.about) for item in listing.shipped]
        console.print(output.table(("model", "present", "what it is"), rows))
        console.print()
        families = [(item.name, ", ".join(item.model_types)) for item in listing.families]
        console.print(output.table(("family", "model_type"), families))
        console.print("\nAny model of these families: a folder, or a name on the Hugging Face hub.")

    data = {
        "shipped": [item._asdict() for item in listing.shipped],
        "families": [item._asdict() for item in listing.families],
    }
    output.show(data, as_json=as_json, people=draw)
