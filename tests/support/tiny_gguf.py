"""Tiny models written as GGUF files, in the layout of llama.cpp's converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from corrigenda.exports import gguf_layout
from corrigenda.lm.model import LanguageModel

# Transformers does not read GPT-NeoX.
ARCHITECTURES = {
    family: name for family, name in gguf_layout.ARCHITECTURES.items() if family != "gpt_neox"
}
_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def write_gguf(
    lm: LanguageModel,
    file: Path,
    *,
    architecture: str = "",
    extra: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a model in float32.

    Args:
        lm: The model.
        file: Where.
        architecture: Another name than its family has.
        extra: More settings: text, numbers, true or false.
        tensors: More tensors.
    """
    import gguf

    name = architecture or ARCHITECTURES[lm.family.name]
    writer = gguf.GGUFWriter(file, name)
    _write_settings(writer, lm, name)
    _write_tokenizer(writer, lm)
    for key, value in (extra or {}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_float32(key, value)
    kind = next(
        one for one, text in gguf.MODEL_ARCH_NAMES.items() if text == ARCHITECTURES[lm.family.name]
    )
    names = gguf.get_tensor_name_map(kind, lm.num_layers)
    tied = lm.model.config.tie_word_embeddings
    for path, tensor in lm.model.state_dict().items():
        if path == "lm_head.weight" and tied:
            continue
        for stem, values in _convert(path, tensor.float(), lm):
            base, _, suffix = stem.rpartition(".")
            if suffix not in ("weight", "bias"):
                base, suffix = stem, "weight"
            own = names.get_name(base)
            assert own is not None, stem
            writer.add_tensor(f"{own}.{suffix}", np.ascontiguousarray(values.numpy()))
    for own, values in (tensors or {}).items():
        writer.add_tensor(own, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_settings(writer: Any, lm: LanguageModel, name: str) -> None:
    config = lm.model.config
    writer.add_name(f"tiny {lm.family.name}")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(lm.num_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(lm.d_inner)
    writer.add_head_count(config.num_attention_heads)
    if name == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_dimension_count(int(width * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    if name in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if name == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if name == "qwen3moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _write_tokenizer(writer: Any, lm: LanguageModel) -> None:
    vocabulary = lm.tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {lm.tokenizer.bos_token, lm.tokenizer.eos_token, lm.tokenizer.unk_token}
    pieces = "<0x00>" in vocabulary
    types = [
        3 if token in special else 6 if pieces and token.startswith("<0x") else 1
        for token in tokens
    ]
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if pieces:
        writer.add_token_scores([-float(index) for index in range(len(tokens))])
        writer.add_unk_token_id(lm.tokenizer.unk_token_id)
    else:
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(_read_merges(lm))
        writer.add_add_bos_token(False)
    writer.add_bos_token_id(lm.tokenizer.bos_token_id)
    writer.add_eos_token_id(lm.tokenizer.eos_token_id)
    if lm.tokenizer.chat_template:
        writer.add_chat_template(lm.tokenizer.chat_template)


def _read_merges(lm: LanguageModel) -> list[str]:
    import json

    merges = json.loads(lm.tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return [" ".join(pair) for pair in merges]


def _convert(path: str, tensor: torch.Tensor, lm: LanguageModel) -> list[tuple[str, torch.Tensor]]:
    """Return a tensor as GGUF files hold it, under the name that gguf maps."""
    config, family = lm.model.config, lm.family.name
    if family in ("llama", "mistral") and path.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config.num_attention_heads if "q_proj" in path else config.num_key_value_heads
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1)
        return [(path, halves.transpose(1, 2).reshape(tensor.shape))]
    if family in ("gemma2", "gemma3") and path.endswith("norm.weight"):
        return [(path, tensor + 1)]
    if family == "gpt2" and path.endswith(_TRANSPOSED):
        return [(path, tensor.T)]
    if path.endswith("experts.gate_up_proj"):
        gate, up = tensor.chunk(2, dim=1)
        stem = path.removesuffix("gate_up_proj")
        return [(f"{stem}gate_proj.weight", gate), (f"{stem}up_proj.weight", up)]
    if path.endswith("experts.down_proj"):
        return [(f"{path}.weight", tensor)]
    return [(path, tensor)]
