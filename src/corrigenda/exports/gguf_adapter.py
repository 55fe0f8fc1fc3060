"""Write a patch as a LoRA adapter in GGUF, which llama.cpp loads onto a quantised model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from corrigenda.errors import NotExportable
from corrigenda.exports.factors import factorise, factors_by_module, require_adapter
from corrigenda.exports.gguf_base import GgufBase
from corrigenda.exports.gguf_layout import GgufLayout
from corrigenda.files import write_atomically
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.lm.storage import is_transposed
from corrigenda.patch.weights import WeightPatch
from corrigenda.version import VERSION

Pair = tuple[Tensor, Tensor]
"""A (rank, d_in) and B (d_out, rank), for experts with their number in front."""


def export_gguf_adapter(
    patch: WeightPatch, lm: LanguageModel, path: str | Path, *, base: str | Path | None = None
) -> Path:
    """Write a patch as a GGUF LoRA adapter, in float32.

    `llama-server -m MODEL.gguf --lora PATH` adds it to the outputs of the weights, which may be
    quantised in any way. Scales are 1: `adapter.lora.alpha` is the largest rank, and B of a
    smaller rank is divided accordingly.

    Args:
        patch: Low-rank changes, or row and dense changes of low rank; also of experts.
        lm: The model the patch was made for; it is not changed, and the patch need not be active.
        path: The file.
        base: The GGUF model that the adapter will be loaded onto; its architecture, names, shapes
            and the weights that change are compared with those of `lm`.

    Raises:
        NotExportable (CG405): an empty patch, one made on top of others, a dense change of full
            rank, or a family that llama.cpp does not run.
        WrongBase (CG401): made on another model, or `base` is another one.
        CorruptFile (CG402): `base` cannot be read.
        MissingExtra (CG504): the package `gguf` is not installed.
        WriteFailed (CG601): the file cannot be written.
    """
    require_adapter(patch, lm)
    layout = GgufLayout(lm)
    pairs = {**_pairs_of_modules(patch, lm, layout), **_pairs_of_experts(patch, lm, layout)}
    if base is not None:
        _compare(GgufBase(base), patch, lm, layout)
    alpha = max(b.shape[-1] for _, b in pairs.values())
    return write_atomically(path, lambda part: _write(part, pairs, alpha, patch, layout))


def tensors_changed(patch: WeightPatch, lm: LanguageModel, layout: GgufLayout) -> dict[str, Tensor]:
    """Return the present weights of a model that a patch changes, by name in GGUF.

    Weights are as GGUF has them: (d_out, d_in) with rows in its order, experts stacked.

    Raises:
        NotExportable (CG405): a changed weight has no name in GGUF.
    """
    found: dict[str, Tensor] = {}
    for site in patch.changes:
        if site.expert is not None:
            each = [
                lm.values(Site(site.layer, site.part, expert))
                for expert in range(lm.num_experts(site.layer))
            ]
            found[layout.expert_name(site.layer, site.part)] = torch.stack(each)
            continue
        path = lm.module_path(site)
        module = lm.module(site)
        weight = module.get_parameter("weight").detach()
        weight = weight.T if is_transposed(module) else weight
        order = layout.order(path)
        found[_name(layout, path)] = weight if order is None else weight[order]
    return found


def _pairs_of_modules(patch: WeightPatch, lm: LanguageModel, layout: GgufLayout) -> dict[str, Pair]:
    plain = {site: change for site, change in patch.changes.items() if site.expert is None}
    pairs: dict[str, Pair] = {}
    for path, change in factors_by_module(plain, lm).items():
        order = layout.order(path)
        left = change.left if order is None else change.left[order]
        pairs[_name(layout, path)] = (change.right.T, left)
    return pairs


def _pairs_of_experts(patch: WeightPatch, lm: LanguageModel, layout: GgufLayout) -> dict[str, Pair]:
    """Return adapters of stacked experts, with zeros for those that no change is for."""
    by_name: dict[str, dict[int, LowRank]] = {}
    counts: dict[str, int] = {}
    for site, change in patch.changes.items():
        if site.expert is not None:
            name = layout.expert_name(site.layer, site.part)
            by_name.setdefault(name, {})[site.expert] = factorise(change, site)
            counts[name] = lm.num_experts(site.layer)
    pairs: dict[str, Pair] = {}
    for name, changes in by_name.items():
        rank = max(change.rank for change in changes.values())
        d_out, d_in = next(iter(changes.values())).shape
        a = torch.zeros(counts[name], rank, d_in)
        b = torch.zeros(counts[name], d_out, rank)
        for expert, change in changes.items():
            a[expert, : change.rank] = change.right.T
            b[expert, :, : change.rank] = change.left
        pairs[name] = (a, b)
    return pairs


def _name(layout: GgufLayout, path: str) -> str:
    name = layout.name(f"{path}.weight")
    if name is None:
        raise NotExportable(
            f"{path} has no name in GGUF files of {layout.architecture}.",
            hint="Export --to peft or merged.",
        )
    return name


def _compare(base: GgufBase, patch: WeightPatch, lm: LanguageModel, layout: GgufLayout) -> None:
    base.require_architecture(layout.architecture)
    for name, weight in tensors_changed(patch, lm, layout).items():
        base.require_weight(name, weight.cpu())


def _write(
    path: Path, pairs: Mapping[str, Pair], alpha: int, patch: WeightPatch, layout: GgufLayout
) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, layout.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(f"{patch.header.method} edit of {patch.header.base_name}")
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    writer.add_string("corrigenda.version", VERSION)
    writer.add_string("corrigenda.patch_digest", patch.digest())
    writer.add_string("corrigenda.base_digest", patch.header.base_digest or "")
    for name, (a, b) in pairs.items():
        scaled = b * (b.shape[-1] / alpha)
        writer.add_tensor(f"{name}.lora_a", a.float().contiguous().numpy())
        writer.add_tensor(f"{name}.lora_b", scaled.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
