"""Which family a model is of: by the table, else by the names and shapes of its modules.

A guess counts only if the model obeys it: in a short pass every block must add exactly its two
writes to the residual stream, and the head must give the model's logits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from corrigenda.errors import UnknownFamily
from corrigenda.lm.families import FAMILIES, Family, Fused, Slot, known
from corrigenda.lm.head import logits_of
from corrigenda.lm.hooks import Hooks, TensorMap
from corrigenda.lm.sites import Point, Site, state, write
from corrigenda.lm.storage import Storage, submodule

# By part, what modules are called. Fused queries, keys and values have several layouts that their
# shapes do not tell apart, so a model that has them is left without those parts.
_NAMES: dict[str, tuple[str, Fused]] = {
    "mlp.down": (r"down_proj|fc_out|fc2|dense_4h_to_h|(?:mlp|ffn|feed_forward)\.c_proj", ""),
    "mlp.up": (r"up_proj|fc_in|fc1|dense_h_to_4h|c_fc|gate_up_proj", ""),
    "mlp.gate": (r"gate_proj|gate_up_proj", ""),
    "attn.out": (r"o_proj|out_proj|[a-z_]*att[a-z]*\.(?:dense|c_proj)", ""),
    "attn.q": (r"q_proj", ""),
    "attn.k": (r"k_proj", ""),
    "attn.v": (r"v_proj", ""),
}
_FINAL_NORMS = r"norm|ln_f|final_layer_?norm|final_norm|norm_f"
_POST_NORMS: tuple[tuple[str | None, str | None], ...] = (
    (None, None),
    ("post_feedforward_layernorm", "post_attention_layernorm"),
    ("post_mlp_layernorm", "post_self_attn_layernorm"),
)
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
_HALF_TOLERANCE = 3e-2


def resolve(model: PreTrainedModel) -> Family:
    """Return the family of a model.

    Raises:
        UnknownFamily (CG302): it is not in the table and its modules do not tell it unambiguously.
    """
    family = known(model)
    if family is not None:
        return family
    try:
        guesses = list(_guess(model))
    except _Ambiguous as reason:
        raise _unknown(model, str(reason)) from None
    failures = []
    for guess in guesses:
        failure = _find_failure(model, guess)
        if failure is None:
            return guess
        failures.append(failure)
    raise _unknown(model, failures[0])


class _Ambiguous(Exception):
    """The modules allow several readings, or none."""


def _guess(model: PreTrainedModel) -> Iterator[Family]:
    config = model.config.get_text_config()
    count = config.num_hidden_layers
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    # With as many experts as layers there are other lists of that length, but inside blocks.
    lists = [one for one in lists if not any(one[0].startswith(f"{other}.") for other, _ in lists)]
    if len(lists) != 1:
        raise _Ambiguous(f"{len(lists)} lists of {count} modules could be the blocks")
    path, blocks = lists[0]
    parent = path.rpartition(".")[0]
    norms = [
        name
        for name, _ in model.get_submodule(parent).named_children()
        if re.fullmatch(_FINAL_NORMS, name)
    ]
    if len(norms) != 1:
        raise _Ambiguous(f"{len(norms)} modules next to {path} could be the final norm")
    slots = _slots(blocks[0], config.hidden_size)
    for mlp_norm, attn_norm in _POST_NORMS:
        named = [norm for norm in (mlp_norm, attn_norm) if norm is not None]
        if all(submodule(blocks[0], norm) is not None for norm in named):
            yield Family(
                name=config.model_type,
                model_types=(config.model_type,),
                blocks=path,
                final_norm=f"{parent}.{norms[0]}" if parent else norms[0],
                slots=slots,
                mlp_norm=mlp_norm,
                attn_norm=attn_norm,
                flat_mlp=True,
            )


def _slots(block: nn.Module, d_model: int) -> dict[str, Slot]:
    slots: dict[str, Slot] = {}
    for part, (pattern, fused) in _NAMES.items():
        found = [
            path
            for path, module in block.named_modules()
            if re.search(rf"(?:^|\.)(?:{pattern})$", path)
            and getattr(getattr(module, "weight", None), "ndim", 0) == 2
        ]
        if len(found) > 1:
            raise _Ambiguous(f"{part} could be {' or '.join(found)}")
        if found:
            layout: Fused = "gate_up" if found[0].endswith("gate_up_proj") else fused
            slots[part] = Slot(found[0], layout)
    for part in ("mlp.down", "attn.out"):
        if part not in slots:
            raise _Ambiguous(f"no module of a block looks like {part}")
        module = block.get_submodule(slots[part].path)
        if d_model not in module.get_parameter("weight").shape:
            raise _Ambiguous(f"{slots[part].path} does not give vectors of width {d_model}")
    return slots


@torch.no_grad()
def _find_failure(model: PreTrainedModel, family: Family) -> str | None:
    """Return what a short pass contradicts in a guess; None if it contradicts nothing."""
    was_training = model.training
    model.eval()
    storage = Storage(model, family)
    seen: dict[Point, Tensor] = {}

    def recorder(point: Point) -> TensorMap:
        def record(tensor: Tensor) -> Tensor:
            return seen.setdefault(point, tensor)

        return record

    layers = range(len(storage.blocks))
    points = [state(layer) for layer in range(-1, len(layers))]
    points += [write(Site(layer, part)) for layer in layers for part in ("mlp.down", "attn.out")]
    ids = torch.arange(1, 5, device=next(model.get_input_embeddings().parameters()).device)[None]
    try:
        with Hooks(storage, family).attached({point: recorder(point) for point in points}):
            logits = model(input_ids=ids, use_cache=False).logits
        expected = logits_of(model, family, seen[state(len(layers) - 1)])
    finally:
        model.train(was_training)
    for layer in layers:
        parts = [seen[write(Site(layer, part))] for part in ("mlp.down", "attn.out")]
        if not _close(seen[state(layer)], sum(parts, start=seen[state(layer - 1)])):
            return f"block {layer} does not add what its attention and feed-forward part put out"
    if not _close(expected, logits):
        return "final norm and head do not give the model's logits"
    return None


def _close(first: Tensor, second: Tensor) -> bool:
    tolerance = _TOLERANCE.get(first.dtype, _HALF_TOLERANCE)
    return bool((first - second).float().norm() <= tolerance * second.float().norm())


def _unknown(model: PreTrainedModel, reason: str) -> UnknownFamily:
    names = ", ".join(family.name for family in FAMILIES)
    return UnknownFamily(
        f'the architecture "{model.config.model_type}" is not in the table, and its modules do '
        f"not tell it: {reason}.",
        where=f"{type(model).__name__}; known: {names}",
        hint="Declare it: LanguageModel(model, tokenizer, family=Family(name=..., blocks=..., "
        'final_norm=..., slots={"mlp.down": Slot(...), "attn.out": Slot(...)}, mlp_norm=..., '
        "attn_norm=...)), and run corrigenda.testing.family.check_family on the result.",
    )
