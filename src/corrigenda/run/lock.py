"""Lock of a folder: one process at a time works in it, on one host or on several.

The lock is a file in the folder, `lock.000001`, which names host, process and start. Its holder
renews the time of the file (the heartbeat). A lock is stale when its process has ended, where that
can be seen from here, or when its heartbeat has stopped. Then the next process takes the next
number, `lock.000002`, which only one of several can create; no lock is ever replaced. A holder that
was suspended until its lock became stale finds the higher number before it writes.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import socket
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Generator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from corrigenda.errors import CorrigendaError, RunInUse, WriteFailed
from corrigenda.processes import identify_process, read_begun

HEARTBEAT_SECONDS = 5.0
"""Time between two heartbeats."""

STALE_SECONDS = 60.0
"""Time without a heartbeat after which a lock is stale."""

_POLL_SECONDS = 0.5
_PREFIX, _RELEASED = "lock.", "released"
_counter = itertools.count()
_guard = threading.Lock()
_held: weakref.WeakValueDictionary[str, FolderLock] = weakref.WeakValueDictionary()


class LockHolder(BaseModel):
    """The process that holds a lock.

    Attributes:
        host: Name of its host.
        boot: What tells one start of that host from another; empty where unknown.
        space: Name space of its process number, one for each container; empty where unknown.
        pid: Its process number.
        begun: When the process began, in ticks of its host; 0 where unknown.
        since: When it took the lock, UTC.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str = ""
    boot: str = ""
    space: str = ""
    pid: int = 0
    begun: int = 0
    since: str = ""


class FolderLock:
    """A lock that this process holds."""

    def __init__(self, folder: Path, number: int) -> None:
        """Bind to a lock file that this process created, and begin its heartbeat."""
        self._folder, self._number = folder, number
        self._path = _lock_path(folder, number)
        self._ended = threading.Event()
        # A lock that an interrupt lost before it could be released must not keep this process out.
        weakref.finalize(self, self._ended.set)
        _held[str(self._path)] = self
        beat = threading.Thread(target=_beat, args=(self._path, self._ended), daemon=True)
        beat.start()

    def check(self) -> None:
        """Refuse to continue where another process took the lock over.

        Raises:
            RunInUse (CG606): it did, while this process was suspended.
        """
        if _newest(self._folder) != self._number:
            raise RunInUse(
                "another process took this run over while this one was suspended.",
                where=str(self._folder),
                hint="Start it again; what is recorded is not done again.",
            )

    def release(self, *, remove: bool) -> None:
        """Give the lock up.

        Args:
            remove: Whether no process will need a lock of this folder again.
        """
        self._ended.set()
        _held.pop(str(self._path), None)
        with contextlib.suppress(OSError):
            if remove:
                self._path.unlink(missing_ok=True)
            elif _newest(self._folder) == self._number:
                self._path.write_text(_RELEASED, encoding="utf-8")


@contextlib.contextmanager
def hold_lock(folder: Path, is_done: Callable[[], bool]) -> Generator[FolderLock | None]:
    """Hold the lock of a folder; while another process holds it, warn and wait.

    Args:
        folder: The folder; it exists.
        is_done: Whether there is nothing left to do in it; then no lock is taken.

    Raises:
        WriteFailed (CG601): the folder is not writable.
    """
    lock = None
    try:
        lock = _acquire(folder, is_done)
        yield lock
    finally:
        if lock is not None:
            done = False
            with contextlib.suppress(CorrigendaError):
                done = is_done()
            lock.release(remove=done)


def _acquire(folder: Path, is_done: Callable[[], bool]) -> FolderLock | None:
    warned = 0
    while not is_done():
        # Of two threads neither may see a lock file of this process that is not in `_held` yet.
        with _guard:
            number = _newest(folder)
            holder = _find_holder(folder, number) if number else None
            if holder is None:
                lock = _take(folder, number + 1, is_done)
                if lock is not None:
                    return lock
                continue
        if warned != number:
            warnings.warn(_describe(folder, holder), stacklevel=2)
            warned = number
        time.sleep(_POLL_SECONDS)
    return None


def _take(folder: Path, number: int, is_done: Callable[[], bool]) -> FolderLock | None:
    """Create a lock file; None where another process took the lock, or there is nothing to do."""
    if not _create(folder, number):
        return None
    try:
        if _newest(folder) == number and not is_done():
            _remove_older(folder, number)
            return FolderLock(folder, number)
    except BaseException:
        _lock_path(folder, number).unlink(missing_ok=True)
        raise
    _lock_path(folder, number).unlink(missing_ok=True)
    return None


def _create(folder: Path, number: int) -> bool:
    """Create a lock file; False where another process did.

    It takes its name with its content, so that a process that is killed meanwhile leaves no lock
    of an unknown holder, which would count until it is stale.
    """
    own = _identify()
    path = _lock_path(folder, number)
    place = identify_process().machine, own.pid, own.begun, next(_counter)
    part = folder / f".{path.name}.tmp-{'-'.join(map(str, place))}"
    try:
        try:
            part.write_text(own.model_dump_json(), encoding="utf-8")
            os.link(part, path)
        finally:
            part.unlink(missing_ok=True)
    except FileExistsError:
        return False
    except OSError as error:
        if folder.is_dir() and os.access(folder, os.W_OK) and _create_unlinked(path, own):
            return True
        if path.exists():
            return False
        raise WriteFailed(
            f"{folder} cannot be locked: {error}.", hint="Choose another folder."
        ) from error
    return True


def _create_unlinked(path: Path, own: LockHolder) -> bool:
    """Create a lock file on a file system without hard links; False where that fails."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(own.model_dump_json())
    except OSError:
        return False
    return True


def _find_holder(folder: Path, number: int) -> LockHolder | None:
    """Return the process that holds a lock; None where it was released, or is stale."""
    path = _lock_path(folder, number)
    try:
        text = path.read_text(encoding="utf-8")
        age = _server_time(folder) - path.stat().st_mtime
    except FileNotFoundError:
        return None
    if text == _RELEASED:
        return None
    try:
        holder = LockHolder.model_validate_json(text)
    except ValidationError:
        # Created and not yet written, or never.
        holder = LockHolder()
    own = _identify()
    is_here = (holder.host, holder.boot, holder.space) == (own.host, own.boot, own.space)
    if is_here and holder.pid == own.pid and holder.begun == own.begun:
        return holder if str(path) in _held else None
    if is_here and holder.begun:
        # A suspended process holds on: what is seen here needs no heartbeat.
        return holder if read_begun(holder.pid) == holder.begun else None
    return holder if age < STALE_SECONDS else None


def _server_time(folder: Path) -> float:
    """Return the time of the disk's own clock, which may be that of another host."""
    path = folder / f".clock-{socket.gethostname()}-{os.getpid()}-{next(_counter)}"
    try:
        path.touch()
        return path.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _identify() -> LockHolder:
    """Return this process."""
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return LockHolder(**identify_process()._asdict(), since=since)


def _describe(folder: Path, holder: LockHolder) -> str:
    who = f"process {holder.pid} on {holder.host}" if holder.pid else "another process"
    since = f" since {holder.since}" if holder.since else ""
    return f"{who} has been at work in {folder}{since}; waiting for it to end."


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)


def _newest(folder: Path) -> int:
    return max(_list_numbers(folder), default=0)


def _list_numbers(folder: Path) -> list[int]:
    names = [name for name in os.listdir(folder) if name.startswith(_PREFIX)]
    return [int(name.removeprefix(_PREFIX)) for name in names if name[len(_PREFIX) :].isdecimal()]


def _remove_older(folder: Path, number: int) -> None:
    for older in _list_numbers(folder):
        if older < number:
            _lock_path(folder, older).unlink(missing_ok=True)


def _lock_path(folder: Path, number: int) -> Path:
    return folder / f"{_PREFIX}{number:06d}"
