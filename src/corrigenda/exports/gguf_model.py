"""Write a model with a patch merged as GGUF, from its own weights or from a GGUF file of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from corrigenda.errors import NotExportable
from corrigenda.exports.gguf_adapter import tensors_changed
from corrigenda.exports.gguf_base import GgufBase
from corrigenda.exports.gguf_layout import EXPERTS, GgufLayout
from corrigenda.exports.gguf_settings import add_settings
from corrigenda.exports.gguf_tokenizer import add_tokenizer
from corrigenda.exports.gguf_types import WeightType, quantise, weight_type_of
from corrigenda.files import write_atomically
from corrigenda.lm.model import LanguageModel
from corrigenda.patch.weights import WeightPatch
from corrigenda.version import VERSION

if TYPE_CHECKING:
    import gguf

_SPLIT = "split.count"
_VIRTUAL = "GGUF."


class GgufFile(NamedTuple):
    """What was written.

    Attributes:
        path: The file.
        types: Type of each tensor that the patch changes, by its name in GGUF.
        notices: What the user should know: types that could not be kept.
    """

    path: Path
    types: Mapping[str, str]
    notices: tuple[str, ...] = ()


def export_gguf(
    patch: WeightPatch,
    lm: LanguageModel,
    path: str | Path,
    *,
    base: str | Path | None = None,
    weight_type: WeightType | None = None,
) -> GgufFile:
    """Write the model with the patch merged as one GGUF file.

    With `base`, a GGUF file of the unedited model, settings, tokenizer and every tensor that the
    patch does not change are copied bit for bit; an empty patch gives all tensors back. Without it
    the file is made from the model, its matrices in one type. Vectors stay float32.

    Args:
        patch: A patch of weights, not active.
        lm: The model it was made on. It is left as it was.
        path: The file.
        base: A GGUF file of the unedited model.
        weight_type: Type of the matrices; with `base`, of those that change. By default F16, or
            the type that the base has, where `gguf` can write that (else Q8_0, with a notice).

    Raises:
        NotExportable (CG405): a family, variant or tokenizer without GGUF form; a base in several
            files.
        WrongBase (CG401): the patch was made on another model, or `base` is another one.
        CorruptFile (CG402): `base` cannot be read.
        MissingExtra (CG504): the package `gguf` is not installed.
        WriteFailed (CG601): the file cannot be written.
    """
    layout = GgufLayout(lm)
    if base is None:
        chosen = weight_type or WeightType.F16
        with patch.apply(lm):
            types = {name: str(chosen) for name in tensors_changed(patch, lm, layout)}
            written = write_atomically(path, lambda part: _write_model(part, lm, layout, chosen))
        return GgufFile(written, types)
    opened = GgufBase(base)
    opened.require_architecture(layout.architecture)
    if int(str(opened.field(_SPLIT) or 1)) > 1:
        raise NotExportable(
            "the base is split over several files.",
            where=str(base),
            hint="Join it first: llama-gguf-split --merge FIRST.gguf WHOLE.gguf.",
        )
    for name, weight in tensors_changed(patch, lm, layout).items():
        opened.require_weight(name, weight.cpu())
    with patch.apply(lm):
        changed = {
            name: weight.detach().cpu().clone()
            for name, weight in tensors_changed(patch, lm, layout).items()
        }
    kinds: dict[str, WeightType] = {}
    notices: list[str] = []
    for name in changed:
        had = opened.tensors[name].tensor_type
        kinds[name] = weight_type or weight_type_of(had) or WeightType.Q8_0
        if weight_type is None and weight_type_of(had) is None:
            notices.append(f"{name} was {had.name}, which cannot be written here; it is Q8_0 now.")
    written = write_atomically(path, lambda part: _copy_model(part, opened, changed, kinds, patch))
    return GgufFile(written, {name: str(kind) for name, kind in kinds.items()}, tuple(notices))


def _copy_model(
    path: Path,
    base: GgufBase,
    changed: Mapping[str, Tensor],
    kinds: Mapping[str, WeightType],
    patch: WeightPatch,
) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, str(base.field("general.architecture")))
    for field in base.reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith(_VIRTUAL):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    alignment = base.field("general.alignment")
    if isinstance(alignment, int):
        writer.data_alignment = alignment
    if changed:
        _add_origin(writer, patch)
    for name, tensor in base.tensors.items():
        if name in changed:
            _add_tensor(writer, name, changed[name], kinds[name])
        else:
            data = tensor.data
            writer.add_tensor(name, data, raw_shape=data.shape, raw_dtype=tensor.tensor_type)
    _finish(writer)


def _write_model(
    path: Path, lm: LanguageModel, layout: GgufLayout, weight_type: WeightType
) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, layout.architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(lm.name)
    kind = weight_type.name if weight_type is WeightType.F32 else f"MOSTLY_{weight_type.name}"
    kind = "ALL_F32" if weight_type is WeightType.F32 else kind
    writer.add_file_type(gguf.LlamaFileType[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_settings(writer, lm)
    add_tokenizer(writer, lm)
    for patch in lm.patches:
        if isinstance(patch, WeightPatch):
            _add_origin(writer, patch)
    for name, tensor in list_tensors(lm, layout):
        _add_tensor(writer, name, tensor, _choose_type(name, tensor, weight_type))
    _finish(writer)


def list_tensors(lm: LanguageModel, layout: GgufLayout) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight of a model by its name in GGUF, in the order that GGUF wants.

    Raises:
        NotExportable (CG405): a weight has no name in GGUF.
    """
    gemma = lm.family.name.startswith("gemma")
    head = lm.model.get_output_embeddings()
    tied = head is not None and head.weight is lm.model.get_input_embeddings().weight
    for path, parameter in lm.model.state_dict().items():
        owner, _, leaf = path.rpartition(".")
        if tied and lm.model.get_submodule(owner) is head and leaf == "weight":
            continue
        if owner.endswith(".experts"):
            yield from _list_experts(path, parameter)
            continue
        name = layout.name(path)
        if name is None:
            raise NotExportable(
                f"{path} has no name in GGUF files of {layout.architecture}.", where=lm.name
            )
        tensor = parameter
        if leaf == "weight" and isinstance(lm.model.get_submodule(owner), Conv1D):
            tensor = tensor.T
        if gemma and path.endswith("norm.weight"):
            tensor = tensor.float() + 1
        order = layout.order(owner)
        yield name, tensor if order is None else tensor[order.to(tensor.device)]


def _list_experts(path: str, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the stacked weights of a block's experts, gate and up projections apart."""
    layer = next(part for part in path.split(".") if part.isdecimal())
    if path.endswith(".down_proj"):
        yield f"blk.{layer}.{EXPERTS['mlp.down']}.weight", parameter
        return
    gate, up = parameter.chunk(2, dim=1)
    yield f"blk.{layer}.{EXPERTS['mlp.gate']}.weight", gate
    yield f"blk.{layer}.{EXPERTS['mlp.up']}.weight", up


def _choose_type(name: str, tensor: Tensor, wanted: WeightType) -> WeightType:
    """Return the type of one tensor: vectors, positions and routers stay float32."""
    if tensor.dim() == 1 or name in ("position_embd.weight",) or name.endswith("_inp.weight"):
        return WeightType.F32
    return wanted if wanted.fits(tensor.shape[-1]) else WeightType.F16


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, tensor: Tensor, weight_type: WeightType
) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise NotExportable(f"{name} holds infinities or NaN.")
    values: np.ndarray = quantise(tensor, weight_type)
    writer.add_tensor(name, values, raw_dtype=weight_type.ggml)


def _add_origin(writer: gguf.GGUFWriter, patch: WeightPatch) -> None:
    writer.add_string("corrigenda.version", VERSION)
    writer.add_string("corrigenda.patch_digest", patch.digest())
    writer.add_string("corrigenda.base_digest", patch.header.base_digest or "")


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
