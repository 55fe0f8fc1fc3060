"""One safetensors file for a patch: tensors, a readable header, and a checksum over both.

The checksum finds damage and careless changes. It is no signature: a new
checksum can be written with the file. Nothing in the file can run code.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple, cast

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from corrigenda.errors import CorruptFile, NewerFormat, PickleRefused
from corrigenda.files import write_atomically
from corrigenda.patch.changes import digest_of
from corrigenda.patch.header import FORMAT_VERSION, Header
from corrigenda.patch.protocols import Patch
from corrigenda.text_files import UnreadableText, decode, parse_json, read_bytes

_PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"}
_HEADER = "corrigenda"
_CHECKSUM = "checksum"
_LENGTH = 8
_MOST_BYTES = 1 << 40
_LAST_PICKLE_PROTOCOL = 5


class PatchFile(NamedTuple):
    """Header and tensors of a patch file, checked against the checksum."""

    header: Header
    tensors: dict[str, Tensor]


def save_patch(patch: Patch, path: str | Path) -> Path:
    """Write a patch to one safetensors file, completely or not at all.

    Equal patches give equal files.

    Raises:
        PickleRefused (CG403): the name ends like a pickle file and could not be loaded again.
        WriteFailed (CG601): the disk is full or the place is not writable; the old file stays.
    """
    path = Path(path)
    _refuse_pickle_name(path)
    tensors = {name: tensor.contiguous() for name, tensor in sorted(patch.tensors().items())}
    header = patch.header.to_json()
    metadata = {_HEADER: header, _CHECKSUM: _checksum(header, tensors)}
    content = _sort_header(save(tensors, metadata))
    return write_atomically(path, lambda part: part.write_bytes(content))


def read_patch_file(path: str | Path) -> PatchFile:
    """Read and check the file of any kind of patch; see `load_patch` for its errors."""
    path = Path(path)
    _refuse_pickle_name(path)
    try:
        content = read_bytes(path, most=_MOST_BYTES)
    except UnreadableText as error:
        raise CorruptFile(f"{path} cannot be read: {error}.") from error
    _refuse_pickle_content(path, content)
    metadata = _read_metadata(path, content)
    header_text = metadata.get(_HEADER)
    if header_text is None:
        raise CorruptFile(
            f"{path} is a safetensors file, but not a patch.",
            hint="A patch is what `corrigenda edit -o` or `patch.save` writes.",
        )
    try:
        fields = cast("dict[str, Any]", parse_json(header_text, strict=False))
        version = int(fields["format_version"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise corrupt(path, "its header is not readable") from error
    if version < 1 or type(fields["format_version"]) is not int:
        raise corrupt(path, f"its format version is {fields['format_version']!r}")
    if version > FORMAT_VERSION:
        raise NewerFormat(
            f"{path} has format version {version}; this version reads up to {FORMAT_VERSION}.",
            hint="Upgrade: pip install --upgrade corrigenda.",
        )
    try:
        tensors = load(content)
        header = Header.model_validate(fields)
    except (SafetensorError, ValidationError, KeyError, ValueError, RecursionError) as error:
        raise corrupt(path, str(error)) from error
    if metadata != {_HEADER: header_text, _CHECKSUM: _checksum(header_text, tensors)}:
        raise corrupt(path, "the checksum does not match its content")
    return PatchFile(header, tensors)


def _checksum(header: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(f"{header}\n{digest_of(tensors)}".encode()).hexdigest()


def _read_metadata(path: Path, content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:_LENGTH], "little")
    if len(content) < _LENGTH + 2 or length > len(content) - _LENGTH:
        raise corrupt(path, "it ends too early, or is not a safetensors file")
    try:
        found = parse_json(decode(content[_LENGTH : _LENGTH + length]), strict=False)
        found = cast("dict[str, Any]", found).get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise corrupt(path, "its table of tensors is not readable") from error
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise corrupt(path, "its metadata is no table of texts")
    return found


def _sort_header(content: bytes) -> bytes:
    """Return the same file with its metadata in a fixed order, which safetensors does not fix."""
    length = int.from_bytes(content[:_LENGTH], "little")
    table = json.loads(content[_LENGTH : _LENGTH + length])
    table["__metadata__"] = dict(sorted(table["__metadata__"].items()))
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH)
    return len(text).to_bytes(_LENGTH, "little") + text + content[_LENGTH + length :]


def _refuse_pickle_name(path: Path) -> None:
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        raise _pickle(path, f"files named *{path.suffix}")


def _refuse_pickle_content(path: Path, content: bytes) -> None:
    if content[_LENGTH : _LENGTH + 1] == b"{":
        return
    if content.startswith(b"PK\x03\x04"):
        raise _pickle(path, "zip archives as torch.save writes them")
    if content[:1] == b"\x80" and content[1:2] <= bytes([_LAST_PICKLE_PROTOCOL]):
        raise _pickle(path, "pickle streams")


def _pickle(path: Path, what: str) -> PickleRefused:
    return PickleRefused(
        f"{path} is refused: {what} can run code when opened.",
        hint="Patches are .safetensors files.",
    )


def corrupt(path: str | Path, reason: str) -> CorruptFile:
    """Return the error for a file that is not what was written."""
    return CorruptFile(
        f"{path} is damaged: {reason}.",
        hint="Get the file again, or make the edit again; nothing was applied.",
    )
