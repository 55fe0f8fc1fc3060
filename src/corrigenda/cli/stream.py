"""`corrigenda edit --stream N`: many facts batch by batch, and some of them taken out again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer
from rich.console import Console
from rich.text import Text as Line

from corrigenda.cli import output
from corrigenda.errors import BadConfig

if TYPE_CHECKING:
    from corrigenda.editor import Editor
    from corrigenda.facts import Fact
    from corrigenda.lm.model import LanguageModel
    from corrigenda.streaming.edit_stream import EditStream

_ROWS = 12


class StreamPlace(NamedTuple):
    """What the command was given besides model, method and facts.

    Attributes:
        batch_size: Facts a batch.
        folder: Where the stream is kept.
        without: Places of facts to take out.
        out: Where the patch is saved.
    """

    batch_size: int
    folder: Path | None
    without: tuple[int, ...]
    out: Path | None


def check_stream(
    batch_size: int | None,
    facts: Path | None,
    folder: Path | None,
    without: Sequence[int] | None,
    transforms: Sequence[str] | None,
) -> None:
    """Refuse options that belong to a stream where there is none, and the other way round.

    Raises:
        BadConfig (CG502): they do not go together.
    """
    if batch_size is None:
        if folder is not None or without:
            raise BadConfig(
                "--folder and --without are for a stream of edits.", hint="Give --stream N too."
            )
        return
    if facts is None:
        raise BadConfig("a stream reads its facts from a file.", hint="Give --facts FILE.")
    if transforms:
        raise BadConfig(
            "--transform does not go with --stream.",
            hint="Save the patch with -o, and change it in Python: cg.transform.",
        )


def edit_stream(
    lm: LanguageModel,
    editor: Editor,
    facts: Sequence[Fact],
    place: StreamPlace,
    *,
    corpus: Sequence[Path] | None,
    chat: bool | None,
    as_json: bool,
) -> None:
    """Stream, take out what is not wanted, save the patch, and tell what holds in the end.

    Exit status 1 means that a fact that should hold does not.
    """
    import corrigenda
    from corrigenda.prompt_answers import check_targets
    from corrigenda.streaming.folder import save_removal

    edits = corrigenda.stream(
        lm,
        editor,
        facts,
        batch_size=place.batch_size,
        folder=place.folder,
        corpus=list(corpus) if corpus else None,
        chat=chat,
    )
    if place.without:
        edits = edits.without(place.without)
        if place.folder is not None:
            save_removal(edits, place.folder)
    with edits.apply(lm):
        holds = check_targets(lm, edits.facts)
    if place.out is not None:
        edits.patch.save(place.out)
    data = _describe(lm, edits, holds, place)
    output.show(data, as_json=as_json, people=lambda console: _draw(console, edits, data))
    if data["holding"] != data["wanted"]:
        raise typer.Exit(output.FINDING)


def _describe(
    lm: LanguageModel, edits: EditStream, holds: Sequence[bool], place: StreamPlace
) -> dict[str, object]:
    seconds = sum(batch.seconds for batch in edits.batches)
    wanted = [index for index in range(len(edits)) if index not in edits.gone]
    return {
        "model": lm.name,
        "method": edits.editor.name,
        "facts": len(edits),
        "batches": len(edits.batches),
        "statuses": dict(Counter(edits.statuses)),
        "wanted": len(wanted),
        "holding": sum(holds[index] for index in wanted),
        "taken_out": sorted(edits.gone),
        "seconds": round(seconds, 3),
        "facts_per_second": round(len(edits) / seconds, 3) if seconds else None,
        "folder": None if place.folder is None else str(place.folder),
        "file": None if place.out is None else str(place.out),
    }


def _draw(console: Console, edits: EditStream, data: dict[str, object]) -> None:
    rows = [
        (number, len(batch.facts), len(batch.written), round(batch.seconds, 2))
        for number, batch in enumerate(edits.batches)
    ]
    console.print(output.table(("batch", "facts", "written", "seconds"), rows[-_ROWS:]))
    if len(rows) > _ROWS:
        console.print(Line(f"The last {_ROWS} of {len(rows)} batches."))
    rate = data["facts_per_second"]
    console.print(
        Line(
            f"{data['holding']} of {data['wanted']} facts hold now; {data['method']}, "
            f"{data['seconds']} s" + (f", {rate} facts a second" if rate else "")
        )
    )
    if edits.gone:
        console.print(Line(f"Taken out: {len(edits.gone)} facts; the rest is as without them."))
    if data["folder"]:
        console.print(Line(f"The stream is kept in {data['folder']}."), soft_wrap=True)
    if data["file"]:
        console.print(Line(f"The edits are in {data['file']}, as one patch."), soft_wrap=True)
