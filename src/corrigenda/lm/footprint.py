"""How much memory and work passes take, estimated from a model's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from corrigenda.lm.model import LanguageModel

USUAL_TOKENS = 24
"""Tokens of a fact of usual length: a short context, its prompt and target."""

USUAL_READS = 2
"""Tokens of a target of usual length."""

FLOAT = 4
"""Bytes of a float32 number."""

# Numbers kept for the backward pass of a block, per token: those of norms and attention in units of
# d_model, those of the non-linearity in units of d_inner, where a gate is a product of two
# projections; and for each earlier position a key and a value, in units of d_model.
_OF_MODEL, _OF_INNER, _OF_GATED_INNER, _OF_EARLIER = 8, 4, 3, 2
# The same for the states of a pass without gradients.
_OF_PASS = 3
# Logits, their log-probabilities and the gradient of both.
_OF_LOGITS = 3
# Shares of the free memory that one graph and one loss over the vocabulary may take.
_GRAPH_SHARE, _HEAD_SHARE = 4, 8
_LEAST_TOKENS = 64


class Room(NamedTuple):
    """The device that a model runs on: its kind, and the bytes that are free on it.

    Attributes:
        kind: "cpu", or "cuda" for every accelerator: the name under which sizes are listed.
        free: Bytes; None where they are not known.
    """

    kind: str
    free: int | None


# Devices that models without weights are planned for.
_PLANNED: WeakKeyDictionary[nn.Module, Room] = WeakKeyDictionary()


def room_of(lm: LanguageModel) -> Room:
    """Return the room of a model: that of its device, or the one it is planned for.

    What torch holds in reserve on a GPU and does not use counts as free.
    """
    planned = _PLANNED.get(lm.model)
    if planned is not None:
        return planned
    if lm.device.type == "cuda":
        unused = torch.cuda.memory_reserved(lm.device) - torch.cuda.memory_allocated(lm.device)
        return Room("cuda", int(torch.cuda.mem_get_info(lm.device)[0]) + unused)
    return Room("cpu" if lm.device.type == "cpu" else "cuda", None)


def plan_room(lm: LanguageModel, room: Room) -> None:
    """Plan a model without weights for a device that need not be there."""
    _PLANNED[lm.model] = room


def graph_bytes(lm: LanguageModel, blocks: int, tokens: int, earlier: int = 0) -> int:
    """Return the bytes that the blocks keep for one backward pass.

    Args:
        lm: The model.
        blocks: How many blocks run.
        tokens: Positions that run, of all rows.
        earlier: Positions before them that they attend to and that do not run, of all rows.
    """
    numbers = tokens * (_OF_MODEL * lm.d_model + _inner_numbers(lm))
    return blocks * (numbers + earlier * _OF_EARLIER * lm.d_model) * lm.dtype.itemsize


def pass_bytes(lm: LanguageModel, tokens: int, kept: int) -> int:
    """Return the bytes of a pass without gradients that keeps some inputs of down projections."""
    per_token = _OF_PASS * lm.d_model + _inner_numbers(lm) + (kept - 1) * lm.d_inner
    return tokens * per_token * lm.dtype.itemsize


def cache_bytes(lm: LanguageModel, tokens: int, blocks: int) -> int:
    """Return the bytes of the keys and values of so many positions in some blocks."""
    config = lm.model.config.get_text_config()
    heads = config.num_attention_heads
    own = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or lm.d_model // heads
    return 2 * blocks * tokens * own * width * lm.dtype.itemsize


def _inner_numbers(lm: LanguageModel) -> int:
    gated = "mlp.gate" in lm.family.slots
    return (_OF_GATED_INNER if gated else _OF_INNER) * lm.d_inner


def head_bytes(lm: LanguageModel, rows: int) -> int:
    """Return the bytes that a loss over the vocabulary takes at so many positions."""
    return _OF_LOGITS * FLOAT * rows * vocabulary_of(lm)


def vocabulary_of(lm: LanguageModel) -> int:
    """Return the number of logits of a model."""
    return int(lm.model.config.get_text_config().vocab_size)


def graph_tokens(
    lm: LanguageModel, blocks: int, most: Mapping[str, int], *, earlier: int = 0
) -> int:
    """Return how many tokens may run together with gradients through the last blocks.

    Args:
        lm: The model.
        blocks: How many blocks keep a graph.
        most: The largest number by kind of device.
        earlier: Earlier positions for each token, see `graph_bytes`.

    Returns:
        The largest number where the free memory is not known; else as many as fit into a quarter of
        it, as a power of two, so that a little more or less free memory changes nothing.
    """
    room = room_of(lm)
    return _fit(most[room.kind], room, _GRAPH_SHARE, graph_bytes(lm, max(blocks, 1), 1, earlier))


def head_rows(lm: LanguageModel, most: Mapping[str, int]) -> int:
    """Return at how many positions logits may be computed at once; see `graph_tokens`."""
    room = room_of(lm)
    return _fit(most[room.kind], room, _HEAD_SHARE, head_bytes(lm, 1))


def _fit(most: int, room: Room, share: int, size: int) -> int:
    if room.free is None:
        return most
    fitting = max(room.free // share // size, min(most, _LEAST_TOKENS))
    return most if fitting >= most else 1 << (fitting.bit_length() - 1)


def pass_flops(lm: LanguageModel, tokens: float, first: int = 0, last: int | None = None) -> float:
    """Return the operations of a forward pass of the blocks `first` to `last` over tokens.

    Two for each weight and token; of the experts of a mixture, those that a token is routed to.
    Scores of attention are left out: at the length of a fact they are few.
    """
    blocks = list(lm.blocks)[first : None if last is None else last + 1]
    return 2.0 * tokens * sum(_active_weights(lm, block) for block in blocks)


def head_flops(lm: LanguageModel, rows: float) -> float:
    """Return the operations of the vocabulary head at so many positions."""
    return 2.0 * rows * lm.d_model * vocabulary_of(lm)


def _active_weights(lm: LanguageModel, block: nn.Module) -> float:
    config = lm.model.config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", None)
    experts = lm.family.experts
    count = 0.0
    for name, parameter in block.named_parameters():
        if parameter.dim() < 2:
            continue
        routed = experts is not None and name.startswith(f"{experts}.")
        share = chosen / parameter.shape[0] if routed and chosen else 1.0
        count += parameter.numel() * share
    return count
