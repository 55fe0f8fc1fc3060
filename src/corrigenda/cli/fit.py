"""`corrigenda fit`: fit what a method needs to know about a model, once, into the cache."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from corrigenda.cli import options, output
from corrigenda.cli.progress import announce_loading
from corrigenda.errors import BadConfig


def fit(
    model: options.Model,
    method: options.Method = "memit",
    text: options.Text = None,
    training_set: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Facts for a method that is trained, one JSON object a line. A pocket model has "
            "its own.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Keep the fitted state here as well."),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Block to edit; the preset's or one by depth if not given.")
    ] = None,
    preset: options.Preset = None,
    settings: options.Settings = None,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    quantization: options.Quantization = None,
    attention: options.Attention = None,
    as_json: options.AsJson = False,
) -> None:
    """Fit what a method needs to know about a model; `edit` does this by itself when it has to."""
    config = options.add_preset(options.parse_settings(settings), preset)
    if text is not None and training_set is not None:
        raise BadConfig("a method learns from text or from facts.", where="--training-set")
    if out is not None:
        options.check_folder(out)
    announce_loading(model)
    import corrigenda
    from corrigenda.catalogue import build_editor
    from corrigenda.cli.memory import announce

    lm = options.open_model(
        model, dtype=dtype, device=device, quantization=quantization, attention=attention
    )
    editor = build_editor(lm, method, layer=layer, **config)
    memory = announce(lm, editor, 1, fit_only=True)
    start = time.perf_counter()
    state = corrigenda.fit(lm, editor, corpus=training_set or text)
    seconds = time.perf_counter() - start
    if out is not None:
        state.save(out)
    shapes = {name: list(tensor.shape) for name, tensor in state.tensors.items()}
    data = {
        "model": lm.name,
        "method": method,
        "tensors": shapes,
        "meta": dict(state.meta),
        "memory": memory,
        "seconds": seconds,
        "file": str(out) if out else None,
    }

    def draw(console: Console) -> None:
        rows = [(name, " x ".join(map(str, shape))) for name, shape in shapes.items()]
        if rows:
            console.print(output.table(("fitted", "shape"), rows))
        else:
            console.print(f"{method} needs no statistics.")
        console.print(f"{method} on {lm.name}: {seconds:.1f} s")

    output.show(data, as_json=as_json, people=draw)
