"""`corrigenda trace`: find where a model stores a fact, by causal tracing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from corrigenda.cli import options, output
from corrigenda.cli.progress import announce_loading
from corrigenda.errors import BadConfig, did_you_mean


def trace(
    model: options.Model,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="Text up to the answer.", show_default=False)
    ],
    subject: Annotated[
        str | None,
        typer.Option(
            "--subject", "-s", help="Text to noise; found in the prompt where that is certain."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Answer to follow; the model's own if not given."),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="What to restore: state, mlp, attention; several with commas.")
    ] = "state,mlp,attention",
    window: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Blocks restored at once for mlp and attention; 10 of 48 if not given.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Noise samples.")] = 10,
    noise: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Deviation of the noise; 3 times that of the subject's embeddings if not given.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    severed: Annotated[
        bool,
        typer.Option(
            "--severed", help="Also cut the paths through later MLPs and attentions at the subject."
        ),
    ] = False,
    figure: Annotated[
        Path | None,
        typer.Option(
            "--figure",
            "-o",
            metavar="FILE",
            help="Save the maps (.png, .pdf, .svg).",
            show_default=False,
        ),
    ] = None,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Show where restoring a hidden state restores a fact (causal tracing)."""
    announce_loading(model)
    if figure is not None:
        from corrigenda.analysis.heatmap import check_figure

        options.check_folder(figure)
        check_figure(figure)
    kinds = _parse_kinds(kind)
    import corrigenda

    lm = options.open_model(model, dtype=dtype, device=device)
    result = corrigenda.trace(
        lm,
        prompt,
        subject,
        answer=target,
        kinds=kinds,
        severed=("mlp", "attention") if severed else (),
        window=window,
        samples=samples,
        noise=noise,
        seed=seed,
    )
    plot = result.plot()
    if figure is not None:
        plot.save(figure)

    def draw(console: Console) -> None:
        console.print(plot)
        if figure is not None:
            console.print(Text(f"Saved {figure}."))

    saved = {"figure": str(figure)} if figure is not None else {}
    output.show({"model": lm.name, **result.to_json(), **saved}, as_json=as_json, people=draw)


def _parse_kinds(text: str) -> list[str]:
    """Split a list with commas into what is restored, before a model is loaded."""
    from corrigenda.analysis.trace_effects import Kind

    names = [str(kind) for kind in Kind]
    wanted = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in wanted:
        if name not in names:
            raise BadConfig(
                f'"{name}" cannot be restored.', where="--kind", hint=did_you_mean(name, names)
            )
    if not wanted:
        raise BadConfig("nothing to restore.", where="--kind", hint=f"Known: {', '.join(names)}.")
    return wanted
