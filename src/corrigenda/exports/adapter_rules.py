"""What vLLM and SGLang take of a LoRA adapter, as a check of a folder without either of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from safetensors import SafetensorError, safe_open

from corrigenda.errors import CorruptFile
from corrigenda.settings import parse_choice
from corrigenda.text_files import read_text

# vllm/config/lora.py, MaxLoRARanks and LoRAConfig.max_lora_rank, of 2025-12.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of `--max-lora-rank` of vLLM; an adapter's rank is padded to one of them."""

DEFAULT_MAX_RANK = 16
"""Largest rank that vLLM takes unless told otherwise."""


class Engine(StrEnum):
    """Program that serves adapters of PEFT."""

    VLLM = "vllm"
    SGLANG = "sglang"


def check_adapter(
    folder: str | Path, engine: Engine | str = Engine.VLLM, *, max_rank: int = DEFAULT_MAX_RANK
) -> list[str]:
    """Return what an engine would refuse, or read otherwise than `peft`; empty where nothing.

    Args:
        folder: An adapter: `adapter_config.json` and `adapter_model.safetensors`.
        engine: "vllm" or "sglang".
        max_rank: The engine's own limit, `--max-lora-rank`.

    Raises:
        CorruptFile (CG402): the folder holds no adapter that can be read.
        BadConfig (CG502): no such engine.
    """
    engine = parse_choice(Engine, engine)
    config, shapes = _read(Path(folder))
    problems = [
        *_check_rank(config, max_rank, engine),
        *_check_features(config),
        *_check_patterns(config),
        *_check_targets(config, shapes),
        *_check_tensors(shapes, config.get("r")),
    ]
    return problems


def _check_rank(config: Mapping[str, object], max_rank: int, engine: Engine) -> list[str]:
    # vllm/lora/peft_helper.py, validate_legal: r must not exceed max_lora_rank.
    # sglang, LoRAManager: an adapter must not exceed max_lora_rank.
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        # vllm/lora/peft_helper.py, from_dict: r, lora_alpha and target_modules are required.
        return ["r and lora_alpha are missing or no numbers."]
    found: list[str] = []
    if rank > max_rank:
        found.append(f"rank {rank} exceeds the limit {max_rank} (--max-lora-rank).")
    # vllm/config/lora.py, MaxLoRARanks: --max-lora-rank is one of a few values.
    if engine is Engine.VLLM and max_rank not in RANKS:
        found.append(f"--max-lora-rank is one of {', '.join(map(str, RANKS))}, not {max_rank}.")
    return found


def _check_features(config: Mapping[str, object]) -> list[str]:
    found: list[str] = []
    # vllm/lora/peft_helper.py: modules_to_save must be None, use_dora is refused;
    # a bias is refused since its support was removed (vLLM pull request 25807).
    # sglang/srt/lora/lora.py reads lora_A and lora_B only.
    if config.get("bias", "none") != "none":
        found.append(f"bias is {config['bias']!r}; only adapters without biases are read.")
    if config.get("modules_to_save"):
        found.append("modules_to_save holds whole weights, which no adapter slot can take.")
    if config.get("use_dora"):
        found.append("use_dora is not supported.")
    return found


def _check_patterns(config: Mapping[str, object]) -> list[str]:
    # vllm/lora/peft_helper.py, from_dict: entries it does not know are dropped, these among them.
    # sglang/srt/lora/lora_config.py, _pattern_overrides: entries that change a value are overrides.
    found: list[str] = []
    for name, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        pattern = config.get(name)
        values: list[object] = list(pattern.values()) if isinstance(pattern, dict) else []
        if any(value != config.get(default) for value in values):
            found.append(f"{name} gives modules other values than {default}; it is not read.")
    return found


def _check_targets(config: Mapping[str, object], shapes: Mapping[str, object]) -> list[str]:
    # vllm/lora/models.py, from_local_checkpoint: names of modules are compared with the last part
    # of the names of linear layers; a list is expected, or a regular expression.
    # sglang/srt/lora/lora_manager.py: target_modules are names of modules without their paths.
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets:
        return ["target_modules is no list of names of modules."]
    found = [f"target_modules names a path, {one}." for one in targets if "." in str(one)][:1]
    names = {_module_of(name).rpartition(".")[2] for name in shapes}
    others = sorted(names - {str(one).rpartition(".")[2] for one in targets})
    if others:
        found.append(f"target_modules lacks {', '.join(others)}, of which there are tensors.")
    return found


def _check_tensors(shapes: Mapping[str, tuple[int, ...]], rank: object) -> list[str]:
    # vllm/lora/utils.py, parse_fine_tuned_lora_name: only *.lora_A.weight and *.lora_B.weight
    # behind base_model.model. (and embeddings, which no patch changes).
    found: list[str] = []
    for name, shape in shapes.items():
        kind = name.rpartition(".lora_")[2]
        if not name.startswith("base_model.model.") or kind not in ("A.weight", "B.weight"):
            found.append(f"{name} is neither lora_A nor lora_B of a module.")
        elif shape[0 if kind == "A.weight" else -1] != rank:
            found.append(f"{name} has shape {shape}, which is not of rank {rank}.")
        elif name.replace(".lora_A.", ".lora_B.") not in shapes:
            found.append(f"{name} has no lora_B.")
    return found


def _module_of(name: str) -> str:
    return name.removeprefix("base_model.model.").partition(".lora_")[0]


def _read(folder: Path) -> tuple[Mapping[str, object], Mapping[str, tuple[int, ...]]]:
    try:
        config = json.loads(read_text(folder / "adapter_config.json"))
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise CorruptFile(f"{folder} holds no adapter that can be read: {error}") from error
    if not isinstance(config, dict):
        raise CorruptFile(f"the configuration of {folder} is no table.")
    return config, shapes
