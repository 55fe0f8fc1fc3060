"""Settings of a model as GGUF names them, by family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from transformers import PreTrainedConfig

from corrigenda.errors import NotExportable
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.storage import head_width

if TYPE_CHECKING:
    import gguf

# `transformers` numbers the blocks with global attention; llama.cpp knows the period by itself.
_GEMMA3_PERIOD = 6


def add_settings(writer: gguf.GGUFWriter, lm: LanguageModel) -> None:
    """Add what llama.cpp must know of a model besides its weights and tokenizer.

    Raises:
        NotExportable (CG405): a variant that llama.cpp computes otherwise, or whose settings this
            writer does not know.
    """
    config = lm.model.config.get_text_config()
    heads, width = config.num_attention_heads, head_width(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(lm.num_layers)
    writer.add_feed_forward_length(_inner_width(config))
    writer.add_head_count(heads)
    writer.add_vocab_size(config.vocab_size)
    if lm.family.name not in ("gpt2", "gpt_neox"):
        writer.add_head_count_kv(config.num_key_value_heads or heads)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(_norm_eps(config))
    if lm.family.name != "gpt2":
        theta, share = _read_rope(config, lm.name)
        writer.add_rope_freq_base(theta)
        writer.add_rope_dimension_count(int(width * share))
        writer.add_key_length(width)
        writer.add_value_length(width)
    add = _MORE.get(lm.family.name)
    if add is not None:
        add(writer, config)


def _inner_width(config: PreTrainedConfig) -> int:
    width = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return width or 4 * config.hidden_size


def _norm_eps(config: PreTrainedConfig) -> float:
    return getattr(config, "layer_norm_eps", None) or config.layer_norm_epsilon


def _read_rope(config: PreTrainedConfig, name: str) -> tuple[float, float]:
    """Return base and share of rotary positions; those of global attention where there are two."""
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    if rope.get("rope_type", "default") != "default":
        raise NotExportable(
            f"the rotary positions of this model are scaled ({rope['rope_type']}).",
            where=name,
            hint="Give a GGUF file of the unedited model, whose settings are copied: "
            "--base MODEL.gguf.",
        )
    return float(rope["rope_theta"]), float(rope.get("partial_rotary_factor", 1.0))


def _add_gpt_neox(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_parallel_residual(config.use_parallel_residual)


def _add_gemma(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_sliding_window(config.sliding_window)
    for value, add in (
        (config.attn_logit_softcapping, writer.add_attn_logit_softcapping),
        (config.final_logit_softcapping, writer.add_final_logit_softcapping),
    ):
        if value is not None:
            add(value)


def _add_gemma3(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    for number, kind in enumerate(config.layer_types):
        if (kind == "full_attention") != (number % _GEMMA3_PERIOD == _GEMMA3_PERIOD - 1):
            raise NotExportable(
                f"block {number} has {kind}; llama.cpp expects every sixth block to look at "
                "all tokens, and only those."
            )
    _add_gemma(writer, config)


def _add_phi3(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_sliding_window(config.sliding_window or 0)
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)


def _add_experts(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    if not config.norm_topk_prob:
        raise NotExportable(
            "llama.cpp divides the weights of the chosen experts by their sum; "
            "this model does not (norm_topk_prob)."
        )
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)


_MORE: Mapping[str, Callable[[gguf.GGUFWriter, PreTrainedConfig], None]] = {
    "gpt_neox": _add_gpt_neox,
    "gemma2": _add_gemma,
    "gemma3": _add_gemma3,
    "phi3": _add_phi3,
    "qwen3_moe": _add_experts,
}
