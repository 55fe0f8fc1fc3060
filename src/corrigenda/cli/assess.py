"""`corrigenda assess`: what a saved patch does to a model, also with quantised weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from corrigenda.cli import options, output
from corrigenda.cli.guarding import check_options, draw_report, run_guard

if TYPE_CHECKING:
    from corrigenda.assessment import Assessment
    from corrigenda.exports.survival import Survival


def assess(
    patch: Annotated[Path, typer.Argument(metavar="PATCH", show_default=False)],
    model: options.Model,
    facts: Annotated[
        Path | None,
        typer.Option(
            "--facts", metavar="FILE", help="Facts to ask; those of the patch if not given."
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE,...",
            help="Ask again after quantising the weights: bf16, f16, q8_0, q5_1, q5_0, q4_1, "
            "q4_0; or after a short fine-tuning on ordinary text: fine-tuned.",
            show_default=False,
        ),
    ] = None,
    guard: options.Guard = False,
    limit: options.Limits = None,
    task: options.Tasks = None,
    chat: options.Chat = None,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    quantization: options.Quantization = None,
    attention: options.Attention = None,
    as_json: options.AsJson = False,
) -> None:
    """Ask the facts of a patch with and without it; also when weights are quantised (--after).

    Quantised weights meet a patch in two ways: it is merged before they are quantised ("merged"),
    or added at run time to quantised weights ("adapter", as llama.cpp does with --lora); there
    facts are asked in plain form. With --guard, what must not change is measured too: the verdict
    is free, costly or refused. Exit status 1 means that a fact is not true somewhere, or a refusal.
    """
    check_options(guard, limit, task)
    import corrigenda

    loaded = options.open_patch(patch)
    wanted = None if facts is None else corrigenda.read_facts(facts)
    lm = options.open_model(
        model, dtype=dtype, device=device, quantization=quantization, attention=attention
    )
    assessment = corrigenda.assess(lm, loaded, wanted, chat=chat)
    types = [one.strip() for one in after.split(",")] if after else []
    survivals = corrigenda.assess_after(lm, loaded, types, wanted) if types else ()
    report = run_guard(lm, loaded, assessment.facts, limit, task, chat) if guard else None
    data = {
        "patch": str(patch),
        "model": lm.name,
        **assessment.to_json(),
        "after": [one.to_json() for one in survivals],
        "guard": report.to_json() if report else None,
    }

    def draw(console: Console) -> None:
        _draw(console, assessment, survivals)
        if report is not None:
            draw_report(console, report)

    output.show(data, as_json=as_json, people=draw)
    refused = report is not None and report.verdict == "refused"
    true = all(one.succeeded for one in (assessment, *(item.assessment for item in survivals)))
    if refused or not true:
        raise typer.Exit(output.FINDING)


def _draw(console: Console, assessment: Assessment, survivals: tuple[Survival, ...]) -> None:
    console.print(repr(assessment), markup=False, soft_wrap=True)
    if not survivals:
        return
    rows: list[tuple[object, ...]] = [
        ("as loaded", "", *_list_shares(assessment), None),
        *(
            (str(one.weights), str(one.placing), *_list_shares(one.assessment), one.unedited_kept)
            for one in survivals
        ),
    ]
    columns = ("weights", "patch", "efficacy", "paraphrases", "neighbours kept", "kept unedited")
    console.print(output.table(columns, rows))
    for one in survivals:
        for prompt in one.failed:
            console.print(f"{one.weights}, {one.placing}: not true: {prompt}", markup=False)


def _list_shares(assessment: Assessment) -> tuple[float | None, ...]:
    return tuple(assessment.share(role) for role in ("prompt", "paraphrase", "neighbour"))
