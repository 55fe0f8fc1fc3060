"""Results of `corrigenda book` for people and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from corrigenda.cli import output

if TYPE_CHECKING:
    from corrigenda.books import Book
    from corrigenda.books.checking import BookCheck, BookStatus
    from corrigenda.books.history import Commit, LogEntry
    from corrigenda.books.making import Additions, Refused
    from corrigenda.books.merging import Merge
    from corrigenda.books.moving import Moved
    from corrigenda.facts import Fact
    from corrigenda.lm.model import LanguageModel

_DAY = 10


def list_additions(done: Additions) -> dict[str, object]:
    """Return what was done with facts as plain dictionaries and lists."""
    return {
        "added": [
            {"id": one.id, "number": one.number, "label": one.label, **one.verdict.to_json()}
            for one in done.added
        ],
        "held": [_label(fact) for fact in done.held],
        "present": [_label(fact) for fact in done.present],
        "failed": _list_refused(done.failed),
        "conflicts": _list_refused(done.conflicts),
        "notices": list(done.notices),
    }


def draw_additions(console: Console, done: Additions) -> None:
    """Draw what was done with each fact."""
    rows: list[tuple[str, str, str]] = [
        ("added", one.label, f"{one.name}; {_draw_shares(one.verdict.shares)}")
        for one in done.added
    ]
    rows += [("in the book", _label(fact), "") for fact in done.present]
    rows += [("holds already", _label(fact), "") for fact in done.held]
    for name, refused in (("not true", done.failed), ("contradicts", done.conflicts)):
        rows += [(name, _label(one.facts[0]), one.reason) for one in refused]
    console.print(output.table(("", "fact", ""), rows))


def draw_log(console: Console, entries: Sequence[LogEntry]) -> None:
    """Draw the history of a book."""
    rows = [
        (
            *(entry.correction.name, entry.correction.label, entry.correction.method),
            _describe(entry),
            *_draw_commit(entry.removed or entry.added),
        )
        for entry in entries
    ]
    console.print(output.table(("correction", "fact", "method", "", "when", "author"), rows))


def draw_entry(console: Console, entry: LogEntry) -> None:
    """Draw one correction."""
    one = entry.correction
    rows: list[tuple[str, object]] = [("state", _describe(entry))]
    for fact in one.facts:
        rows += [("prompt", fact.prompt), ("target", fact.target)]
        rows += [("subject", fact.subject)] if fact.subject else []
    rows += [("method", one.method)]
    rows += [(f"  {name}", str(value)) for name, value in one.settings.items()]
    rows += [("patch", one.patch or "none")]
    rows += [("outcome", ", ".join(one.verdict.outcomes))]
    rows += [(f"  {name}", count) for name, count in one.verdict.shares.items()]
    rows += [("guard", one.verdict.guard)] if one.verdict.guard else []
    for name, commit in (("added", entry.added), ("undone", entry.removed)):
        rows += [(name, " ".join(_draw_commit(commit)))] if commit else []
    console.print(output.table((one.name, ""), rows))


def draw_check(console: Console, found: BookCheck) -> None:
    """Draw what was answered now."""
    rows = [
        (
            *(one.correction.name, one.correction.label),
            "holds" if one.verdict.holds else "does not hold",
            _draw_shares(one.verdict.shares),
            "changed" if one.changed else "",
        )
        for one in found.results
    ]
    console.print(output.table(("correction", "fact", "", "wanted answers", ""), rows))
    for one in found.conflicts:
        console.print(f"contradiction: {one.describe()}", markup=False, soft_wrap=True)
    held = sum(one.verdict.holds for one in found.results)
    console.print(f"{held} of {len(found.results)} corrections hold.")


def draw_status(console: Console, found: BookStatus) -> None:
    """Draw the state of a book."""
    fits = {None: "", True: "; the model given is this one", False: "; the model given is another"}
    rows: list[tuple[str, object]] = [
        ("base", f"{found.base_name} ({found.base_digest[:12]}){fits[found.fits]}"),
        ("corrections", f"{found.corrections}, of {found.facts} facts; {found.undone} undone"),
        ("asked", "since the last change" if found.is_checked else "not since the last change"),
    ]
    rows += [
        (title, name)
        for title, names in (
            ("without a patch", found.without_patch),
            ("does not hold", found.failing),
            ("made on others that have gone", found.disturbed),
            ("contradiction", found.conflicts),
            ("damaged", found.problems),
        )
        for name in names
    ]
    console.print(output.table(("", ""), rows))


def draw_merge(console: Console, done: Merge) -> None:
    """Draw what a merge did."""
    rows = [
        (title, one.name, one.label)
        for title, several in (
            ("came in", done.added),
            ("undone", done.undone),
            ("replaced", done.replaced),
            ("left out", done.left_out),
        )
        for one in several
    ]
    console.print(output.table(("", "correction", "fact"), rows))
    console.print(f"{len(done.present)} were in both.")


def draw_move(console: Console, moved: Moved, folder: Path) -> None:
    """Draw what a move did with each correction."""
    rows: list[tuple[str, str, str]] = []
    for title, several in (
        ("made", moved.made),
        ("holds on the new base", moved.held),
        ("there already", moved.present),
    ):
        rows += [(title, one.label, "") for one in several]
    rows += [("not true", _label(one.facts[0]), one.reason) for one in moved.failed]
    console.print(output.table(("", "fact", ""), rows))
    console.print(f"The new book is {folder}.", soft_wrap=True)


def show_answers(
    book: Book,
    lm: LanguageModel,
    prompts: Sequence[str],
    tokens: int,
    *,
    chat: bool,
    as_json: bool,
) -> None:
    """Print the answers of a model without and with a book."""
    import corrigenda

    asked = list(prompts)
    before = corrigenda.answer(lm, asked, max_new_tokens=tokens, chat=chat)
    with book.apply(lm):
        after = corrigenda.answer(lm, asked, max_new_tokens=tokens, chat=chat)
    rows = list(zip(asked, before, after, strict=True))
    replies = [dict(zip(("prompt", "before", "after"), row, strict=True)) for row in rows]
    output.show(
        {"model": lm.name, "book": str(book.folder), "replies": replies},
        as_json=as_json,
        people=lambda console: console.print(
            output.table(("prompt", "without the book", "with it"), rows)
        ),
    )


def _describe(entry: LogEntry) -> str:
    if entry.undone:
        return "undone"
    one = entry.correction
    words = ["holds" if one.verdict.holds else "does not hold"]
    words += [] if one.patch else ["no patch"]
    return "; ".join([*words, *filter(None, [one.verdict.guard])])


def _draw_commit(commit: Commit | None) -> tuple[str, str]:
    return (commit.date[:_DAY], commit.author) if commit else ("not committed", "")


def _draw_shares(shares: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in shares.items())


def _list_refused(refused: Sequence[Refused]) -> list[dict[str, object]]:
    return [
        {"facts": [_label(fact) for fact in one.facts], "reason": one.reason} for one in refused
    ]


def _label(fact: Fact) -> str:
    return f"{fact.prompt} -> {fact.target}"
