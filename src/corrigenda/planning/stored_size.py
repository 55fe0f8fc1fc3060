"""Bytes of weights that are stored quantised, from the configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from corrigenda.lm.model import LanguageModel

# Bits of a number with its share of scales: MXFP4 has one of 8 bits for 32 numbers, bitsandbytes
# one of 32 bits for 64 (4-bit) or for each row (8-bit), GPTQ and AWQ one of 16 bits and a zero
# point for each group.
_MXFP4_BITS = 4 + 8 / 32
_FOUR_BITS = 4 + 32 / 64
_GROUP = 128


def stored_bits(config: PreTrainedConfig) -> float | None:
    """Return the bits of a quantised number, scales included; None where that is not known."""
    found: Any = getattr(config, "quantization_config", None)
    if found is None:
        return None
    settings: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    match settings.get("quant_method"):
        case "mxfp4":
            return _MXFP4_BITS
        case "bitsandbytes" if settings.get("load_in_4bit"):
            return _FOUR_BITS
        case "bitsandbytes":
            return 8.0
        case "gptq" | "awq":
            bits = float(settings.get("bits") or 4)
            group = float(settings.get("group_size") or _GROUP)
            return bits if group <= 0 else bits + (16 + bits) / group
        case _:
            return None


def count_bytes(lm: LanguageModel, bits: float | None) -> int:
    """Return the bytes of all weights.

    Args:
        lm: The model, of shapes alone.
        bits: Of a number of what is stored quantised: of a mixture the experts, else all matrices
            of blocks. None where nothing is.
    """
    inside = f"{lm.family.blocks}."
    mixture = any(".experts." in name for name, _ in lm.model.named_parameters())
    total = 0.0
    for name, one in lm.model.named_parameters():
        packed = bits is not None and name.startswith(inside) and one.dim() > 1
        if packed and mixture:
            packed = ".experts." in name and one.dim() > 2
        total += one.numel() * (bits / 8 if packed and bits is not None else one.element_size())
    return int(total)
