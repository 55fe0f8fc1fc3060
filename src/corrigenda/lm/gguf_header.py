"""The header of a GGUF file, read without its weights: what it holds, and whether it is whole.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. The packages
that read weights take a minute before they fail, with an error of their own; this takes
milliseconds and names the fault.
"""

from __future__ import annotations

import mmap
import struct
from math import prod
from pathlib import Path
from typing import NamedTuple

from corrigenda.errors import CorruptFile, UnknownModel

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"} | {
    10: "Q",
    11: "q",
    12: "d",
}

Value = int | float | bool | str


class GgufTensor(NamedTuple):
    """One tensor of a file: its shape as GGUF writes it, the last axis first, and its type."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufHeader(NamedTuple):
    """What a GGUF file says about itself.

    Attributes:
        values: Its settings; of a list the number of entries.
        tensors: Its tensors, in the order of the file.
        start: Byte at which the weights begin.
        size: Bytes of the file.
    """

    values: dict[str, Value]
    tensors: tuple[GgufTensor, ...]
    start: int
    size: int

    @property
    def architecture(self) -> str:
        """Name of the architecture; empty where the file states none."""
        return str(self.values.get("general.architecture", ""))

    def setting(self, name: str) -> Value | None:
        """Return a setting of the architecture; None where the file states none."""
        return self.values.get(f"{self.architecture}.{name}")

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    @property
    def num_entries(self) -> int:
        """Number of entries of the tokenizer's lists."""
        lists = ("tokens", "scores", "token_type", "merges")
        counts = (self.values.get(f"tokenizer.ggml.{name}", 0) for name in lists)
        return sum(count for count in counts if isinstance(count, int))


def read_header(file: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises:
        CorruptFile (CG402): it is no GGUF file, ends too early, or cannot be read.
        UnknownModel (CG301): its version is not understood.
    """
    try:
        with file.open("rb") as opened:
            if opened.read(4) != _MAGIC:
                raise CorruptFile(
                    f"{file.name} does not begin as GGUF files do.",
                    where=str(file),
                    hint="Its ending is wrong, or the download failed.",
                )
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _read(content, file)
    except (struct.error, UnicodeDecodeError, IndexError, OverflowError, RecursionError) as error:
        raise _truncated(file, "its header ends too early") from error
    except (OSError, KeyError) as error:
        raise CorruptFile(f"{file.name} cannot be read: {error}.", where=str(file)) from error


def require_whole(header: GgufHeader, file: Path) -> None:
    """Refuse a file that is shorter than its header says.

    Raises:
        CorruptFile (CG402): bytes are missing at its end.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    for tensor in header.tensors:
        if tensor.kind not in sizes:
            continue
        block, width = sizes[GGMLQuantizationType(tensor.kind)]
        end = header.start + tensor.offset + prod(tensor.shape) // block * width
        if end > header.size:
            raise _truncated(file, f"{tensor.name} would end at byte {end:,} of {header.size:,}")


def _truncated(file: Path, detail: str) -> CorruptFile:
    return CorruptFile(
        f"{file.name} is incomplete: {detail}.", where=str(file), hint="Download it again."
    )


def _read(content: mmap.mmap, file: Path) -> GgufHeader:
    version, num_tensors, num_values = struct.unpack_from("<IQQ", content, 4)
    if version not in _VERSIONS:
        raise UnknownModel(
            f"{file.name} has version {version} of the format GGUF; 2 and 3 are understood.",
            where=str(file),
            hint="Convert the model again with a current llama.cpp.",
        )
    cursor = _Cursor(content, 24)
    values: dict[str, Value] = {}
    for _ in range(num_values):
        name = cursor.read_text()
        values[name] = cursor.read_value(cursor.read_number("I"))
    tensors: list[GgufTensor] = []
    for _ in range(num_tensors):
        name = cursor.read_text()
        shape = tuple(cursor.read_number("Q") for _ in range(cursor.read_number("I")))
        tensors.append(GgufTensor(name, shape, cursor.read_number("I"), cursor.read_number("Q")))
    alignment = int(values.get("general.alignment", _ALIGNMENT)) or _ALIGNMENT
    start = -(-cursor.place // alignment) * alignment
    return GgufHeader(values, tuple(tensors), start, len(content))


class _Cursor:
    """A place in a file, from which values are read one after the other."""

    def __init__(self, content: mmap.mmap, place: int) -> None:
        self._content, self.place = content, place

    def read_number(self, code: str) -> int:
        (number,) = struct.unpack_from(f"<{code}", self._content, self.place)
        self.place += struct.calcsize(f"<{code}")
        return number

    def read_text(self) -> str:
        begin = self._skip(self.read_number("Q"))
        return self._content[begin : self.place].decode("utf-8")

    def read_value(self, kind: int) -> Value:
        if kind == _STRING:
            return self.read_text()
        if kind != _ARRAY:
            return self.read_number(_NUMBERS[kind])
        entry, count = self.read_number("I"), self.read_number("Q")
        if entry in _NUMBERS:
            self._skip(count * struct.calcsize(f"<{_NUMBERS[entry]}"))
        else:
            for _ in range(count):
                self.read_value(entry) if entry == _ARRAY else self._skip(self.read_number("Q"))
        return count

    def _skip(self, length: int) -> int:
        """Go on by some bytes, and return where they begin."""
        begin = self.place
        if begin + length > len(self._content):
            raise IndexError("the end of the file")
        self.place += length
        return begin
