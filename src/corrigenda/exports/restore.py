"""Restore the original of a model that was exported with a patch in its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from corrigenda.errors import (
    CorrigendaError,
    CorruptFile,
    NotApplied,
    WriteFailed,
    WrongBase,
)
from corrigenda.files import make_folder, temporary_folder, write_atomically, write_text
from corrigenda.lm.model import LanguageModel
from corrigenda.text_files import read_text

if TYPE_CHECKING:
    from corrigenda.patch.weights import WeightPatch

RECORD = "corrigenda.json"
PATCH = "corrigenda-patch.safetensors"
PRISTINE = "corrigenda-pristine.safetensors"


class Record(BaseModel):
    """Record, in an exported folder, of the model it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = 1
    base_name: str
    base_digest: str
    dtype: str
    parameters: tuple[str, ...]


class Restored(NamedTuple):
    """Original of a model with a merged patch.

    Attributes:
        base_name: Name of the original model.
        digest: Its digest, which the written folder was checked to have.
        source: Where the original bits came from.
    """

    base_name: str
    digest: str
    source: str


def save_originals(folder: Path, patch: WeightPatch, lm: LanguageModel) -> None:
    """Save what `restore_merged` needs into an exported folder: patch, record and tensors.

    Args:
        folder: A merged checkpoint of `lm` with `patch`.
        patch: The patch merged.
        lm: The unedited model.

    Raises:
        WriteFailed (CG601): the folder cannot be written.
    """
    names = sorted({lm.parameter_name(site) for site in patch.changes})
    parameters = dict(lm.model.named_parameters())
    pristine = {name: parameters[name].detach().cpu().contiguous() for name in names}
    record = Record(
        base_name=lm.name,
        base_digest=lm.digest(),
        dtype=str(lm.dtype).removeprefix("torch."),
        parameters=tuple(names),
    )
    make_folder(folder)
    patch.save(folder / PATCH)
    write_atomically(folder / PRISTINE, lambda part: save_file(pristine, part))
    write_text(folder / RECORD, record.model_dump_json(indent=2))


def restore_merged(folder: str | Path, out: str | Path) -> Restored:
    """Write the original of an exported model, bit for bit.

    The original tensors stored in the folder are put back; where they are gone, the base model is
    loaded by the name it had. Either way the folder written is read again and its digest compared
    with the recorded one.

    Args:
        folder: A folder written by `corrigenda export --to merged`.
        out: A folder that does not exist yet.

    Raises:
        NotApplied (CG406): the folder holds no record of a merged patch.
        CorruptFile (CG402): the record or the stored tensors cannot be read.
        WrongBase (CG401): what can be restored is not the recorded model, and nothing was written.
        WriteFailed (CG601): `out` exists or cannot be written.
    """
    folder, out = Path(folder), Path(out)
    record = _read_record(folder)
    if out.exists():
        raise WriteFailed(f"{out} exists.", hint="Choose a new folder; nothing is overwritten.")
    problems = []
    for source, load in (
        (PRISTINE, lambda: _load_pristine(folder, record)),
        (record.base_name, lambda: LanguageModel.load(record.base_name, dtype=record.dtype)),
    ):
        try:
            lm = load()
        except CorrigendaError as error:
            problems.append(f"{source}: {error.message}")
            continue
        if lm.digest() != record.base_digest:
            problems.append(f"{source}: other weights than those recorded (fine-tuned since?)")
            continue
        _write(lm, out, record)
        return Restored(record.base_name, record.base_digest, source)
    raise WrongBase(
        f"{folder} cannot be turned back into {record.base_name}: {'; '.join(problems)}",
        hint=f"Put {PRISTINE} back, or make {record.base_name} reachable.",
    )


def _read_record(folder: Path) -> Record:
    path = folder / RECORD
    if not path.is_file():
        raise NotApplied(
            f"{folder} holds no {RECORD}, so no patch was merged into it by this library.",
            hint="Give a folder written by `corrigenda export --to merged`.",
        )
    try:
        return Record.model_validate_json(read_text(path))
    except ValueError as error:
        raise CorruptFile(f"{path} is not a record of an export.") from error


def _load_pristine(folder: Path, record: Record) -> LanguageModel:
    path = folder / PRISTINE
    if not path.is_file():
        raise CorruptFile("the original tensors are gone.", where=str(path))
    try:
        pristine = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptFile(f"cannot be read ({error}).", where=str(path)) from error
    lm = LanguageModel.load(str(folder), dtype=record.dtype)
    parameters = dict(lm.model.named_parameters())
    if sorted(pristine) != sorted(record.parameters) or not parameters.keys() >= pristine.keys():
        raise CorruptFile("holds other tensors than those recorded.", where=str(path))
    with torch.no_grad():
        for name, tensor in pristine.items():
            parameters[name].copy_(tensor)
    return lm


def _write(lm: LanguageModel, out: Path, record: Record) -> None:
    """Write a temporary folder, check it, and give it its name in one step."""
    with temporary_folder(out.absolute()) as part:
        lm.model.save_pretrained(part)
        lm.tokenizer.save_pretrained(part)
        written = LanguageModel.load(str(part), dtype=record.dtype).digest()
        if written != record.base_digest:
            raise WrongBase(f"{out} read back has digest {written}, not {record.base_digest}.")
        part.rename(out)
