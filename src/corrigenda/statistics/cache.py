"""Cache of fitted states and texts: addressed by content, written atomically, checked when read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

from corrigenda.errors import CorruptFile, NewerFormat
from corrigenda.files import cache_folder, is_cached, write_cached, write_text
from corrigenda.state import State
from corrigenda.text_files import parse_json

MOMENTS, TRAINED = "moments", "trained"
"""Folders of the cache that hold states."""

_TEXTS = "texts"


def hash_settings(settings: Mapping[str, object]) -> str:
    """Return the name of a result: a hash of all that it depends on, 40 hexadecimal digits."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def locate(name: str, folder: str = MOMENTS) -> Path:
    """Return the path of a cached state."""
    return cache_folder() / folder / name


def read_state(name: str, folder: str = MOMENTS) -> State | None:
    """Read a cached state; None if there is none or, with a warning, if it is damaged."""
    file = locate(name, folder)
    if not is_cached(file):
        return None
    try:
        return State.load(file)
    except (CorruptFile, NewerFormat) as error:
        warnings.warn(f"{error.message} It is computed again.", stacklevel=2)
        return None


def write_state(name: str, state: State, folder: str = MOMENTS) -> None:
    """Cache a state; if that fails, warn once and continue."""
    write_cached(locate(name, folder), state.save)


def remove_state(name: str, folder: str = MOMENTS) -> None:
    """Remove a cached state."""
    with contextlib.suppress(OSError):
        locate(name, folder).unlink(missing_ok=True)


def read_texts(name: str) -> list[str] | None:
    """Read cached texts; None if there are none or, with a warning, if they are damaged."""
    file = locate(name, _TEXTS)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        texts = [str(parse_json(line, strict=False)) for line in lines[1:]]
        if not lines or lines[0] != _hash_texts(texts):
            raise ValueError("the checksum does not match")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        warnings.warn(f"{file} is damaged: {error}. It is written again.", stacklevel=2)
        return None
    return texts


def write_texts(name: str, texts: list[str]) -> None:
    """Cache texts under a checksum; if that fails, warn once and continue."""
    content = "\n".join([_hash_texts(texts), *map(json.dumps, texts)])
    write_cached(locate(name, _TEXTS), lambda file: write_text(file, content))


def _hash_texts(texts: list[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
