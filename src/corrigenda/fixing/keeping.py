"""Corrections of a fix kept in a book, each fact by itself where the edit can be taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from corrigenda.books.book import Book, is_book
from corrigenda.books.patches import make_independent, require_value
from corrigenda.books.records import Verdict
from corrigenda.fixing.understanding import Fate
from corrigenda.guarding.causes import split_patch
from corrigenda.patch.compare import add_up

if TYPE_CHECKING:
    from corrigenda.facts import Fact
    from corrigenda.fixing.fix import FixResult
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch import PatchValue


def open_book(folder: str | Path, lm: LanguageModel) -> Book:
    """Return the book in a folder; a new one where there is none.

    Raises:
        DamagedBook (CG802): its `book.toml` cannot be read.
        WriteFailed (CG601): a new one cannot be written.
    """
    return Book.open(folder) if is_book(folder) else Book.new(folder, lm)


def list_earlier(book: Book | None) -> list[Fact]:
    """Return the facts that a book holds."""
    if book is None:
        return []
    return [fact for one in book.corrections for fact in one.facts]


def keep_in_book(book: Book, lm: LanguageModel, result: FixResult) -> int:
    """Add what a fix made true to a book, and return the number of corrections.

    Facts that failed are left out, unless their part of the edit cannot be told from the others.

    Args:
        book: The book, which was active while the fix was made.
        lm: The model, without patches.
        result: The fix.

    Raises:
        WrongBase (CG401), ConflictingCorrections (CG803), WriteFailed (CG601): as `Book.add`.
    """
    if result.patch is None:
        return 0
    made = {id(one.fact) for one in result.lines if one.fate is Fate.CORRECTED}
    guard = str(result.report.verdict) if result.report else ""
    kept = 0
    for facts, patch in split_by_fact(result.parts, result.owners):
        true = [fact for fact in facts if id(fact) in made]
        if true:
            outcomes = ("succeeded",) * len(true)
            book.add(lm, true, patch, verdict=Verdict(outcomes=outcomes, guard=guard))
            kept += 1
    return kept


def split_by_fact(
    patches: Sequence[PatchValue], owners: Sequence[Sequence[Fact]]
) -> list[tuple[tuple[Fact, ...], PatchValue]]:
    """Return the parts of an edit with the facts that they are for; together they are the edit.

    Facts stay together where a patch that was made for all of them cannot be taken apart.

    Args:
        patches: The edit, and retries on top of it.
        owners: The facts of each; those of the first are all facts.
    """
    facts = list(owners[0])
    groups = {place: place for place in range(len(facts))}
    pieces: list[tuple[int, PatchValue]] = []
    for number, (patch, own) in enumerate(zip(patches, owners, strict=True)):
        # A retry was made on top of the edit, which is part of the same sum.
        free = make_independent(patch) if number else patch
        places = [next(at for at, one in enumerate(facts) if one is fact) for fact in own]
        parts = split_patch(free, len(own))
        if parts:
            pieces += zip(places, map(require_value, parts), strict=True)
            continue
        pieces.append((places[0], free))
        joined = {groups[place] for place in places}
        groups = {at: min(joined) if one in joined else one for at, one in groups.items()}
    found: list[tuple[tuple[Fact, ...], PatchValue]] = []
    for group in sorted(set(groups.values())):
        members = [at for at, one in groups.items() if one == group]
        own_pieces = [one for place, one in pieces if place in members]
        found.append((tuple(facts[at] for at in members), add_up(own_pieces)))
    return found
