"""What is kept on disk between fits: by content, written in one step, checked when read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from corrigenda.errors import CorruptFile, NewerFormat, WriteFailed
from corrigenda.files import cache_folder, write_text
from corrigenda.state import State
from corrigenda.text_files import parse_json

MOMENTS, TRAINED = "moments", "trained"
"""Folders of the cache that hold states."""

_TEXTS = "texts"


def key(settings: Mapping[str, object]) -> str:
    """Name of everything that a result depends on, as 40 hexadecimal digits."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def path(name: str, folder: str = MOMENTS) -> Path:
    """Where a kept state lies."""
    return cache_folder() / folder / name


def read_state(name: str, folder: str = MOMENTS) -> State | None:
    """A kept state; None where there is none or it is damaged, the latter with a warning."""
    file = path(name, folder)
    if not file.is_file():
        return None
    try:
        return State.load(file)
    except (CorruptFile, NewerFormat) as error:
        warnings.warn(f"{error.message} It is computed again.", stacklevel=2)
        return None


def write_state(name: str, state: State, folder: str = MOMENTS) -> None:
    """Keep a state; where that fails, warn and go on without."""
    _write(path(name, folder), state.save)


def remove_state(name: str, folder: str = MOMENTS) -> None:
    """Forget a kept state."""
    with contextlib.suppress(OSError):
        path(name, folder).unlink(missing_ok=True)


def read_texts(name: str) -> list[str] | None:
    """Kept texts; None where there are none or they are damaged, the latter with a warning."""
    file = path(name, _TEXTS)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        texts = [str(parse_json(line, strict=False)) for line in lines[1:]]
        if not lines or lines[0] != _digest(texts):
            raise ValueError("the checksum does not match")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        warnings.warn(f"{file} is damaged: {error}. It is written again.", stacklevel=2)
        return None
    return texts


def write_texts(name: str, texts: list[str]) -> None:
    """Keep texts under a checksum; where that fails, warn and go on without."""
    content = "\n".join([_digest(texts), *map(json.dumps, texts)])
    _write(path(name, _TEXTS), lambda file: write_text(file, content))


def _digest(texts: list[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _write(file: Path, writer: Callable[[Path], object]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        writer(file)
    except (OSError, WriteFailed) as error:
        warnings.warn(f"The result is not kept for next time: {error}", stacklevel=3)
