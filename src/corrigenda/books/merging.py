"""Two books of one base become one; what contradicts is named and left to the caller."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from typing import NamedTuple

from corrigenda.books.conflicts import QuestionIndex, SharedQuestion
from corrigenda.books.folder import BookFolder
from corrigenda.books.records import Correction
from corrigenda.errors import ConflictingCorrections, WrongBase


class Keep(StrEnum):
    """Which of two corrections that contradict each other stays."""

    OURS = "ours"
    """Those of the book that is written."""
    THEIRS = "theirs"
    """Those of the other book."""


class Merge(NamedTuple):
    """What a merge did.

    Attributes:
        added: Corrections that came in, with their new numbers.
        present: Corrections that both books had.
        undone: Corrections that one of the two had taken out, and which are out now.
        left_out: Corrections of the other book that contradict one that stayed, or repeat it.
        replaced: Corrections that were taken out for one of the other book.
    """

    added: tuple[Correction, ...]
    present: tuple[Correction, ...]
    undone: tuple[Correction, ...]
    left_out: tuple[Correction, ...]
    replaced: tuple[Correction, ...]

    def to_json(self) -> dict[str, list[str]]:
        """Return the names of the corrections."""
        return {name: [one.name for one in found] for name, found in self._asdict().items()}


def merge_books(ours: BookFolder, theirs: BookFolder, keep: Keep | None = None) -> Merge:
    """Take the corrections of another book into this one; see `Book.merge`."""
    _require_same_base(ours, theirs)
    with ours.writing() as lock:
        own = {one.id: one for one in ours.corrections}
        others = {one.id: one for one in theirs.corrections}
        out = {one.id for one in (*ours.undone, *theirs.undone)}
        present = tuple(one for one in own.values() if one.id in others)
        undone = [one for one in own.values() if one.id in out]
        index = QuestionIndex(one for one in own.values() if one.id not in out)
        new = [one for one in others.values() if one.id not in own and one.id not in out]
        shared = {one.id: index.find(one.facts) for one in new}
        repeated = [one for one in new if shared[one.id] and _repeats(one, shared[one.id])]
        against = [one for one in new if shared[one.id] and one not in repeated]
        if against and keep is None:
            lines = "\n    ".join(found.describe() for one in against for found in shared[one.id])
            raise ConflictingCorrections(
                f"{len(against)} correction(s) of the other book contradict this one:\n    {lines}",
                where=f"{theirs.path} into {ours.path}",
                hint="Nothing was changed. Keep one side (--keep ours, --keep theirs), or undo "
                "one of each pair first.",
            )
        replaced = (
            {found.correction.id: found.correction for one in against for found in shared[one.id]}
            if keep is Keep.THEIRS
            else {}
        )
        left_out = repeated if keep is Keep.THEIRS else [*repeated, *against]
        for one in (*undone, *replaced.values()):
            ours.take_out(one, lock)
        added = [
            ours.put(one, partial(theirs.copy_patch, one) if one.patch else None, lock)
            for one in new
            if one not in left_out
        ]
    return Merge(*(tuple(added), present, tuple(undone), tuple(left_out), tuple(replaced.values())))


def _repeats(correction: Correction, shared: Sequence[SharedQuestion]) -> bool:
    """Return whether each fact of a correction is in the other book with the same answer."""
    same = [one.fact for one in shared if one.agrees]
    return all(one.agrees for one in shared) and all(fact in same for fact in correction.facts)


def _require_same_base(ours: BookFolder, theirs: BookFolder) -> None:
    if ours.base.digest != theirs.base.digest:
        raise WrongBase(
            f"the books correct different models: {ours.base.name} ({ours.base.digest[:12]}) and "
            f"{theirs.base.name} ({theirs.base.digest[:12]}).",
            where=f"{theirs.path} into {ours.path}",
            hint="Move one of them first: corrigenda book move --to MODEL.",
        )
