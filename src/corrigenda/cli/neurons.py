"""`corrigenda neurons`: find the inner units that express an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from corrigenda.cli import options, output
from corrigenda.errors import BadConfig, did_you_mean
from corrigenda.progress import report_stage

if TYPE_CHECKING:
    from rich.table import Table

    from corrigenda.analysis.knowledge_neurons import NeuronAttribution
    from corrigenda.engines.attribution import Objective

_ATTRIBUTING = "attribution"
_OBJECTIVES: dict[str, Objective] = {
    "probability": "probability",
    "log-probability": "log-probability",
}


def neurons(
    model: options.Model,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="Text up to the answer.", show_default=False)
    ],
    subject: Annotated[
        str | None,
        typer.Option(
            "--subject",
            "-s",
            help="Look at the last token of this text; where the answer is read if not given.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Answer to attribute; the model's own if not given."),
    ] = None,
    paraphrase: Annotated[
        list[str] | None,
        typer.Option(
            "--paraphrase",
            help="Another phrasing; may be repeated. Without any, the prompt after prefixes that "
            "the model writes.",
            show_default=False,
        ),
    ] = None,
    single: Annotated[
        bool, typer.Option("--single", help="The prompt alone: nothing is refined.")
    ] = False,
    threshold: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Least attribution, as a share of the largest."),
    ] = 0.2,
    share: Annotated[
        float, typer.Option(help="Share of the phrasings a neuron must occur in.")
    ] = 0.7,
    steps: Annotated[int, typer.Option(min=1, help="Points of the integral.")] = 20,
    objective: Annotated[
        str, typer.Option(help="What is attributed: probability or log-probability.")
    ] = "probability",
    top: Annotated[int, typer.Option(min=1, help="Most neurons to list.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the prefixes.")] = 0,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """List the inner units that express an answer, by integrated gradients (knowledge neurons)."""
    if single and paraphrase:
        raise BadConfig("a single prompt has no paraphrases.", where="--single")
    attributed = _OBJECTIVES.get(objective)
    if attributed is None:
        raise BadConfig(
            f'"{objective}" cannot be attributed.',
            where="--objective",
            hint=did_you_mean(objective, list(_OBJECTIVES)),
        )
    import corrigenda

    lm = options.open_model(model, dtype=dtype, device=device)
    report_stage(_ATTRIBUTING, 0, 1)
    result = corrigenda.neurons(
        lm,
        prompt,
        answer=target,
        subject=subject,
        paraphrases=[] if single else paraphrase or None,
        threshold=threshold,
        share=share,
        steps=steps,
        objective=attributed,
        seed=seed,
    )
    report_stage(_ATTRIBUTING, 1, 1)

    def draw(console: Console) -> None:
        console.print(Text(result.summary()))
        console.print()
        console.print(_draw_layers(result))
        if result.neurons:
            console.print()
            console.print(_draw_neurons(result, top))

    output.show({"model": lm.name, **result.to_json()}, as_json=as_json, people=draw)


def _draw_layers(result: NeuronAttribution) -> Table:
    rows = [
        (layer, total, sum(one.layer == layer for one in result.neurons))
        for layer, total in enumerate(result.by_layer())
    ]
    return output.table(["block", "attribution of all units", "neurons"], rows)


def _draw_neurons(result: NeuronAttribution, top: int) -> Table:
    listed = result.strongest(top)
    left = len(result.neurons) - len(listed)
    rows = [(one.layer, one.unit, result.score(one)) for one in listed]
    title = f"the strongest {len(listed)}, {left} more" if left else ""
    return output.table(["block", "unit", "attribution"], rows, title=title)
