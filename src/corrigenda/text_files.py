"""Text, JSON and TOML from files of others: read with limits, refused with one plain sentence.

Every function raises `UnreadableText`, a `ValueError`; callers turn it into the coded error of what
they read. Refused are files that are no regular files or too large, other encodings than UTF-8,
NUL, lone surrogates, infinite numbers, integers of more than 100 digits, and deep nesting.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, cast

from pydantic import JsonValue

MOST_BYTES = 1 << 28
"""Largest file that is read, unless the caller allows more: 256 MiB."""
MOST_LEVELS = 64
"""Deepest nesting of lists and tables."""
MOST_DIGITS = 100
"""Longest integer."""

_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_BOM = "\ufeff"
_ESCAPED = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_SHOWN = 40
_AT_ONCE = 1 << 20
_FLAGS: int = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class UnreadableText(ValueError):
    """Text that cannot be read; `str(error)` says why, without a full stop."""


class NotJson(UnreadableText):
    """Text that is no JSON at all.

    Attributes:
        reason: What was expected there.
        line: Line of the text, from 1.
    """

    def __init__(self, error: json.JSONDecodeError) -> None:
        """Describe an error of the decoder."""
        self.reason, self.line = error.msg, error.lineno
        place = f"column {error.colno}"
        if error.lineno > 1:
            place = f"line {error.lineno}, {place}"
        super().__init__(f"not JSON ({error.msg} at {place})")


def read_bytes(path: str | Path, *, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file.

    Raises:
        UnreadableText: it is missing, no regular file, or larger than `most` bytes.
    """
    try:
        # A pipe without a writer would never open.
        handle = os.open(path, os.O_RDONLY | _FLAGS)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UnreadableText(f"{reason}") from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        _check_kind(status)
        content = b""
        try:
            # Files of the system state no size, and a file may grow meanwhile.
            size = max(status.st_size, _AT_ONCE)
            while len(content) <= most and (part := file.read(min(size, most) + 1)):
                content = content + part if content else part
        except OSError as error:
            raise UnreadableText(f"{error.strerror}") from error
    if len(content) > most:
        raise UnreadableText(f"it is larger than {most / 2**20:.4g} MiB")
    return content


def check_plain_file(path: str | Path) -> None:
    """Refuse folders, devices and pipes.

    Raises:
        UnreadableText: it is missing, or no regular file.
    """
    try:
        _check_kind(os.stat(path))
    except OSError as error:
        raise UnreadableText(f"{error.strerror}") from error
    except ValueError as error:
        raise UnreadableText(str(error)) from error


def _check_kind(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        folder = stat.S_ISDIR(status.st_mode)
        raise UnreadableText("it is a folder" if folder else "it is no plain file")


def read_text(path: str | Path, *, most: int = MOST_BYTES) -> str:
    """Return the text of a UTF-8 file, without its byte-order mark; see `decode`."""
    return decode(read_bytes(path, most=most))


def decode(content: bytes) -> str:
    """Return UTF-8 bytes as text, without a byte-order mark.

    Raises:
        UnreadableText: another encoding, or a NUL.
    """
    for mark, name in _MARKS.items():
        if content.startswith(mark):
            raise UnreadableText(f"it is {name}, not UTF-8; save it as UTF-8")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableText(
            f"it is not UTF-8: byte 0x{content[error.start]:02x} at {error.start}"
        ) from error
    if "\0" in text:
        raise UnreadableText(f"it holds a NUL at character {text.index(chr(0))}")
    return text.removeprefix(_BOM)


def read_json(path: str | Path, *, most: int = MOST_BYTES) -> JsonValue:
    """Return what a JSON file holds; see `parse_json`."""
    return parse_json(read_text(path, most=most))


def parse_json(text: str, *, strict: bool = True) -> JsonValue:
    """Return what JSON text holds.

    Args:
        text: The text.
        strict: Refuse infinite numbers, NUL and lone surrogates, which files of this library may
            hold.

    Raises:
        NotJson: it is no JSON.
        UnreadableText: it is beyond the limits of this module.

    Example:
        >>> parse_json('{"layers": [3, 4]}')
        {'layers': [3, 4]}
        >>> parse_json("NaN")
        Traceback (most recent call last):
        corrigenda.text_files.UnreadableText: NaN is no finite number
    """
    try:
        value = cast(
            "JsonValue",
            json.loads(
                text,
                parse_constant=_refuse_constant if strict else float,
                parse_int=_parse_integer,
                parse_float=_parse_number if strict else float,
            ),
        )
    except json.JSONDecodeError as error:
        raise NotJson(error) from error
    except RecursionError:
        raise UnreadableText(f"it is nested deeper than {MOST_LEVELS} levels") from None
    _check_levels(value)
    if strict and _ESCAPED.search(text):
        _check_texts(value)
    return value


def parse_value(text: str) -> JsonValue:
    """Return the value of an option: what JSON text holds, and other text as it is.

    Raises:
        UnreadableText: it is beyond the limits of this module.

    Example:
        >>> parse_value("0.5"), parse_value("l2")
        (0.5, 'l2')
    """
    try:
        return parse_json(text)
    except NotJson:
        return check_text(text)


def parse_json_lines(text: str) -> Iterator[tuple[int, JsonValue | UnreadableText]]:
    """Yield the number of each line that is not blank with its value, or with what is wrong."""
    # Not splitlines: texts hold line separators of Unicode.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except UnreadableText as error:
                yield number, error


def read_toml(path: str | Path, *, most: int = MOST_BYTES) -> dict[str, object]:
    """Return the table of a TOML file; see `parse_toml`."""
    return parse_toml(read_text(path, most=most))


def parse_toml(text: str) -> dict[str, object]:
    """Return the table of TOML text.

    Raises:
        UnreadableText: it is no TOML, or beyond the limits of this module.
    """
    try:
        table = cast("dict[str, object]", tomllib.loads(text, parse_float=_parse_number))
    except RecursionError:
        raise UnreadableText(f"it is nested deeper than {MOST_LEVELS} levels") from None
    except UnreadableText:
        raise
    except ValueError as error:
        raise UnreadableText(f"not TOML ({error})") from error
    _check_levels(table)
    _check_texts(table)
    _check_integers(table)
    return table


def check_text(text: str) -> str:
    """Return text that a tokenizer and a file can take.

    Raises:
        UnreadableText: it holds a NUL or a lone surrogate.
    """
    if "\0" in text:
        raise UnreadableText(f"{_shorten(text)} holds a NUL")
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise UnreadableText(f"{_shorten(text)} holds a lone surrogate, which is no character")
    return text


def _refuse_constant(name: str) -> NoReturn:
    raise UnreadableText(f"{name} is no finite number")


def _parse_integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise UnreadableText(f"an integer of {len(digits)} digits; {MOST_DIGITS} are allowed")
    return int(digits)


def _parse_number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise UnreadableText(f"{digits[:_SHOWN]} is no finite number")
    return value


def _check_levels(value: object) -> None:
    level = [value]
    for _ in range(MOST_LEVELS + 1):
        if not (level := [each for one in level for each in _children(one)]):
            return
    raise UnreadableText(f"it is nested deeper than {MOST_LEVELS} levels")


def _children(value: object) -> list[object]:
    """Return the parts of a list or table that can have parts themselves."""
    if isinstance(value, dict):
        parts = cast("dict[str, object]", value).values()
    elif isinstance(value, list):
        parts = cast("list[object]", value)
    else:
        return []
    return [part for part in parts if isinstance(part, list | dict)]


def _walk(value: object) -> Iterator[object]:
    """Yield all keys and values that have no parts."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            table = cast("dict[str, object]", one)
            left += [*table, *table.values()]
        elif isinstance(one, list):
            left += cast("list[object]", one)
        else:
            yield one


def _check_texts(value: object) -> None:
    for one in _walk(value):
        if isinstance(one, str):
            check_text(one)


def _check_integers(value: object) -> None:
    for one in _walk(value):
        if isinstance(one, int) and one.bit_length() > MOST_DIGITS * math.log2(10):
            raise UnreadableText(f"an integer of more than {MOST_DIGITS} digits")


def _shorten(text: str) -> str:
    return ascii(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
