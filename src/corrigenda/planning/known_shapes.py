"""Shapes of public models, as their `config.json` has them, to plan for without a network.

Only what decides shapes is here. Source of each: the file `config.json` of the model of this name
on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_LLAMA_3_8B: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
_QWEN_2_5_7B: Mapping[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
_GEMMA_2_9B: Mapping[str, Any] = {
    "model_type": "gemma2",
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
_GPT_OSS_20B: Mapping[str, Any] = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "vocab_size": 201088,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "quantization_config": {"quant_method": "mxfp4"},
}

KNOWN_SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "meta-llama/Meta-Llama-3-8B": _LLAMA_3_8B,
        "Qwen/Qwen2.5-7B": _QWEN_2_5_7B,
        "google/gemma-2-9b": _GEMMA_2_9B,
        "openai/gpt-oss-20b": _GPT_OSS_20B,
    }
)
"""Fields of the configuration by name on the hub."""
