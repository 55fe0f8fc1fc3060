"""Corrections of a model as a folder under version control: added, asked again, undone, moved.

Names are imported when they are first used, so that reading a book needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from corrigenda.books.book import Book
    from corrigenda.books.folder import BookFolder
    from corrigenda.books.records import Correction, Verdict

_HOMES = {"Book": "book", "BookFolder": "folder", "Correction": "records", "Verdict": "records"}

__all__ = ["Book", "BookFolder", "Correction", "Verdict"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
