"""Files and folders that are written completely or not at all, and the folder of the cache."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Generator
from pathlib import Path

import platformdirs
from safetensors import SafetensorError

from corrigenda.errors import CorrigendaError, WriteFailed
from corrigenda.processes import identify_process, is_running

_VARIABLE = "CORRIGENDA_CACHE"
_counter = itertools.count()
_open: set[str] = set()
# How libraries written in Rust report a failure of the system.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
# Nothing takes a day to write: a temporary file of another machine that old is abandoned.
_ABANDONED_SECONDS = 24 * 3600.0
_FREE_SPACE = "Free some space, or choose another place."
_ELSEWHERE = "Choose another place."
_unusable: set[str] = set()


def cache_folder() -> Path:
    """Folder of the cache: `$CORRIGENDA_CACHE`, else the user's cache folder."""
    chosen = os.environ.get(_VARIABLE)
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("corrigenda"))


def write_atomically(path: str | Path, writer: Callable[[Path], object]) -> Path:
    """Write a file so that at any moment the old or the new one is there, whole.

    The content goes to a temporary neighbour, whose name `.NAME.tmp-...` identifies the process, is
    forced to disk, and then takes the name in one step. A process that is killed leaves at most
    that neighbour; the next write to the same name removes it.

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
        part = _name_temporary(target)
    except ValueError as error:
        raise WriteFailed(f"{str(path)!r} is no name of a file.") from error
    # Where the user may, taking its name would remove a device such as /dev/null.
    # These functions, unlike the methods of a path, are false for names that are too long.
    if os.path.exists(target) and not (os.path.isfile(target) or os.path.isdir(target)):
        raise WriteFailed(f"{path} is no plain file and is not replaced.")
    _open.add(part.name)
    try:
        _remove_stale(target)
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        writer(part)
        _sync(part)
        os.replace(part, target)
        _sync(target.parent)
    except Exception as error:
        failure = explain_failure(path, error)
        if failure is None:
            raise
        raise WriteFailed(failure.message, hint=f"Nothing was changed. {failure.hint}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        _open.discard(part.name)
    return Path(path)


@contextlib.contextmanager
def temporary_folder(target: Path) -> Generator[Path]:
    """Make a folder next to a place, and remove it in the end, also where it was moved from.

    What killed processes left for the same place is removed first.

    Args:
        target: The place, in a folder that exists.

    Raises:
        WriteFailed (CG601): the folder cannot be made, or the code inside could not write.
    """
    part = _name_temporary(target)
    _open.add(part.name)
    try:
        _remove_stale(target)
        part.mkdir()
        yield part
    except Exception as error:
        failure = explain_failure(target, error)
        if failure is None:
            raise
        raise failure from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _open.discard(part.name)


def write_folder(target: Path, writer: Callable[[Path], object]) -> Path:
    """Write a folder so that at any moment it is missing or whole; those above it are made.

    Where another process has written it meanwhile, that one stays.

    Args:
        target: The folder.
        writer: Called with a temporary folder; writes the content there.

    Raises:
        WriteFailed (CG601): it cannot be written. Nothing is left of it.
    """
    make_folder(target.parent)
    with temporary_folder(target) as part:
        writer(part)
        for file in sorted(part.rglob("*")):
            _sync(file)
        try:
            part.rename(target)
        except OSError:
            if not target.is_dir():
                raise
        _sync(target.parent)
    return target


def explain_failure(
    path: str | Path, error: Exception, *, action: str = "written"
) -> WriteFailed | None:
    """Return the coded error of a failure to write, with its cause; None for any other error.

    Args:
        path: The file or folder that was to be written.
        error: What was raised: of the system, or of a library that reports one of the system.
        action: What could not be done with it, a participle.
    """
    code = _find_system_error(error)
    if code is None:
        return None
    path = Path(path)
    obstacle = _find_obstacle(path)
    parent = path.absolute().parent
    match code:
        case errno.ENOSPC | errno.EDQUOT:
            cause, hint = "the disk is full", _FREE_SPACE
        case errno.ENOENT | errno.ENOTDIR | errno.EEXIST | errno.ELOOP if obstacle is not None:
            cause, hint = f"{obstacle} is a file, not a folder", _ELSEWHERE
        case errno.ENOENT if not parent.is_dir():
            cause, hint = f"there is no folder {parent}", "Make the folder first."
        case errno.EISDIR:
            cause, hint = f"{path} is a folder", "Give the name of a file."
        case errno.EACCES | errno.EPERM:
            cause = f"{parent} may not be written to ({os.strerror(code).lower()})"
            hint = "Choose a folder that you may write to."
        case errno.EROFS:
            cause, hint = f"{parent} is on a disk that is read-only", _ELSEWHERE
        case errno.EFBIG:
            cause, hint = "the file would be larger than is allowed here", _ELSEWHERE
        case errno.ENAMETOOLONG:
            cause, hint = "the name is too long", "Give a shorter name."
        case 0:
            cause, hint = str(error).rstrip("."), _ELSEWHERE
        case _:
            cause, hint = os.strerror(code).lower(), _ELSEWHERE
    return WriteFailed(f"{path} could not be {action}: {cause}.", hint=hint)


def check_place(path: str | Path, *, folder: bool = False) -> None:
    """Refuse a place for a result that cannot be written, before any work is done.

    Args:
        path: The file or folder that will be written.
        folder: Whether it is a folder.

    Raises:
        WriteFailed (CG601): its folder does not exist, is a file or cannot be written to, or there
            is a folder where a file is wanted, or the other way round.
    """
    path = Path(path)
    parent = path.absolute().parent
    code = None
    if not parent.is_dir():
        code = errno.ENOENT
    elif path.is_dir() and not folder:
        code = errno.EISDIR
    elif folder and path.exists() and not path.is_dir():
        code = errno.ENOTDIR
    elif not os.access(path if path.is_dir() else parent, os.W_OK):
        code = errno.EACCES
    if code is not None:
        failure = explain_failure(path, OSError(code, os.strerror(code)))
        assert failure is not None
        raise failure


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
        make_folder(path.parent)
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


def is_abandoned(entry: Path) -> bool:
    """Return whether a file or folder is a temporary one whose process has ended."""
    _, mark, suffix = entry.name.partition(".tmp-")
    return entry.name.startswith(".") and bool(mark) and _is_stale(entry, suffix)


def format_bytes(number: int) -> str:
    """Return a number of bytes in words, rounded down.

    Example:
        >>> format_bytes(513 << 20)
        '513 MiB'
    """
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number //= 1024
    return f"{number:,} GiB"


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
        failure = explain_failure(folder, error, action="made")
        assert failure is not None, "an error of the system"
        raise failure from error
    return folder


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _find_system_error(error: BaseException) -> int | None:
    """Return the number of a failure of the system, 0 where it has none; None for other errors."""
    if isinstance(error, CorrigendaError):
        return None
    found = _RUST_ERROR.search(str(error))
    if found:
        return int(found[1])
    if isinstance(error, OSError):
        return error.errno or 0
    return 0 if isinstance(error, SafetensorError) else None


def _find_obstacle(path: Path) -> Path | None:
    """Return the file that is in the place of a folder above a path; the path itself counts too."""
    for place in (path.absolute(), *path.absolute().parents):
        with contextlib.suppress(OSError):
            if place.is_dir():
                return None
            if place.exists():
                return place
    return None


def _name_temporary(target: Path) -> Path:
    """Return a name next to a target that no other process of any machine will ever have."""
    own = identify_process()
    number = next(_counter)
    return target.with_name(f".{target.name}.tmp-{own.machine}-{own.pid}-{own.begun}-{number}")


def _remove_stale(target: Path) -> None:
    """Remove what killed writers of this file left; those of living processes stay."""
    prefix = f".{target.name}.tmp-"
    for entry in target.parent.glob(f"{_escape(prefix)}*"):
        if entry.name in _open or not _is_stale(entry, entry.name.removeprefix(prefix)):
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                entry.unlink()


def _is_stale(entry: Path, suffix: str) -> bool:
    """Return whether the process that made a temporary file or folder has ended."""
    machine, *numbers = suffix.split("-")
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        return False
    pid, begun = int(numbers[0]), int(numbers[1])
    own = identify_process()
    if machine != own.machine:
        return _age(entry) > _ABANDONED_SECONDS
    # What is ours and not open was left by a process that had our number.
    return (pid, begun) == (own.pid, own.begun) or not is_running(pid, begun)


def _age(entry: Path) -> float:
    """Return the seconds since something was last written to a file or into a folder."""
    try:
        times = [item.stat().st_mtime for item in (entry, *entry.rglob("*"))]
    except OSError:
        return 0.0
    return time.time() - max(times)


def _escape(text: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)
