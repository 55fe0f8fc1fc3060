"""`corrigenda tune`: search the options of a method for a model, and write them as a preset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console

from corrigenda.cli import options, output

if TYPE_CHECKING:
    from corrigenda.tuning.tuned_preset import TunedPreset

_KINDS = {
    "efficacy": "efficacy",
    "paraphrase": "paraphrases",
    "locality": "neighbours kept",
    "same_subject": "same subject kept",
}
_REGIMES = {
    "single": "single",
    "single_in_chat": "single, in chat",
    "at_once": "at once",
    "at_once_in_chat": "at once, in chat",
}


def tune(
    model: options.Model,
    out: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The preset; of several methods a folder, with a file for each.",
            show_default=False,
        ),
    ],
    method: Annotated[
        list[str],
        typer.Option("--method", "-m", help="Editing method; may be repeated."),
    ] = ["rome"],  # noqa: B006 - read, not changed
    budget: Annotated[float, typer.Option(min=0.01, help="Minutes, for all methods.")] = 15.0,
    facts: Annotated[int, typer.Option(min=4, help="Known facts of the search.")] = 24,
    held_out: Annotated[
        int | None,
        typer.Option(min=4, help="Other facts, for the figures; as many if not given."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Most trials; as many as there is time for.")
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Ask in the chat template too; by default where the model has one.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides facts and draws.")] = 0,
    text: options.Text = None,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Search block, strength and length of a method for a model; write them with their evidence.

    The facts are such as the model knows. The first trial is what is used today. A search that was
    killed goes on when it is started again. Use the file with `corrigenda edit --preset FILE`.
    """
    several = len(method) > 1
    if several:
        from corrigenda.files import make_folder

        make_folder(out)
    options.check_folder(out, folder=several)
    import corrigenda

    lm = options.open_model(model, dtype=dtype, device=device)
    found = corrigenda.tune(
        lm,
        method,
        budget=budget,
        facts=facts,
        held_out=held_out,
        trials=trials,
        chat=chat,
        seed=seed,
        corpus=text,
    )
    files = [out / f"{one.method}.toml" if several else out for one in found]
    for one, file in zip(found, files, strict=True):
        one.save(file)
    data = {
        "model": lm.name,
        "presets": [
            {**one.to_json(), "file": str(file)} for one, file in zip(found, files, strict=True)
        ],
    }

    def draw(console: Console) -> None:
        for one, file in zip(found, files, strict=True):
            _draw(console, one, file)

    output.show(data, as_json=as_json, people=draw)


def _draw(console: Console, tuned: TunedPreset, file: Path) -> None:
    console.print(output.table(("option", "value"), [*tuned.options.items()]))
    before = cast("Mapping[str, object]", tuned.evidence["present"])
    rows = [
        (f"{regime}: {kind}", _format(tuned.evidence, key, name), _format(before, key, name))
        for key, regime in _REGIMES.items()
        for name, kind in _KINDS.items()
        if _format(tuned.evidence, key, name)
    ]
    console.print()
    console.print(output.table((f"{tuned.method}, other facts", "found", "before"), rows))
    console.print(f"\n{tuned.source}", soft_wrap=True, markup=False)
    console.print(f"{file}: corrigenda edit ... --preset {file}\n", soft_wrap=True, markup=False)


def _format(figures: Mapping[str, object], regime: str, kind: str) -> str:
    table = cast("Mapping[str, Mapping[str, float]]", figures.get(regime, {}))
    one = table.get(kind)
    if one is None:
        return ""
    ends = f" ({one['low']:.2f} to {one['high']:.2f})" if "low" in one else ""
    return f"{one['value']:.2f}{ends}"
