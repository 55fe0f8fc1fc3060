"""`corrigenda trace`: find where a model stores a fact, by causal tracing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from corrigenda.cli import options, output
from corrigenda.errors import BadConfig, did_you_mean

if TYPE_CHECKING:
    from corrigenda.analysis.causal_trace import CausalTrace, Kind
    from corrigenda.analysis.heatmap import Heatmap


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
    if figure is not None:
        from corrigenda.analysis.heatmap import check_figure

        options.check_folder(figure)
        check_figure(figure)
    kinds = _parse_kinds(kind)
    lm = options.open_model(model, dtype=dtype, device=device)
    from corrigenda.analysis.causal_trace import CAVEAT, Kind, causal_trace

    if subject is None:
        from corrigenda.engines.pocket_world import subject_of

        subject = subject_of(lm, prompt)
    result = causal_trace(
        lm,
        prompt,
        subject,
        answer=target,
        kinds=kinds,
        severed=(Kind.MLP, Kind.ATTENTION) if severed else (),
        window=window,
        samples=samples,
        noise=noise,
        seed=seed,
    )
    maps = _draw_maps(result)
    if figure is not None:
        from corrigenda.analysis.heatmap import save_heatmaps

        save_heatmaps(maps, figure, note=CAVEAT)

    def draw(console: Console) -> None:
        console.print(Text(_summarise(result)))
        for each in maps:
            console.print()
            console.print(each)
        if result.severed:
            console.print()
            console.print(_draw_curves(result))
        console.print()
        console.print(Text(CAVEAT, style="dim"))
        if figure is not None:
            console.print(Text(f"Saved {figure}."))

    saved = {"figure": str(figure)} if figure is not None else {}
    output.show({"model": lm.name, **result.to_json(), **saved}, as_json=as_json, people=draw)


def _parse_kinds(text: str) -> list[Kind]:
    from corrigenda.analysis.causal_trace import Kind

    names = [str(kind) for kind in Kind]
    asked = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in asked:
        if name not in names:
            raise BadConfig(
                f'"{name}" cannot be restored.', where="--kind", hint=did_you_mean(name, names)
            )
    if not asked:
        raise BadConfig("nothing to restore.", where="--kind", hint=f"Known: {', '.join(names)}.")
    return [Kind(name) for name in asked]


def _draw_maps(result: CausalTrace) -> list[Heatmap]:
    from corrigenda.analysis.causal_trace import Kind
    from corrigenda.analysis.heatmap import Heatmap

    titles = {
        Kind.STATE: "state after the block restored",
        Kind.MLP: f"MLP outputs of {result.window} block(s) restored",
        Kind.ATTENTION: f"attention outputs of {result.window} block(s) restored",
    }
    return [
        Heatmap(
            title=titles[kind],
            rows=result.tokens,
            values=tuple(tuple(row) for row in grid.tolist()),
            marked=frozenset(result.subject_tokens),
        )
        for kind, grid in result.effects.items()
    ]


def _draw_curves(result: CausalTrace) -> Heatmap:
    """Draw the effects at the subject's last token: with no path severed, then with each."""
    from corrigenda.analysis.causal_trace import Kind
    from corrigenda.analysis.heatmap import Heatmap

    last = result.subject_tokens[-1]
    rows, values = [], []
    if Kind.STATE in result.effects:
        rows.append("nothing severed")
        values.append(tuple(result.effects[Kind.STATE][last].tolist()))
    for path, curve in result.severed.items():
        rows.append(f"{path} severed")
        values.append(tuple(curve.tolist()))
    return Heatmap(
        title="state restored at the subject's last token", rows=tuple(rows), values=tuple(values)
    )


def _summarise(result: CausalTrace) -> str:
    site = result.early_site()
    place = "the subject's last token" if site.at_subject_last else "not the subject's last token"
    error = float(result.errors[site.kind][site.token, site.layer])
    spread = "" if math.isnan(error) else f" +- {error:.3f}"
    return (
        f'"{result.prompt}" -> "{result.answer}"\n'
        f"probability {result.clean:.3f}, with the subject noised {result.corrupted:.3f} "
        f"(total effect {result.total_effect:.3f}, noise {result.noise:.4g}, "
        f"{result.samples} samples)\n"
        f"early site: block {site.layer}, {site.kind} at {result.tokens[site.token].strip()!r} "
        f"({place}), "
        f"indirect effect {site.effect:.3f}{spread}"
    )
