"""Write a patch as a LoRA adapter that `peft`, vLLM and SGLang load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from corrigenda.errors import NotExportable
from corrigenda.exports.adapter_rules import RANKS
from corrigenda.exports.factors import factors_by_module, pad_rank, require_adapter
from corrigenda.files import make_folder, write_atomically, write_text
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.storage import is_transposed
from corrigenda.patch.weights import WeightPatch

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"


def export_peft(
    patch: WeightPatch, lm: LanguageModel, folder: str | Path, *, padded: bool = True
) -> Path:
    """Write a patch as a folder with a LoRA adapter, its configuration and its tensors.

    Every scaling is 1, the size of the change is in B. The adapter is float32 and its logits agree
    with those of the merged patch to 1e-4 relative in float32. Load it with
    `peft.PeftModel.from_pretrained(model, folder)`; `peft` is not needed to write it.

    Args:
        patch: Low-rank changes, or row and dense changes of low rank, of linear layers.
        lm: The model the patch was made for; it is not changed, and the patch need not be active.
        folder: Created if it is missing.
        padded: Give all modules one rank that vLLM and SGLang take, with zeros, and name modules
            and layers apart, as they do. Otherwise ranks differ by layer, which only `peft` reads.

    Raises:
        NotExportable (CG405): an empty patch, one made on top of others, an expert's weight,
            a dense change of full rank, or a rank beyond what those engines take.
        WrongBase (CG401): made on another model (unless it is active on this one by force).
        WriteFailed (CG601): the folder cannot be written.
    """
    require_adapter(patch, lm)
    adapters = factors_by_module(patch.changes, lm)
    shape = _describe_uniform(adapters, lm) if padded else _describe_ranks(adapters)
    if padded:
        adapters = _fill(adapters, lm, choose_rank(adapters))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": lm.name,
        **shape,
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
        folder / TENSORS, lambda part: save_file(tensors, part, metadata={"format": "pt"})
    )
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    return folder


def choose_rank(adapters: Mapping[str, LowRank]) -> int:
    """Return the smallest rank that vLLM takes and that holds every adapter.

    Raises:
        NotExportable (CG405): there is none.
    """
    most = max(adapter.rank for adapter in adapters.values())
    for rank in RANKS:
        if rank >= most:
            return rank
    raise NotExportable(
        f"the change has rank {most}; vLLM and SGLang take up to {RANKS[-1]}.",
        hint="Export the merged model, keep the strongest directions first "
        "(--transform compress:rank=512), or export for peft alone (--unpadded).",
    )


def _describe_ranks(adapters: Mapping[str, LowRank]) -> dict[str, object]:
    """Return the entries of a configuration with a rank for each module."""
    ranks = {path: adapter.rank for path, adapter in adapters.items()}
    most = max(ranks.values())
    return {
        "r": most,
        "lora_alpha": most,
        "rank_pattern": {path: rank for path, rank in ranks.items() if rank != most},
        "alpha_pattern": {path: rank for path, rank in ranks.items() if rank != most},
        "target_modules": sorted(adapters),
    }


def _describe_uniform(adapters: Mapping[str, LowRank], lm: LanguageModel) -> dict[str, object]:
    """Return the entries of a configuration with one rank, modules by name, and layers."""
    rank = choose_rank(adapters)
    blocks = lm.family.blocks
    return {
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({path.rpartition(".")[2] for path in adapters}),
        "layers_to_transform": sorted({_layer_of(path, blocks) for path in adapters}),
        "layers_pattern": blocks.rpartition(".")[2],
    }


def _fill(adapters: Mapping[str, LowRank], lm: LanguageModel, rank: int) -> dict[str, LowRank]:
    """Return the adapters padded, and zeros for what shares their names in the same layers."""
    blocks = lm.family.blocks
    names = {path.rpartition(".")[2] for path in adapters}
    layers = {_layer_of(path, blocks) for path in adapters}
    full: dict[str, LowRank] = {}
    for path, module in lm.model.named_modules():
        if path in adapters:
            full[path] = pad_rank(adapters[path], rank)
        elif (
            path.startswith(f"{blocks}.")
            and path.rpartition(".")[2] in names
            and _layer_of(path, blocks) in layers
        ):
            shape = module.get_parameter("weight").shape
            d_out, d_in = reversed(shape) if is_transposed(module) else shape
            full[path] = LowRank(torch.zeros(d_out, rank), torch.zeros(d_in, rank))
    return full


def _layer_of(path: str, blocks: str) -> int:
    return int(path.removeprefix(f"{blocks}.").partition(".")[0])
