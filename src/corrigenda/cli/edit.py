"""`corrigenda edit`: correct facts, show what changed and what did not, keep the patch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text as Line

from corrigenda.cli import options, output
from corrigenda.errors import BadConfig, MalformedFacts

if TYPE_CHECKING:
    from corrigenda.correction import Correction
    from corrigenda.facts import Fact

Prompt = Annotated[
    str | None,
    typer.Argument(help="Text up to the answer; left out with --facts.", show_default=False),
]
Several = Annotated[list[str] | None, typer.Option(show_default=False)]


def edit(
    model: options.Model,
    prompt: Prompt = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="The answer that should hold.")
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option("--subject", "-s", help="What the fact is about, as written in the prompt."),
    ] = None,
    method: options.Method = "rome",
    out: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Keep the patch here.")
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option("--facts", metavar="FILE", help="Many facts: JSONL, one object a line."),
    ] = None,
    paraphrase: Annotated[
        list[str] | None,
        typer.Option(help="Another wording to ask; may be repeated.", show_default=False),
    ] = None,
    neighbour: Annotated[
        list[str] | None,
        typer.Option(help="A prompt that should keep its answer; may be repeated."),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Block to edit; the preset's or a probed one if not given.")
    ] = None,
    settings: options.Settings = None,
    transform: options.Transforms = None,
    text: options.Text = None,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Correct facts: answers before and after, the size of the change, and how to undo it.

    The model on disk is never changed. Exit status 1 means that a fact did not take.
    """
    wanted = _facts(prompt, subject, target, facts, paraphrase or (), neighbour or ())
    config = options.parse_settings(settings)
    if out is not None:
        options.check_folder(out)
    import corrigenda
    from corrigenda.catalogue import build_editor
    from corrigenda.cli.memory import announce
    from corrigenda.cli.progress import bar
    from corrigenda.transforms.registry import parse_all

    steps = parse_all(transform or ())

    lm = options.open_model(model, dtype=dtype, device=device)
    editor = build_editor(lm, method, layer=layer, **config)
    memory = announce(lm, editor, len(wanted))
    with bar() as progress:
        correction = corrigenda.correct(
            lm,
            wanted,
            method,
            layer=layer,
            corpus=text,
            progress=progress,
            transforms=steps,
            **config,  # type: ignore[arg-type]  # names of arguments are refused by parse_settings
        )
    for line in correction.notices:
        output.notice(line)
    saved = out if out is not None and not correction.is_no_op else None
    if saved is not None:
        correction.patch.save(saved)
    undo = _undo(model, wanted[0], saved, ships=bool(correction.changes))
    data = {
        "model": lm.name,
        **correction.to_json(),
        "memory": memory,
        "file": str(saved) if saved else None,
        "undo": undo,
    }
    output.show(data, as_json=as_json, people=lambda console: _draw(console, correction, undo))
    if not correction.took:
        raise typer.Exit(output.FINDING)


def _facts(
    prompt: str | None,
    subject: str | None,
    target: str | None,
    file: Path | None,
    paraphrases: Sequence[str],
    neighbours: Sequence[str],
) -> list[Fact]:
    from corrigenda.facts import Fact, read_facts

    if file is not None:
        if any((prompt, subject, target, paraphrases, neighbours)):
            raise BadConfig(
                "give a facts file or a single fact, not both.", hint="Drop PROMPT or --facts."
            )
        facts = read_facts(file)
        if not facts:
            raise MalformedFacts(
                "the file holds no facts.",
                where=str(file),
                hint='One JSON object a line: {"prompt": ..., "target": ..., "subject": ...}.',
            )
        return facts
    if prompt is None or target is None:
        raise BadConfig(
            "what should become true is missing.", hint="Give PROMPT and --target, or --facts FILE."
        )
    fact = Fact(
        prompt=prompt.rstrip(),
        target=target.strip(),
        subject=subject,
        paraphrases=tuple(paraphrases),
        neighbours=tuple(neighbours),
    )
    return [fact]


def _undo(model: str, fact: Fact, saved: Path | None, *, ships: bool) -> str:
    if saved is None:
        return "Nothing was kept, so there is nothing to undo. -o FILE keeps the edit."
    ask = shlex.join(["corrigenda", "ask", model, fact.prompt, "--patch", str(saved)])
    kept = (
        f"The edit lives in {saved} alone; the model on disk is unchanged."
        f" To undo it, stop using the file.\n  with it: {ask}"
    )
    if not ships:
        return f"{kept}\n  to ship: the file itself; it changes no weights"
    ship = shlex.join(["corrigenda", "export", str(saved), model])
    return (
        f"{kept}\n"
        f"  to ship: {ship} --to merged -o FOLDER (taken back by `corrigenda revert FOLDER`)"
    )


def _draw(console: Console, correction: Correction, undo: str) -> None:
    for index, (fact, outcome, status) in enumerate(
        zip(correction.facts, correction.outcomes, correction.statuses, strict=True)
    ):
        verdict = f"{outcome}; {status}" if status else str(outcome)
        console.print(
            Line.assemble((f"{fact.prompt} ", ""), (fact.target, "bold"), f"  [{verdict}]")
        )
        answers = [item for item in correction.answers if item.fact == index]
        if answers:
            rows = [(item.role, item.prompt, item.before, item.after) for item in answers]
            console.print(output.table(("", "prompt", "before", "after"), rows))
        console.print()
    _draw_change(console, correction)
    console.print(Line(undo), soft_wrap=True)


def _draw_change(console: Console, correction: Correction) -> None:
    if not correction.is_no_op:
        rows = [
            (size.site, size.relative_norm, size.rank, size.parameters, size.stored)
            for size in correction.changes
        ]
        columns = ("site", "relative norm", "rank", "parameters", "stored numbers")
        if rows:
            console.print(output.table(columns, rows))
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in correction.seconds.items())
    console.print(f"{correction.method}: {seconds}")
