"""Random models of every family, a few thousand parameters each, built from configurations."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from corrigenda.lm.model import LanguageModel
from corrigenda.testing.tokenizers import byte_level_bpe, sentencepiece_like

_WIDTH, _INNER, _HEADS, _CONTEXT, _WINDOW = 32, 80, 4, 128, 8
_HEAD_WIDTH = _WIDTH // _HEADS

_GPT: dict[str, Any] = {"n_embd": _WIDTH, "n_head": _HEADS, "n_positions": _CONTEXT}
_MODERN: dict[str, Any] = {
    "hidden_size": _WIDTH,
    "intermediate_size": _INNER,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": _CONTEXT,
}
_GEMMA: dict[str, Any] = {
    **_MODERN,
    "head_dim": _HEAD_WIDTH,
    "query_pre_attn_scalar": _HEAD_WIDTH,
    "sliding_window": _WINDOW,
}
_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", _GPT),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 8}),
    "gpt_neox": ("gpt_neox", {**_MODERN, "intermediate_size": 4 * _WIDTH}),
    "opt": (
        "opt",
        {
            "hidden_size": _WIDTH,
            "word_embed_proj_dim": _WIDTH,
            "ffn_dim": _INNER,
            "num_attention_heads": _HEADS,
            "max_position_embeddings": _CONTEXT,
        },
    ),
    "llama": ("llama", _MODERN),
    "mistral": ("mistral", {**_MODERN, "head_dim": 16, "sliding_window": _WINDOW}),
    "qwen2": ("qwen2", _MODERN),
    "qwen3": ("qwen3", {**_MODERN, "head_dim": 16}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            **_MODERN,
            "head_dim": 16,
            "moe_intermediate_size": 24,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            # The default, a grouped matrix product, has no float64.
            "experts_implementation": "eager",
        },
    ),
    "gemma2": ("gemma2", {**_GEMMA, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", _GEMMA),
    "phi3": ("phi3", _MODERN),
    "olmo2": ("olmo2", _MODERN),
}
_SENTENCEPIECE = ("llama", "mistral", "gemma2", "gemma3", "phi3")

FAMILIES: tuple[str, ...] = tuple(_SETTINGS)
"""Names for `tiny_model`."""


def tiny_model(
    family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, layers: int = 4
) -> LanguageModel:
    """Make a small random model of a family: the same one for the same arguments.

    Its width is 32, its vocabulary 512, its context 128 tokens; norms and biases are random too, so
    that no fault is hidden by ones and zeros. Sliding windows are 8 tokens.

    Args:
        family: One of `FAMILIES`.
        dtype: Of all weights; drawn in float32 and rounded.
        seed: Of the weights; the global random state is left alone.
        layers: Number of blocks.

    Example:
        >>> tiny_model("llama").num_layers
        4
    """
    tokenizer = sentencepiece_like() if family in _SENTENCEPIECE else byte_level_bpe()
    model_type, settings = _SETTINGS[family]
    count = {"n_layer" if "n_embd" in settings else "num_hidden_layers": layers}
    config = AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer), **settings, **_special(tokenizer), **count
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape)
                if parameter.dim() == 1:
                    parameter.add_((0.1 * noise).to(dtype))
                else:
                    parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return LanguageModel(model, tokenizer, name=f"tiny-{family}")


def _special(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
