"""The book of `corrigenda fix`: earlier corrections, and those that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from corrigenda.books import Book
    from corrigenda.facts import Fact
    from corrigenda.fixing.fix import FixResult
    from corrigenda.lm.model import LanguageModel


def open_book(folder: Path, lm: LanguageModel) -> Book:
    """Return the book in a folder; a new one where there is none."""
    from corrigenda.books import Book
    from corrigenda.books.book import is_book

    return Book.open(folder) if is_book(folder) else Book.new(folder, lm)


def list_earlier(book: Book | None) -> list[Fact]:
    """Return the facts that a book holds."""
    if book is None:
        return []
    return [fact for one in book.corrections for fact in one.facts]


def keep_in_book(book: Book, lm: LanguageModel, result: FixResult) -> int:
    """Add the patches of a fix to a book, each with the facts that it made true; their number.

    A retry of facts that are in the book already is kept under the facts themselves: a patch that
    was made on top of another follows it.
    """
    from corrigenda.books.records import Verdict

    guard = str(result.report.verdict) if result.report else ""
    kept = 0
    for patch, facts in zip(result.parts, result.owners, strict=False):
        book.add(lm, facts, patch, verdict=Verdict(guard=guard))
        kept += 1
    return kept
