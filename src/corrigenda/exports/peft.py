"""Write a patch as a LoRA adapter that `peft` loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from corrigenda.errors import NotExportable
from corrigenda.files import make_folder, write_atomically, write_text
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.lm.storage import ALL_ROWS, is_transposed
from corrigenda.patch.changes import Change, Dense, Rows
from corrigenda.patch.ledger import ledger_of, require_base
from corrigenda.patch.runtime import require_shapes
from corrigenda.patch.weights import WeightPatch


def export_peft(patch: WeightPatch, lm: LanguageModel, folder: str | Path) -> Path:
    """Write a patch as a folder with a LoRA adapter, its configuration and its tensors.

    Ranks may differ by layer; every scaling is 1. The adapter is float32 and its logits agree with
    those of the merged patch to 1e-4 relative in float32. Load it with
    `peft.PeftModel.from_pretrained(model, folder)`; `peft` is not needed to write it.

    Args:
        patch: Low-rank changes, or row and dense changes of low rank, of linear layers.
        lm: The model the patch was made for; it is not changed, and the patch need not be active.
        folder: Created if it is missing.

    Raises:
        NotExportable (CG405): an empty patch, one made on top of others, an expert's weight,
            or a dense change of full rank.
        WrongBase (CG401): made on another model (unless it is active on this one by force).
        WriteFailed (CG601): the folder cannot be written.
    """
    if patch.is_empty:
        raise NotExportable("an empty patch has no adapter.")
    if patch.header.prerequisites:
        raise NotExportable(
            "the patch was made on top of others, without which its adapter would mean nothing.",
            hint="Compose them first: (first + second) in the order they were made.",
        )
    ledger = ledger_of(lm)
    if not any(active == patch for active in ledger):
        require_base(patch.header, ledger.base(lm), lm)
    require_shapes(patch.changes, lm)
    adapters = _build_adapters(patch, lm)
    ranks = {path: adapter.rank for path, adapter in adapters.items()}
    most = max(ranks.values())
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": lm.name,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": {path: rank for path, rank in ranks.items() if rank != most},
        "alpha_pattern": {path: rank for path, rank in ranks.items() if rank != most},
        "target_modules": sorted(adapters),
        "fan_in_fan_out": any(is_transposed(lm.model.get_submodule(path)) for path in adapters),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    tensors: dict[str, Tensor] = {}
    for path, adapter in adapters.items():
        name = f"base_model.model.{path}"
        tensors[f"{name}.lora_A.weight"] = adapter.right.T.float().contiguous()
        tensors[f"{name}.lora_B.weight"] = adapter.left.float().contiguous()
    folder = make_folder(folder)
    write_atomically(
        folder / "adapter_model.safetensors",
        lambda part: save_file(tensors, part, metadata={"format": "pt"}),
    )
    write_text(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")
    return folder


def _build_adapters(patch: WeightPatch, lm: LanguageModel) -> Mapping[str, LowRank]:
    """Return one low-rank change for each module, in the module's own (d_out, d_in)."""
    adapters: dict[str, LowRank] = {}
    for site, change in patch.changes.items():
        if site.expert is not None:
            raise NotExportable(
                "weights of single experts cannot be LoRA adapters.",
                where=f"site {site}",
                hint="Export a merged checkpoint instead.",
            )
        path = lm.module_path(site)
        whole = _widen_to_module(factorise(change, site), site, lm)
        adapters[path] = _add_changes(adapters[path], whole) if path in adapters else whole
    return adapters


def factorise(change: Change, site: Site) -> LowRank:
    """Return a change as factors: exact for low-rank and row changes, by SVD for dense ones.

    Raises:
        NotExportable (CG405): a dense change whose factors would be larger than itself.
    """
    match change:
        case LowRank():
            return change
        case Rows(index=index, values=values, d_out=d_out):
            left = torch.zeros(d_out, len(index), dtype=values.dtype)
            left[index, torch.arange(len(index))] = 1
            return LowRank(left, values.T)
        case Dense(delta=delta):
            u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
            rank = int((s > s[0] * max(delta.shape) * torch.finfo(delta.dtype).eps).sum())
            if rank * sum(delta.shape) > delta.numel():
                raise NotExportable(
                    f"the dense change has rank {rank}; as factors it would be larger than itself.",
                    where=f"site {site}",
                    hint="Export a merged checkpoint instead, or keep the strongest directions "
                    "first (--transform compress:rank=8).",
                )
            return LowRank(u[:, :rank] * s[:rank], vh[:rank].T)


def _widen_to_module(change: LowRank, site: Site, lm: LanguageModel) -> LowRank:
    """Return the change of one site as one of its whole module, whose weight may be fused."""
    rows = lm.rows(site)
    if isinstance(rows, slice) and rows == ALL_ROWS:
        return change
    module = lm.module(site)
    d_out = module.get_parameter("weight").shape[1 if is_transposed(module) else 0]
    left = torch.zeros(d_out, change.rank, dtype=change.left.dtype)
    left[rows] = change.left
    return LowRank(left, change.right)


def _add_changes(first: LowRank, second: LowRank) -> LowRank:
    """Return the sum of changes of different rows of a module; equal `right` is stored once."""
    same = first.left.dtype == second.left.dtype and torch.equal(first.right, second.right)
    return LowRank(first.left + second.left, first.right) if same else first + second
