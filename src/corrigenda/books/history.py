"""Author and date of each correction, read from the git repository around a book."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from corrigenda.books.folder import BookFolder
from corrigenda.books.records import Correction

_SECONDS = 60
# Nothing that a repository's own settings name is run: no pager, hook, monitor, filter or signature
# program. Reading the log needs none of them.
_PLAIN = (
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.quotePath=off",
)
_MARK = "\x1e"


class Commit(NamedTuple):
    """A commit: its hash, the name of its author, and when it was written (ISO 8601)."""

    hash: str
    author: str
    date: str


class LogEntry(NamedTuple):
    """One correction in the history of a book.

    Attributes:
        correction: The correction.
        undone: Whether it was taken out.
        added: Commit in which it came in; None where it is not committed, or there is no git.
        removed: Commit in which it was taken out.
    """

    correction: Correction
    undone: bool
    added: Commit | None
    removed: Commit | None

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists."""
        one = self.correction
        return {
            "id": one.id,
            "number": one.number,
            "label": one.label,
            "method": one.method,
            "has_patch": bool(one.patch),
            "holds": one.verdict.holds,
            "undone": self.undone,
            "added": self.added._asdict() if self.added else None,
            "removed": self.removed._asdict() if self.removed else None,
        }


def read_log(folder: BookFolder) -> tuple[LogEntry, ...]:
    """Return every correction that is in a book or was taken out, by number."""
    commits = read_commits(folder.path)
    found: list[LogEntry] = []
    for undone, corrections in ((False, folder.corrections), (True, folder.undone)):
        for one in corrections:
            place = folder.record_file(one).relative_to(folder.path).as_posix()
            taken = folder.record_file(one, undone=True).relative_to(folder.path).as_posix()
            removed = commits.get(taken) if undone else None
            found.append(LogEntry(one, undone, commits.get(place), removed))
    return tuple(sorted(found, key=lambda one: (one.correction.number, one.correction.id)))


def read_commits(folder: Path) -> dict[str, Commit]:
    """Return the commit that last added each file, by its path in a folder; none without git."""
    command = [
        *("git", *_PLAIN, "--no-pager", "log", "--no-show-signature", "--no-ext-diff"),
        *("--no-textconv", "--no-renames", "--no-color", "--diff-filter=A", "--name-only", "-m"),
        *("--relative", f"--format={_MARK}%H%x1f%an%x1f%aI", "--", "."),
    ]
    try:
        ran = subprocess.run(
            command, cwd=folder, capture_output=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    if ran.returncode:
        return {}
    found: dict[str, Commit] = {}
    for commit, path in _parse(ran.stdout.decode("utf-8", errors="replace")):
        found.setdefault(path, commit)
    return found


def _parse(text: str) -> Iterator[tuple[Commit, str]]:
    """Yield each added file with its commit, the latest first."""
    for part in text.split(_MARK)[1:]:
        head, *names = part.splitlines()
        fields = head.split("\x1f")
        if len(fields) == len(Commit._fields):
            yield from ((Commit(*fields), name) for name in names if name)
