"""Models in GGUF files, dequantised once into the cache as folders of safetensors.

The folder of a file is named after its checksum, so that a file that is moved or has a second name
is not read again. Weights become float32: a dequantised weight is a scale of half precision times
an integer, often plus an offset, which neither bfloat16 nor float16 holds, and products in float32
are the fastest on most processors.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from corrigenda.errors import CorruptFile, UnknownFamily, UnknownModel, WriteFailed
from corrigenda.files import (
    cache_folder,
    format_bytes,
    is_cached,
    make_folder,
    write_cached,
    write_folder,
    write_text,
)
from corrigenda.lm.gguf_header import GgufHeader, read_header, require_whole
from corrigenda.lm.gguf_settings import complete_settings
from corrigenda.lm.model_files import check_pointers
from corrigenda.lm.model_names import MODELS_FOLDER, PACKAGED, RECORD, require_gguf
from corrigenda.progress import Progress, show_progress

# Grows when the same file leads to another folder.
_FORMAT = 1
_CHECKSUMS = "checksums"
_BYTES = 4
_DIGITS = 64
_ROOM = 64 << 20
_SAFETENSORS = "Load the safetensors that it was made from."


class GgufSource(NamedTuple):
    """A GGUF file that holds a model.

    Attributes:
        name: Name or path by which it was asked for.
        sha256: Checksum, where it is known without reading the file; empty elsewhere.
        provide: Returns the file while a block of code runs.
    """

    name: str
    sha256: str
    provide: Callable[[], AbstractContextManager[Path]]


class GgufRecord(BaseModel):
    """GgufRecord, in a folder made from a GGUF file, of that file and of what was written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = _FORMAT
    name: str
    file: str
    size: int
    sha256: str
    dtype: str
    files: dict[str, int]


def find_gguf(name: str) -> GgufSource | None:
    """Return the GGUF file that a name or path means; None where it means something else.

    Args:
        name: A model of another package, a `.gguf` file, or a folder without safetensors that
            holds one.

    Raises:
        UnknownModel (CG301): a folder with several such files.
    """
    if name in PACKAGED:
        return GgufSource(name, PACKAGED[name].sha256, PACKAGED[name].open)
    path = Path(name)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return GgufSource(name, "", lambda: nullcontext(path))
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise UnknownModel(
            f"the folder holds {len(found)} GGUF files: {', '.join(one.name for one in found[:4])}"
            f"{', ...' if len(found) > 4 else ''}.",
            where=name,
            hint=f"Give one of them, such as {found[0]}.",
        )
    return GgufSource(name, "", lambda: nullcontext(found[0])) if found else None


def convert_gguf(source: GgufSource) -> Path | tuple[PreTrainedModel, FastTokenizer]:
    """Return the folder of safetensors made from a GGUF file; it is made where it is missing.

    A process that is killed leaves no folder, and of two processes at once one keeps its folder.
    Where the cache cannot be written, the model itself is returned, and a warning given.

    Raises:
        MissingExtra (CG504): the package of a named model, or one that reads GGUF files, is not
            installed.
        CorruptFile (CG402): it is no GGUF file, is incomplete, or is damaged.
        UnknownModel (CG301): no model, one of several parts, or not all of its weights.
        UnknownFamily (CG302): an architecture that transformers does not read from GGUF files.
    """
    if source.sha256 and (folder := _find_folder(source.sha256)):
        return folder
    with source.provide() as file:
        sha256 = _hash_file(file)
        if source.sha256 and sha256 != source.sha256:
            raise CorruptFile(
                f"{file.name} is not the file that was published.",
                where=source.name,
                hint="Install its package again, with --force-reinstall.",
            )
        with _take_turns(sha256):
            if folder := _find_folder(sha256):
                return folder
            return _convert(file, source.name, sha256)


def _convert(file: Path, name: str, sha256: str) -> Path | tuple[PreTrainedModel, FastTokenizer]:
    header = _check(file, name)
    size = header.num_parameters * _BYTES
    seconds = _estimate_seconds(header)
    warnings.warn(
        f"{file.name} is dequantised once into the cache, as float32 ({format_bytes(size)}); "
        f"this takes about {seconds:.0f} s on an idle processor.",
        stacklevel=3,
    )
    with show_progress(None) as report:
        model, tokenizer = _read(file, name, header, report)
        target = _locate(sha256)
        try:
            _check_room(target, size)
            _report(report, "writing the cache", 0)
            return write_folder(target, partial(_write, model, tokenizer, name, file, sha256))
        except WriteFailed as error:
            warnings.warn(
                f"The model cannot be cached: {error.message} It is dequantised each time.",
                stacklevel=3,
            )
            return model, tokenizer


@contextlib.contextmanager
def _take_turns(sha256: str) -> Generator[None]:
    """Let one process at a time dequantise a file: a second would need as much memory again.

    The lock is one of the system, which ends with the process that holds it. Without locks, or in
    a folder that cannot be written, both do the work.
    """
    target = _locate(sha256)
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        make_folder(target.parent)
        lock.acquire(timeout=0)
    except Timeout:
        warnings.warn("Another process dequantises this model; waiting for it.", stacklevel=4)
        lock.acquire()
    except (OSError, NotImplementedError, WriteFailed):
        pass
    try:
        yield
    finally:
        lock.release()


def _locate(sha256: str) -> Path:
    return cache_folder() / MODELS_FOLDER / f"{sha256[:40]}-{_FORMAT}"


def _find_folder(sha256: str) -> Path | None:
    """Return the folder made from a file; None if there is none or, with a warning, a damaged."""
    folder = _locate(sha256)
    if not is_cached(folder / RECORD):
        return None
    record = read_record(folder)
    intact = record is not None and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in record.files.items()
    )
    if intact:
        return folder
    warnings.warn(f"{folder} is damaged. It is made again.", stacklevel=3)
    shutil.rmtree(folder, ignore_errors=True)
    return None


def read_record(folder: Path) -> GgufRecord | None:
    """Read the record of a folder made from a GGUF file; None where it is missing or damaged."""
    try:
        return GgufRecord.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def _hash_file(file: Path) -> str:
    """Return the SHA-256 of a file, remembered while its size, times and place are the same."""
    try:
        status = file.stat()
        place = (file.resolve(), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = hashlib.sha256("\0".join(map(str, place)).encode()).hexdigest()[:40]
        remembered = cache_folder() / _CHECKSUMS / known
        with contextlib.suppress(OSError, ValueError):
            digest = remembered.read_text(encoding="ascii").strip()
            if len(digest) == _DIGITS:
                return digest
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise CorruptFile(f"{file.name} cannot be read: {error}.", where=str(file)) from error
    write_cached(remembered, lambda path: write_text(path, digest))
    return digest


def _check(file: Path, name: str) -> GgufHeader:
    """Refuse a file that holds no whole model, before the work begins."""
    check_pointers([file], name)
    header = read_header(file)
    kind = str(header.values.get("general.type", "model"))
    if not header.architecture:
        raise UnknownModel(f"{file.name} states no architecture.", where=name, hint=_SAFETENSORS)
    if kind != "model":
        raise UnknownModel(
            f'{file.name} holds a part of the type "{kind}", not a model.',
            where=name,
            hint="Give the GGUF file of the model that it belongs to.",
        )
    if (parts := int(header.values.get("split.count", 1))) > 1:
        raise UnknownModel(
            f"{file.name} is one of {parts} parts of a model.",
            where=name,
            hint="Join them with `llama-gguf-split --merge`, and give the file that this writes.",
        )
    if header.setting("pooling_type"):
        raise UnknownFamily(
            f'{file.name} holds a model of embeddings (architecture "{header.architecture}"), '
            "which writes no text.",
            where=name,
            hint="Only causal language models can be edited.",
        )
    require_gguf(name)
    require_whole(header, file)
    return header


def _check_room(target: Path, size: int) -> None:
    """Refuse a disk without room for a model.

    Raises:
        WriteFailed (CG601): it has none.
    """
    place = next(one for one in target.parents if one.is_dir())
    free = shutil.disk_usage(place).free
    if free < size + _ROOM:
        raise WriteFailed(
            f"{format_bytes(free)} are free in {place}, {format_bytes(size)} are needed."
        )


def _estimate_seconds(header: GgufHeader) -> float:
    """Return about how long dequantising takes on one core, from what was measured on two files."""
    # The reader of GGUF files takes the lists of the tokenizer apart entry by entry, three times.
    entries, tensors = header.num_entries, len(header.tensors)
    return 4 + 2e-5 * entries + 0.02 * tensors + 3.5e-8 * header.num_parameters


def _read(
    file: Path, name: str, header: GgufHeader, report: Progress | None
) -> tuple[PreTrainedModel, FastTokenizer]:
    """Read a model with the reader of transformers, and make it one that can be saved."""
    where: dict[str, Any] = {"gguf_file": file.name}
    _report(report, "reading the settings", 0)
    try:
        config = AutoConfig.from_pretrained(file.parent, **where)
    except (ValueError, KeyError, NotImplementedError, TypeError) as error:
        raise UnknownFamily(
            f'{file.name} has the architecture "{header.architecture}", which transformers does '
            f"not read from GGUF files: {_first_line(error)}",
            where=name,
            hint=_SAFETENSORS,
        ) from error
    if left := complete_settings(config, header, file):
        warnings.warn(
            f"{file.name} states what transformers does not read: {', '.join(left)}. Answers may "
            "differ from those of other programs, at long texts most.",
            stacklevel=4,
        )
    _report(report, "reading the tokenizer", 0)
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    except (ValueError, KeyError, NotImplementedError, TypeError, IndexError, OSError) as error:
        raise UnknownModel(
            f"the tokenizer of {file.name} cannot be read: {_first_line(error)}",
            where=name,
            hint=_SAFETENSORS,
        ) from error
    _report(report, "reading the weights", 0)
    try:
        with _follow_tensors(report):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.parent,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                **where,
            )
    except (ValueError, KeyError, NotImplementedError, RuntimeError, OSError) as error:
        raise UnknownFamily(
            f'the weights of {file.name} (architecture "{header.architecture}") cannot be read as '
            f"a causal language model: {_first_line(error)}",
            where=name,
            hint=_SAFETENSORS,
        ) from error
    model, found = loaded
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise UnknownModel(
            f"{len(missing)} weights are not in {file.name}, among them {missing[0]}.",
            where=name,
            hint=_SAFETENSORS,
        )
    _forget_quantisation(model)
    return model, tokenizer


def _forget_quantisation(model: PreTrainedModel) -> None:
    """Remove the record that the file was quantised, with which transformers refuses to save."""
    loose = cast("Any", model)
    loose.hf_quantizer, loose.is_quantized = None, False
    with contextlib.suppress(AttributeError):
        del loose.quantization_method
    for name in ("quantization_config", "_is_quantized"):
        vars(model.config).pop(name, None)


@contextlib.contextmanager
def _follow_tensors(report: Progress | None) -> Generator[None]:
    """Report each tensor that is dequantised, in place of the bar that transformers draws."""
    from transformers import modeling_gguf_pytorch_utils as reader

    def follow(tensors: Sequence[object], **_: object) -> Iterator[object]:
        for done, tensor in enumerate(tensors):
            _report(report, "reading the weights", done, len(tensors))
            yield tensor

    drawn = vars(reader).get("tqdm")
    setattr(reader, "tqdm", follow)  # noqa: B010  # a name that the types of the module do not have
    try:
        yield
    finally:
        setattr(reader, "tqdm", drawn)  # noqa: B010  # as above


def _report(report: Progress | None, stage: str, done: int, total: int = 1) -> None:
    if report is not None:
        report(stage, done, total)


def _write(
    model: PreTrainedModel,
    tokenizer: FastTokenizer,
    name: str,
    file: Path,
    sha256: str,
    folder: Path,
) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = GgufRecord(
        name=name if name in PACKAGED else "",
        file=file.name,
        size=file.stat().st_size,
        sha256=sha256,
        dtype="float32",
        files={one.name: one.stat().st_size for one in folder.iterdir()},
    )
    (folder / RECORD).write_text(record.model_dump_json(indent=2), encoding="utf-8")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else f"{type(error).__name__}."
