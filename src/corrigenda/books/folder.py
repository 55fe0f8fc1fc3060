"""The folder of a book: read by anyone, written by one process at a time, whole at any moment.

```
book.toml                  base model and its digest
corrections/0007-ID.json   one correction: facts, method, settings, verdict
patches/ID.safetensors     its patch
undone/0003-ID.json        a correction that was taken out
checked                    state of the book when all corrections were last asked
```

A correction is in the book from the moment its record takes its name, which is after its patch is
there, and out of it from the moment the record is moved to `undone`. What a killed process leaves
besides, a patch without a record or a temporary file, counts for nothing and is removed by the next
process that writes. Two branches of a book merge in git without conflicts: records have names of
their own, and the order is that of their numbers, then of their ids.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from pathlib import Path

from corrigenda.books.conflicts import QuestionIndex
from corrigenda.books.records import (
    BookBase,
    Correction,
    Verdict,
    parse_base,
    parse_correction,
    split_name,
    state_of,
)
from corrigenda.errors import (
    ConflictingCorrections,
    DamagedBook,
    NotABook,
    UnknownCorrection,
)
from corrigenda.files import (
    check_place,
    explain_failure,
    is_abandoned,
    make_folder,
    write_atomically,
    write_text,
)
from corrigenda.run.lock import FolderLock, hold_lock
from corrigenda.text_files import UnreadableText, is_plain_file, read_text

BOOK_FILE = "book.toml"
"""File that makes a folder a book."""

_CORRECTIONS, _PATCHES, _UNDONE, _CHECKED = "corrections", "patches", "undone", "checked"
_ENDING, _PATCH_ENDING = ".json", ".safetensors"
_IGNORED = "lock.*\n.clock-*\n.*.tmp-*\n"
_ATTRIBUTES = "*.safetensors binary\nchecked merge=union\n"
_FEWEST_DIGITS = 4


class BookFolder:
    """A book as files; `corrigenda.books.book.Book` puts it on models.

    Attributes:
        path: The folder.
        base: The model that it corrects.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a book.

        Raises:
            NotABook (CG801): there is none in this folder.
            DamagedBook (CG802), NewerFormat (CG404): its `book.toml` cannot be read.
        """
        self.path = Path(path)
        if not is_book(self.path):
            raise NotABook(
                f"{self.path} is no book: it has no {BOOK_FILE}.",
                hint="Make one: corrigenda book new FOLDER MODEL.",
            )
        file = self.path / BOOK_FILE
        self.base: BookBase = parse_base(_read(file), str(file))
        self._parsed: dict[tuple[str, int, int], Correction] = {}

    @classmethod
    def create(cls, path: str | Path, base: BookBase) -> BookFolder:
        """Make a book without corrections; the folder may exist, as one under git.

        Raises:
            NotABook (CG801): the folder holds a book already.
            WriteFailed (CG601): it cannot be written.
        """
        folder = Path(path)
        check_place(folder, folder=True)
        if is_book(folder):
            raise NotABook(
                f"{folder} holds a book already.",
                hint="Open it, or choose another folder for the new one.",
            )
        make_folder(folder)
        for name, text in ((".gitignore", _IGNORED), (".gitattributes", _ATTRIBUTES)):
            if not (folder / name).exists():
                write_text(folder / name, text)
        for name in (_CORRECTIONS, _PATCHES):
            make_folder(folder / name)
        write_text(folder / BOOK_FILE, base.to_toml())
        return cls(folder)

    @property
    def corrections(self) -> tuple[Correction, ...]:
        """Return the corrections in their order: by number, then by id.

        Raises:
            DamagedBook (CG802): a record cannot be read.
        """
        return self._read_records(_CORRECTIONS)

    @property
    def undone(self) -> tuple[Correction, ...]:
        """Return the corrections that were taken out."""
        kept = {one.id for one in self.corrections}
        return tuple(one for one in self._read_records(_UNDONE) if one.id not in kept)

    @property
    def state(self) -> str:
        """Return a hash of the corrections in their order; empty for none."""
        return state_of(one.id for one in self.corrections)

    @property
    def is_checked(self) -> bool:
        """Return whether all corrections were asked since the book last changed."""
        file = self.path / _CHECKED
        return is_plain_file(file) and self._mark() in _read(file).split()

    def patch_file(self, correction: Correction) -> Path:
        """Return the place of the patch of a correction."""
        return self.path / _PATCHES / f"{correction.id}{_PATCH_ENDING}"

    def record_file(self, correction: Correction, *, undone: bool = False) -> Path:
        """Return the place of the record of a correction."""
        folder = _UNDONE if undone else _CORRECTIONS
        return self.path / folder / f"{correction.name}{_ENDING}"

    def find(self, text: str | int, among: Iterable[Correction] | None = None) -> Correction:
        """Return a correction by its number, its id, or the first digits of its id.

        Args:
            text: Such as 7, "0007", "3fa9c2" or "0007-3fa9c2d1e0b4".
            among: Where to look; the corrections of the book if None.

        Raises:
            UnknownCorrection (CG804): there is none, or there are several.
        """
        known = self.corrections if among is None else tuple(among)
        wanted = str(text).strip().lower().removesuffix(_ENDING)
        found = [one for one in known if wanted in (one.id, one.name)]
        if not found and wanted.isdecimal():
            found = [one for one in known if one.number == int(wanted)]
        if not found and len(wanted) >= _FEWEST_DIGITS:
            found = [one for one in known if one.id.startswith(wanted)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(one.name for one in found)
            raise UnknownCorrection(
                f'"{text}" names {len(found)} corrections.', where=names, hint="Give the id."
            )
        raise UnknownCorrection(
            f'no correction "{text}" is in this book.',
            where=str(self.path),
            hint="`corrigenda book log` lists numbers and ids.",
        )

    def require_new(self, correction: Correction) -> None:
        """Refuse a correction that repeats or contradicts another.

        Raises:
            ConflictingCorrections (CG803): the book answers one of its questions already.
        """
        shared = QuestionIndex(self.corrections).find(correction.facts)
        if not shared:
            return
        lines = "\n    ".join(one.describe() for one in shared if not one.agrees)
        if lines:
            raise ConflictingCorrections(
                f"the book contradicts this correction:\n    {lines}",
                where=str(self.path),
                hint="Undo the other one first: corrigenda book undo ID.",
            )
        names = ", ".join(dict.fromkeys(one.correction.name for one in shared))
        raise ConflictingCorrections(
            f'the book holds "{correction.label}" already: correction {names}.',
            where=str(self.path),
            hint="Nothing is to be added; to make it anew, undo that one first.",
        )

    @contextlib.contextmanager
    def writing(self) -> Generator[FolderLock]:
        """Hold the lock of the book; wait, with a warning, while another process holds it.

        Raises:
            WriteFailed (CG601): the folder cannot be written to.
        """
        with hold_lock(self.path, lambda: False) as lock:
            assert lock is not None, "there is always something to do"
            self._sweep()
            yield lock

    def put(
        self, correction: Correction, write_patch: Callable[[Path], object] | None, lock: FolderLock
    ) -> Correction:
        """Put a correction into the book, after all others; the caller holds the lock.

        Args:
            correction: The correction; its number is given here.
            write_patch: Writes its patch to a place; None where it has none.
            lock: What `writing` gave.

        Raises:
            WriteFailed (CG601): it cannot be written; the book is as it was.
            RunInUse (CG606): another process took the lock over.
        """
        known = [*self.corrections, *self.undone]
        added = correction.with_number(max((one.number for one in known), default=0) + 1)
        for name in (_CORRECTIONS, _PATCHES):
            make_folder(self.path / name)
        lock.check()
        if write_patch is not None:
            write_patch(self.patch_file(added))
        lock.check()
        write_text(self.record_file(added), added.to_text())
        # What was taken out and comes in again is no longer out.
        for old in self._read_records(_UNDONE):
            if old.id == added.id:
                self.record_file(old, undone=True).unlink(missing_ok=True)
        return added

    def take_out(self, correction: Correction, lock: FolderLock) -> None:
        """Take a correction out; the caller holds the lock.

        Raises:
            WriteFailed (CG601): it cannot be moved; the book is as it was.
            RunInUse (CG606): another process took the lock over.
        """
        source, target = self.record_file(correction), self.record_file(correction, undone=True)
        make_folder(target.parent)
        lock.check()
        try:
            os.replace(source, target)
            self.patch_file(correction).unlink(missing_ok=True)
        except OSError as error:
            failure = explain_failure(source, error, action="moved")
            assert failure is not None, "an error of the system"
            raise failure from error

    def undo(self, name: str | int) -> Correction:
        """Take one correction out by its number or id; see `Book.undo` for its errors."""
        with self.writing() as lock:
            correction = self.find(name)
            self.take_out(correction, lock)
        return correction

    def note_verdicts(self, verdicts: Iterable[tuple[Correction, Verdict]], state: str) -> None:
        """Write what was answered into the records where it is new, and note the state asked.

        Args:
            verdicts: Corrections that were asked, with what was answered.
            state: State of the book when it was asked.
        """
        with self.writing() as lock:
            present = {one.id: one for one in self.corrections}
            for correction, verdict in verdicts:
                own = present.get(correction.id)
                if own is not None and own.verdict != verdict:
                    lock.check()
                    changed = replace(own, verdict=verdict)
                    write_text(self.record_file(own), changed.to_text())
            if self.state == state:
                write_text(self.path / _CHECKED, f"{self._mark()}\n")

    def copy_patch(self, correction: Correction, place: Path) -> None:
        """Copy the patch file of a correction.

        Raises:
            DamagedBook (CG802): it is missing.
            WriteFailed (CG601): it cannot be written.
        """
        source = self.patch_file(correction)
        if not is_plain_file(source):
            raise missing_patch(correction, source)
        write_atomically(place, lambda part: shutil.copyfile(source, part))

    def _mark(self) -> str:
        return f"{self.base.digest[:16]}:{self.state or 'empty'}"

    def _read_records(self, name: str) -> tuple[Correction, ...]:
        folder = self.path / name
        found: list[Correction] = []
        if not folder.is_dir():
            return ()
        for entry in os.scandir(folder):
            stem = entry.name.removesuffix(_ENDING)
            if stem == entry.name or split_name(stem) is None:
                continue
            try:
                status = entry.stat()
                key = (f"{name}/{stem}", status.st_mtime_ns, status.st_size)
                if key not in self._parsed:
                    self._parsed[key] = parse_correction(stem, _read(Path(entry.path)), entry.path)
            except FileNotFoundError:
                continue
            found.append(self._parsed[key])
        return tuple(sorted(found, key=lambda one: (one.number, one.id)))

    def _sweep(self) -> None:
        """Remove what killed processes left."""
        kept = {one.id for one in self.corrections}
        for name in ("", _CORRECTIONS, _PATCHES, _UNDONE):
            folder = self.path / name
            for entry in folder.iterdir() if folder.is_dir() else ():
                orphan = name == _PATCHES and (
                    entry.suffix == _PATCH_ENDING and entry.stem not in kept
                )
                if orphan or is_abandoned(entry):
                    with contextlib.suppress(OSError):
                        entry.unlink()


def is_book(path: str | Path) -> bool:
    """Return whether a path is the folder of a book."""
    return is_plain_file(Path(path) / BOOK_FILE)


def missing_patch(correction: Correction, file: Path) -> DamagedBook:
    """Return the error for a patch that is not where it should be."""
    return DamagedBook(
        f"the patch of correction {correction.name} is missing.",
        where=str(file),
        hint="Take the file from the history again: git checkout -- FILE.",
    )


def _read(file: Path) -> str:
    try:
        return read_text(file)
    except UnreadableText as error:
        if not file.exists():
            raise FileNotFoundError(file) from error
        raise DamagedBook(
            f"the file cannot be read: {error}.",
            where=str(file),
            hint="Take it from the history again: git checkout -- FILE.",
        ) from error
