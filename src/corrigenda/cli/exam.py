"""`corrigenda exam`: which facts of the almanac a model knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from corrigenda.cli import options, output

if TYPE_CHECKING:
    from corrigenda.almanac.exam import ExamEdit

_SHOWN = 3


def exam(
    model: options.Model,
    sample: Annotated[
        int | None,
        typer.Option("--sample", min=1, help="Ask for this many facts; all if not given."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which facts are in a sample.")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Ask in the model's chat template.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Keep the known facts here, for PocketEdit."
        ),
    ] = None,
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Ask a model for the facts of the almanac, and show which it knows.

    A fact is known where two phrasings or more are answered right. The answers are kept, so that
    an exam that was stopped goes on; edits of known facts are what `tune` and PocketEdit need.
    """
    if out is not None:
        options.check_folder(out)
    import corrigenda
    from corrigenda.knowledge.exam import write_known_facts

    lm = options.open_model(model, dtype=dtype, device=device)
    known = corrigenda.exam(lm, sample, seed=seed, chat=chat)
    if out is not None:
        write_known_facts(known, out)
    rows = known.by_relation()
    cases = known.cases(_SHOWN)
    data = {
        "model": lm.name,
        "digest": known.digest,
        "chat": chat,
        "asked": len(known.asked),
        "known": len(known),
        "relations": [row._asdict() for row in rows],
        "facts": [one._asdict() for one in known.triples()],
        "file": str(out) if out else None,
    }

    def draw(console: Console) -> None:
        shown = [(f"{row.relation} {row.name}", row.asked, row.known) for row in rows if row.known]
        console.print(output.table(("relation", "asked", "known"), shown))
        console.print(f"\n{lm.name} knows {len(known):,} of {len(known.asked):,} facts")
        for case in cases:
            console.print(_describe(case), soft_wrap=True, markup=False)

    output.show(data, as_json=as_json, people=draw)


def _describe(case: ExamEdit) -> str:
    fact = case.fact
    return f"  such as: {fact.prompt} {fact.before}"
