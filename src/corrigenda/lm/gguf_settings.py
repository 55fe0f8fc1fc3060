"""Settings that a GGUF file states and the reader of transformers leaves at their defaults.

Without them a model loads without an error and computes something else: other widths of heads,
rotary positions without their scaling, or logits without their cap.
"""

from __future__ import annotations

import struct
from math import pi, prod
from pathlib import Path

from transformers import PreTrainedConfig

from corrigenda.lm.gguf_header import GgufHeader, GgufTensor

_RENAMED = {
    "context_length": "max_position_embeddings",
    "attention.key_length": "head_dim",
    "expert_feed_forward_length": "moe_intermediate_size",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
# Blocks of the models of 27 billion parameters, whose attention is scaled by another width.
_LARGE_GEMMA = {"gemma2": 46, "gemma3": 62}
_SCALED = ("linear", "yarn")
_FLOAT32 = 0
# Of Llama 3.1 and later, with factors of 8 and 32.
_LOW, _HIGH, _TRAINED = 1.0, 4.0, 8192


def complete_settings(config: PreTrainedConfig, header: GgufHeader, file: Path) -> list[str]:
    """Set what the file states; return what it states and cannot be set, in words.

    Args:
        config: What transformers read from the file; changed.
        header: Of the file.
        file: The file, of which scales of rotary frequencies are read.
    """
    for key, name in _RENAMED.items():
        value = header.setting(key)
        if value is not None and hasattr(config, name):
            setattr(config, name, value)
    padding = getattr(config, "pad_token_id", None)
    if padding is not None and padding >= config.vocab_size:
        # The default of the family, where the file states none.
        config.pad_token_id = None
    _scale_attention(config, header)
    return _scale_positions(config, header, file)


def _scale_attention(config: PreTrainedConfig, header: GgufHeader) -> None:
    """Set the width by which Gemma scales attention; a GGUF file leaves it to the reader."""
    blocks = _LARGE_GEMMA.get(header.architecture)
    if blocks is None or not hasattr(config, "query_pre_attn_scalar"):
        return
    large = header.setting("block_count") == blocks
    width = config.hidden_size // config.num_attention_heads if large else config.head_dim
    config.query_pre_attn_scalar = width


def _scale_positions(config: PreTrainedConfig, header: GgufHeader, file: Path) -> list[str]:
    """Set the scaling of rotary positions."""
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict):
        return []
    # Gemma 3 has one for each kind of attention; only that of full attention is scaled.
    chosen = parameters.get("full_attention", parameters)
    left: list[str] = []
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = header.setting("rope.dimension_count")
    if isinstance(rotated, int) and 0 < rotated < width:
        chosen["partial_rotary_factor"] = rotated / width
    kind, factor = header.setting("rope.scaling.type"), header.setting("rope.scaling.factor")
    if kind in _SCALED and factor:
        chosen |= {"rope_type": kind, "factor": float(factor)}
        if original := header.setting("rope.scaling.original_context_length"):
            chosen["original_max_position_embeddings"] = int(original)
    elif kind not in (None, "none", *_SCALED):
        left.append(f"positions scaled by {kind}")
    scales = {tensor.name: tensor for tensor in header.tensors if tensor.name.startswith("rope_")}
    if found := scales.pop("rope_freqs.weight", None):
        values = _read_floats(found, header, file)
        if not _set_llama3(chosen, values, width):
            left.append("rope_freqs.weight")
    return left + sorted(scales)


def _set_llama3(parameters: dict[str, object], scales: list[float], width: int) -> bool:
    """Set the scaling of Llama 3.1 and later; return whether it gives the scales of the file.

    Frequencies whose wave is longer than the context of training divided by 1 are divided by the
    factor, those shorter than a quarter of it stay, and between them the scale is interpolated.
    """
    if not scales or max(scales) == 1.0:
        return True
    factor, base = max(scales), float(str(parameters["rope_theta"]))
    longest, shortest = _TRAINED / _LOW, _TRAINED / _HIGH
    for index, scale in enumerate(scales):
        wave = 2 * pi * base ** (2 * index / width)
        share = (_TRAINED / wave - _LOW) / (_HIGH - _LOW)
        between = 1 / ((1 - share) / factor + share)
        wanted = 1.0 if wave < shortest else factor if wave > longest else between
        if abs(scale - wanted) > 1e-3 * wanted:
            return False
    parameters |= {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _TRAINED,
    }
    return True


def _read_floats(tensor: GgufTensor, header: GgufHeader, file: Path) -> list[float]:
    """Return the numbers of a tensor of float32; none of another type."""
    if tensor.kind != _FLOAT32:
        return []
    count = prod(tensor.shape)
    with file.open("rb") as opened:
        opened.seek(header.start + tensor.offset)
        return list(struct.unpack(f"<{count}f", opened.read(4 * count)))
