"""Names and orders of weights in GGUF files, for the families that llama.cpp runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from corrigenda.errors import MissingExtra, NotExportable
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.storage import head_width

if TYPE_CHECKING:
    import gguf

# general.architecture by family; llama.cpp has no GPT-J and no OPT.
ARCHITECTURES: Mapping[str, str] = {
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "phi3": "phi3",
    "olmo2": "olmo2",
}
"""Architecture of GGUF by family of this library."""

EXPERTS: Mapping[str, str] = {
    "mlp.down": "ffn_down_exps",
    "mlp.up": "ffn_up_exps",
    "mlp.gate": "ffn_gate_exps",
}
"""Stacked weights of experts in GGUF, by part."""


def require_gguf() -> None:
    """Refuse to go on without the package `gguf`.

    Raises:
        MissingExtra (CG504): it is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra(
            "GGUF files are read and written by the package gguf.",
            hint="pip install 'corrigenda[gguf]'",
        )


class GgufLayout:
    """Where the weights of one model are in a GGUF file, and in which order their rows are.

    Attributes:
        architecture: Value of `general.architecture`.
    """

    def __init__(self, lm: LanguageModel) -> None:
        """Look up the family of a model.

        Raises:
            NotExportable (CG405): llama.cpp has no such family.
            MissingExtra (CG504): the package `gguf` is not installed.
        """
        require_gguf()
        import gguf

        family = lm.family.name
        if family not in ARCHITECTURES:
            raise NotExportable(
                f"llama.cpp runs no {family} models, so they have no GGUF form.",
                where=lm.name,
                hint=f"Families with one: {', '.join(ARCHITECTURES)}. Export --to peft or merged.",
            )
        self.architecture = ARCHITECTURES[family]
        self._config = lm.model.config.get_text_config()
        self._blocks = lm.family.blocks
        numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
        self._names: gguf.TensorNameMap = gguf.get_tensor_name_map(
            numbers[self.architecture], lm.num_layers
        )

    def name(self, path: str) -> str | None:
        """Return the name in GGUF of a parameter of the model; None where it has none.

        Args:
            path: Name in the checkpoint, as `model.layers.3.mlp.down_proj.weight`.
        """
        return self._names.get_name(path, try_suffixes=(".weight", ".bias"))

    def expert_name(self, layer: int, part: str) -> str:
        """Return the name of the stacked weights of a block's experts."""
        return f"blk.{layer}.{EXPERTS[part]}.weight"

    def order(self, path: str) -> Int[Tensor, " rows"] | None:
        """Return which row of the model's weight each row in GGUF is; None where all stay.

        Llama's queries and keys rotate neighbouring pairs in GGUF, and halves of a head in
        `transformers`. GPT-NeoX keeps queries, keys and values of each head together, GGUF all
        queries first.

        Args:
            path: Name of a weight or bias, or of its module.
        """
        config, name = self._config, f"{path}."
        heads, width = config.num_attention_heads, head_width(config)
        if self.architecture == "llama":
            if ".self_attn.q_proj." in name:
                return _pair_halves(heads, width)
            if ".self_attn.k_proj." in name:
                return _pair_halves(config.num_key_value_heads or heads, width)
        if self.architecture == "gptneox" and ".query_key_value." in name:
            rows = torch.arange(3 * heads * width).view(heads, 3, width)
            return rows.transpose(0, 1).reshape(-1)
        return None


def _pair_halves(heads: int, width: int) -> Int[Tensor, " rows"]:
    rows = torch.arange(heads * width).view(heads, 2, width // 2)
    return rows.transpose(1, 2).reshape(-1)
