"""One table of architectures: where each family keeps its blocks, weights and norms.

A row is all that is known about a family. Whether a weight is stored transposed is decided by the
class of its module, never by comparing shapes, and everything about positions and attention masks
is taken from what the model hands to its own blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel

from corrigenda.errors import UnknownFamily

Fused = Literal["", "qkv", "qkv by head", "gate_up"]


@dataclass(frozen=True)
class Slot:
    """The module that holds a part's weight.

    Attributes:
        path: Path inside a block.
        fused: How several parts share the module's output rows: "qkv" one after the other,
            "qkv by head" for each head in turn (GPT-NeoX), "gate_up" gate first; empty when the
            module is this part alone.
    """

    path: str
    fused: Fused = ""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Paths of blocks, weights and norms in one architecture.

    Attributes:
        name: Name of the family.
        model_types: Values of `config.model_type` that lead here.
        blocks: Path of the list of blocks.
        final_norm: Path of the norm in front of the head.
        slots: Where each part is, by part.
        mlp_norm: Norm between the down projection and the residual stream, inside a block.
        attn_norm: Norm between the attention output and the residual stream, inside a block.
        experts: Fused experts inside a block; blocks without this module are dense.
        parallel: Attention and feed-forward block both read the stream that enters the block.
        flat_mlp: The feed-forward block sees tokens as one axis, batch and position together.
        needs: Settings without which the rest does not hold, as (name in the config, value).
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    final_norm: str
    slots: Mapping[str, Slot]
    mlp_norm: str | None = None
    attn_norm: str | None = None
    experts: str | None = None
    parallel: bool = False
    flat_mlp: bool = False
    needs: tuple[tuple[str, object], ...] = ()


def _attention(path: str, out: str) -> dict[str, Slot]:
    """Return slots of separate projections."""
    return {
        "attn.out": Slot(f"{path}.{out}"),
        "attn.q": Slot(f"{path}.q_proj"),
        "attn.k": Slot(f"{path}.k_proj"),
        "attn.v": Slot(f"{path}.v_proj"),
    }


def _fused_attention(path: str, out: str, fused: str, layout: Fused) -> dict[str, Slot]:
    """Return slots of one projection for queries, keys and values."""
    shared = {part: Slot(f"{path}.{fused}", layout) for part in ("attn.q", "attn.k", "attn.v")}
    return {"attn.out": Slot(f"{path}.{out}"), **shared}


def _mlp(down: str, up: str, gate: str | None = None) -> dict[str, Slot]:
    plain = {"mlp.down": Slot(down), "mlp.up": Slot(up)}
    return plain if gate is None else {**plain, "mlp.gate": Slot(gate)}


_LLAMA_SLOTS = {
    **_mlp("mlp.down_proj", "mlp.up_proj", "mlp.gate_proj"),
    **_attention("self_attn", "o_proj"),
}
_SANDWICH = {"mlp_norm": "post_feedforward_layernorm", "attn_norm": "post_attention_layernorm"}


def _like_llama(
    name: str,
    *model_types: str,
    mlp_norm: str | None = None,
    attn_norm: str | None = None,
    experts: str | None = None,
) -> Family:
    return Family(
        name=name,
        model_types=model_types,
        blocks="model.layers",
        final_norm="model.norm",
        slots=_LLAMA_SLOTS,
        mlp_norm=mlp_norm,
        attn_norm=attn_norm,
        experts=experts,
    )


FAMILIES: tuple[Family, ...] = (
    Family(
        name="gpt2",
        model_types=("gpt2",),
        blocks="transformer.h",
        final_norm="transformer.ln_f",
        slots={
            **_mlp("mlp.c_proj", "mlp.c_fc"),
            **_fused_attention("attn", "c_proj", "c_attn", "qkv"),
        },
        needs=(("add_cross_attention", False),),
    ),
    Family(
        name="gptj",
        model_types=("gptj",),
        blocks="transformer.h",
        final_norm="transformer.ln_f",
        slots={**_mlp("mlp.fc_out", "mlp.fc_in"), **_attention("attn", "out_proj")},
        parallel=True,
    ),
    Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        blocks="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        slots={
            **_mlp("mlp.dense_4h_to_h", "mlp.dense_h_to_4h"),
            **_fused_attention("attention", "dense", "query_key_value", "qkv by head"),
        },
        parallel=True,
    ),
    Family(
        name="opt",
        model_types=("opt",),
        blocks="model.decoder.layers",
        final_norm="model.decoder.final_layer_norm",
        slots={**_mlp("fc2", "fc1"), **_attention("self_attn", "out_proj")},
        flat_mlp=True,
        needs=(("do_layer_norm_before", True), ("_remove_final_layer_norm", False)),
    ),
    _like_llama("llama", "llama"),
    _like_llama("mistral", "mistral"),
    _like_llama("qwen2", "qwen2"),
    _like_llama("qwen3", "qwen3"),
    _like_llama("qwen3_moe", "qwen3_moe", experts="mlp.experts"),
    _like_llama("gemma2", "gemma2", **_SANDWICH),
    _like_llama("gemma3", "gemma3_text", **_SANDWICH),
    Family(
        name="phi3",
        model_types=("phi3",),
        blocks="model.layers",
        final_norm="model.norm",
        slots={
            "mlp.down": Slot("mlp.down_proj"),
            "mlp.up": Slot("mlp.gate_up_proj", "gate_up"),
            "mlp.gate": Slot("mlp.gate_up_proj", "gate_up"),
            **_fused_attention("self_attn", "o_proj", "qkv_proj", "qkv"),
        },
    ),
    _like_llama("olmo2", "olmo2", **_SANDWICH),
)
"""The families that are understood."""


def known(model: PreTrainedModel) -> Family | None:
    """Return the row of the table for a model, by its `model_type`; None if there is none.

    Raises:
        UnknownFamily (CG302): a variant of a known family that is built differently.
    """
    model_type = getattr(model.config, "model_type", "")
    for family in FAMILIES:
        if model_type in family.model_types:
            _require_variant(family, model)
            return family
    return None


def _require_variant(family: Family, model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    for name, wanted in family.needs:
        found = getattr(config, name, wanted)
        if found != wanted:
            raise UnknownFamily(
                f"this {family.name} model has {name} = {found!r}; only {wanted!r} is supported.",
                where=f"model type {model.config.model_type}",
                hint="Its blocks are built differently, so what a weight adds to the residual "
                "stream cannot be told. Use another size of this model.",
            )
