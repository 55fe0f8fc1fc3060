"""Files that are either written completely or not at all, and where those kept for later are."""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import platformdirs
from safetensors import SafetensorError

from corrigenda.errors import WriteFailed

_VARIABLE = "CORRIGENDA_CACHE"
_counter = itertools.count()
_open: set[str] = set()
_unusable: set[str] = set()


def cache_folder() -> Path:
    """Folder of the cache: `$CORRIGENDA_CACHE`, else the user's cache folder."""
    chosen = os.environ.get(_VARIABLE)
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("corrigenda"))


def write_atomically(path: str | Path, writer: Callable[[Path], object]) -> Path:
    """Write a file so that at any moment the old or the new one is there, whole.

    The content goes to a temporary neighbour `.NAME.tmp-PID-N`, is forced to disk, and then takes
    the name in one step. A process that is killed leaves at most that neighbour; the next write to
    the same name removes it.

    Args:
        path: The file to create or replace. A symbolic link is followed.
        writer: Called with the temporary path; writes the content there.

    Returns:
        The path that was written.

    Raises:
        WriteFailed (CG601): the disk is full, the folder is missing or not writable, or any other
            failure of the file system. The old file, if any, is as it was. Errors of `writer` that
            are no failure to write pass through, equally without a trace.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_atomically(folder / "a.txt", lambda part: part.write_text("whole")).read_text()
        'whole'
    """
    try:
        target = Path(os.path.realpath(path))
        part = target.with_name(f".{target.name}.tmp-{os.getpid()}-{next(_counter)}")
    except ValueError as error:
        raise WriteFailed(f"{str(path)!r} is no name of a file.") from error
    # Where the user may, taking its name would remove a device such as /dev/null.
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise WriteFailed(f"{path} is no plain file and is not replaced.")
    _open.add(part.name)
    try:
        _remove_stale(target)
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        writer(part)
        _sync(part)
        os.replace(part, target)
        _sync(target.parent)
    except (OSError, SafetensorError) as error:
        raise WriteFailed(
            f"{path} could not be written: {error}.",
            hint="Nothing was changed. Free some space, or choose another place.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        _open.discard(part.name)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """`write_atomically` for text, in UTF-8 with newlines as given."""
    return write_atomically(path, lambda part: part.write_bytes(text.encode("utf-8")))


def write_cached(path: Path, writer: Callable[[Path], object]) -> None:
    """Write a file of the cache with its folder; where that fails, warn once and continue.

    A cache that is full, read-only or no folder makes work slower, and never wrong: what is not
    cached is computed again.

    Args:
        path: The file.
        writer: Called with the path; writes the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(path)
    except (OSError, WriteFailed) as error:
        folder = str(cache_folder())
        if folder not in _unusable:
            _unusable.add(folder)
            reason = str(error).splitlines()[0]
            warnings.warn(
                f"The cache {folder} cannot be written: {reason} Results are computed again each "
                "time.",
                stacklevel=3,
            )


def is_cached(path: Path) -> bool:
    """Return whether a file of the cache is there and its folder can be read."""
    try:
        return path.is_file()
    except OSError:
        return False


def make_folder(folder: str | Path) -> Path:
    """Make a folder and those above it, where they are missing.

    Raises:
        WriteFailed (CG601): it cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteFailed(f"{folder} could not be made: {error}.") from error
    return folder


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_stale(target: Path) -> None:
    """Remove what killed writers of this file left; those of living processes stay."""
    prefix = f".{target.name}.tmp-"
    for entry in target.parent.glob(f"{_escape(prefix)}*"):
        pid = entry.name.removeprefix(prefix).partition("-")[0]
        if pid.isdecimal() and entry.name not in _open and not _runs(int(pid)):
            with contextlib.suppress(OSError):
                entry.unlink()


def _escape(text: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)


def _runs(pid: int) -> bool:
    """Whether another living process has this id; our own id on a file not ours is a leftover."""
    if pid == os.getpid():
        return False
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
