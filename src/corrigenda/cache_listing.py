"""What the cache holds, in words, and its removal."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from corrigenda.errors import BadConfig, did_you_mean
from corrigenda.files import cache_folder, explain_failure, is_abandoned
from corrigenda.lm.model_names import MODELS_FOLDER, RECORD

KINDS = {
    MODELS_FOLDER: "models made from GGUF files",
    "moments": "second moments of keys",
    "trained": "trained editors",
    "texts": "texts and contexts written by models, and their exams",
    "exams": "facts that models know, for runs",
    "before": "answers of unedited models",
    "harness": "results of unedited models in tasks",
    "digests": "digests of checkpoints",
    "benchmarks": "downloaded files of benchmarks",
    "judged": "verdicts of judges of answers",
    "checksums": "checksums of GGUF files",
    "tuning": "trials of options of methods",
    "speed": "speed of this processor in half precision",
}
"""Folders of the cache, and what they hold. Nothing else in it is ever removed."""


class CacheEntry(NamedTuple):
    """A part of the cache that can be removed.

    Attributes:
        name: Name for `clear_cache`.
        about: Description in a few words.
        files: Number of files.
        size: Bytes of all files.
        written: When a file was last written, in local time.
    """

    name: str
    about: str
    files: int
    size: int
    written: datetime


def list_cache() -> tuple[CacheEntry, ...]:
    """Return what the cache holds: each model, and of everything else one entry for each kind."""
    return tuple(entry for entry, _ in _find_entries())


def clear_cache(name: str | None = None) -> tuple[CacheEntry, ...]:
    """Remove a part of the cache, or all of it; what is needed again is computed again.

    Temporary files of processes that have ended are removed with it.

    Args:
        name: An entry of `list_cache`, or a kind of which several entries are.

    Returns:
        What was removed.

    Raises:
        BadConfig (CG502): there is no such entry.
        WriteFailed (CG601): something cannot be removed.
    """
    found = list(_find_entries())
    chosen = [
        (entry, path)
        for entry, path in found
        if name is None or name in (entry.name, entry.name.partition("/")[0])
    ]
    if name is not None and not chosen:
        names = [entry.name for entry, _ in found]
        hint = did_you_mean(name, names) if names else "The cache is empty."
        raise BadConfig(f'the cache holds nothing called "{name}".', hint=hint)
    for _, path in chosen:
        _remove(path)
    return tuple(entry for entry, _ in chosen)


def _find_entries() -> Iterator[tuple[CacheEntry, Path]]:
    for kind, about in KINDS.items():
        folder = cache_folder() / kind
        if not folder.is_dir():
            continue
        if kind != MODELS_FOLDER:
            entry = _describe(kind, about, folder)
            if entry.files:
                yield entry, folder
            continue
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                if is_abandoned(path):
                    yield _describe(f"{kind}/{path.name}", "left by a killed process", path), path
                continue
            label, detail = _name_model(path)
            yield _describe(f"{kind}/{label}", detail, path), path


def _describe(name: str, about: str, folder: Path) -> CacheEntry:
    files = size = 0
    written = 0.0
    for path in (folder, *folder.rglob("*")):
        # Other processes write and remove files meanwhile.
        with contextlib.suppress(OSError):
            status = path.stat()
            written = max(written, status.st_mtime)
            if path.is_file():
                files, size = files + 1, size + status.st_size
    return CacheEntry(name, about, files, size, datetime.fromtimestamp(written))


def _name_model(folder: Path) -> tuple[str, str]:
    """Return the name of a cached model, and its description."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        return str(record["name"] or record["file"]), f"{record['file']}, as {record['dtype']}"
    except (OSError, ValueError, KeyError, TypeError):
        return folder.name, "damaged"


def _remove(path: Path) -> None:
    """Remove a folder; the temporary files of living processes in it stay."""
    try:
        if path.parent.name == MODELS_FOLDER:
            shutil.rmtree(path)
            return
        for entry in sorted(path.rglob("*"), reverse=True):
            if ".tmp-" in entry.name and not is_abandoned(entry):
                continue
            if entry.is_dir():
                with contextlib.suppress(OSError):
                    entry.rmdir()
            else:
                entry.unlink(missing_ok=True)
    except OSError as error:
        failure = explain_failure(path, error, action="removed")
        assert failure is not None, "an error of the system"
        raise failure from error
