"""`corrigenda edit`: correct facts, show what changed and what did not, save the patch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text as Line

from corrigenda.cli import options, output
from corrigenda.cli.guarding import check_options, draw_report, run_guard
from corrigenda.cli.progress import announce_loading
from corrigenda.cli.stream import StreamPlace, check_stream, edit_stream
from corrigenda.errors import BadConfig

if TYPE_CHECKING:
    from corrigenda.assessment import Assessment
    from corrigenda.facts import Fact
    from corrigenda.prompt_answers import PromptAnswers

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
    erase: Annotated[
        str | None,
        typer.Option(metavar="ANSWER", help="Forget this answer, instead of --target."),
    ] = None,
    method: options.Method = "rome",
    out: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Save the patch here.")
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
    same_subject: Annotated[
        list[str] | None,
        typer.Option(
            "--same-subject",
            metavar="TEXT",
            help="A prompt about another fact of the subject; may be repeated.",
        ),
    ] = None,
    stream: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Edit the facts of --facts in batches of N, any of which can be taken out again.",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Keep the stream here; a killed command goes on from it."
        ),
    ] = None,
    without: Annotated[
        list[int] | None,
        typer.Option(
            metavar="PLACE",
            help="Take a fact out of the stream, by its place from 0; may be repeated.",
            show_default=False,
        ),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Block to edit; the preset's or one by depth if not given.")
    ] = None,
    preset: options.Preset = None,
    settings: options.Settings = None,
    transform: options.Transforms = None,
    text: options.Text = None,
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
    """Correct facts: answers before and after, the size of the change, and how to undo it.

    The model on disk is never changed. With --guard, what must not change is measured: the verdict
    is free, costly or refused, and a refused edit is not saved. Exit status 1 means that a fact was
    not written, or that the edit was refused.
    """
    check_options(guard, limit, task)
    wanted = _read_wanted(
        *(prompt, subject, target, erase, facts),
        (paraphrase or (), neighbour or (), same_subject or ()),
    )
    config = options.add_preset(options.parse_settings(settings), preset)
    if out is not None:
        options.check_folder(out)
    check_stream(stream, facts, folder, without, transform)
    announce_loading(model)
    import corrigenda
    from corrigenda.catalogue import build_editor
    from corrigenda.cli.memory import announce
    from corrigenda.transforms.registry import parse_transforms

    steps = parse_transforms(transform or ())

    lm = options.open_model(
        model, dtype=dtype, device=device, quantization=quantization, attention=attention
    )
    editor = build_editor(lm, method, layer=layer, **config)
    memory = announce(lm, editor, min(len(wanted), stream or len(wanted)))
    if stream is not None:
        place = StreamPlace(stream, folder, tuple(without or ()), out)
        edit_stream(lm, editor, wanted, place, corpus=text, chat=chat, as_json=as_json)
        return
    assessment = corrigenda.correct(lm, wanted, editor, corpus=text, transforms=steps, chat=chat)
    for line in assessment.notices:
        output.notice(line)
    report = None
    if guard and not assessment.patch.is_empty:
        report = run_guard(lm, assessment.patch, assessment.facts, limit, task, chat)
    refused = report is not None and report.verdict == "refused"
    saved = out if out is not None and not assessment.is_no_op and not refused else None
    if saved is not None:
        assessment.patch.save(saved)
    undo = _explain_undo(model, wanted[0], saved, ships=bool(assessment.changes))
    if refused:
        undo = "The edit was refused and is not saved; the model on disk is unchanged."
    data = {
        "model": lm.name,
        **assessment.to_json(),
        "memory": memory,
        "guard": report.to_json() if report else None,
        "file": str(saved) if saved else None,
        "undo": undo,
    }

    def draw(console: Console) -> None:
        _draw(console, assessment)
        if report is not None:
            draw_report(console, report)
        console.print(Line(undo), soft_wrap=True)

    output.show(data, as_json=as_json, people=draw)
    if refused or not assessment.succeeded:
        raise typer.Exit(output.FINDING)


def _read_wanted(
    prompt: str | None,
    subject: str | None,
    target: str | None,
    erase: str | None,
    file: Path | None,
    related: tuple[Sequence[str], Sequence[str], Sequence[str]],
) -> list[Fact]:
    from corrigenda.facts import Fact, read_facts

    if file is not None:
        if any((prompt, subject, target, erase, *related)):
            raise BadConfig(
                "give a facts file or a single fact, not both.", hint="Drop PROMPT or --facts."
            )
        return read_facts(file)
    if prompt is None or (target is None and erase is None):
        raise BadConfig(
            "what should become true is missing.", hint="Give PROMPT and --target, or --facts FILE."
        )
    fact = Fact(
        prompt=prompt.rstrip(),
        target=(target or "").strip(),
        before=erase,
        erase=erase is not None,
        subject=subject,
        paraphrases=tuple(related[0]),
        neighbours=tuple(related[1]),
        same_subject=tuple(related[2]),
    )
    return [fact]


def _explain_undo(model: str, fact: Fact, saved: Path | None, *, ships: bool) -> str:
    if saved is None:
        return "Nothing was saved, so there is nothing to undo. -o FILE saves the edit."
    ask = shlex.join(["corrigenda", "ask", model, fact.prompt, "--patch", str(saved)])
    text = (
        f"The edit is in {saved} alone; the model on disk is unchanged."
        f" To undo it, stop using the file.\n  with it: {ask}"
    )
    if not ships:
        return f"{text}\n  to ship: the file itself; it changes no weights"
    ship = shlex.join(["corrigenda", "export", str(saved), model])
    return (
        f"{text}\n"
        f"  to ship: {ship} --to merged -o FOLDER (taken back by `corrigenda restore FOLDER`)"
    )


def _draw(console: Console, assessment: Assessment) -> None:
    for index, (fact, outcome, status) in enumerate(
        zip(assessment.facts, assessment.outcomes, assessment.statuses, strict=True)
    ):
        verdict = f"{outcome}; {status}" if status else str(outcome)
        console.print(
            Line.assemble((f"{fact.prompt} ", ""), (fact.target, "bold"), f"  [{verdict}]")
        )
        answers = [item for item in assessment.answers if item.fact == index]
        if answers:
            rows = [(_name_role(item), item.prompt, item.before, item.after) for item in answers]
            console.print(output.table(("", "prompt", "before", "after"), rows))
        console.print()
    _draw_change(console, assessment)


def _name_role(item: PromptAnswers) -> str:
    return f"{item.role}, chat" if item.chat else str(item.role)


def _draw_change(console: Console, assessment: Assessment) -> None:
    if not assessment.is_no_op:
        rows = [
            (size.site, size.relative_norm, size.rank, size.parameters, size.stored)
            for size in assessment.changes
        ]
        columns = ("site", "relative norm", "rank", "parameters", "stored numbers")
        if rows:
            console.print(output.table(columns, rows))
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in assessment.seconds.items())
    console.print(f"{assessment.method}: {seconds}")
