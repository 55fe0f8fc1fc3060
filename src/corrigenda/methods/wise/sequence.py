"""What a sequence of edits carries along beside its side memory, to a state and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pydantic import JsonValue
from torch import Tensor

from corrigenda.methods.wise.side_memory import Memory, Side, packed, unpacked
from corrigenda.state import State

_PREFIX = "wise/"
_SEQUENCE = f"{_PREFIX}sequence"


class Past(NamedTuple):
    """The edits of a sequence so far.

    Attributes:
        name: Of the sequence; empty before the first edit.
        turn: Calls of `edit`.
        edits: Facts edited.
        side: What they wrote.
        history: Prompt of each fact, and the number of the memory it went to; kept for replay.
    """

    name: str
    turn: int
    edits: int
    side: Side
    history: tuple[tuple[str, int], ...] = ()


def read_past(state: State, shape: tuple[int, int], dtype: torch.dtype) -> Past:
    """The edits that a state knows; none at all, with a side memory equal to the main one."""
    if _SEQUENCE not in state.meta:
        return Past("", 0, 0, Side(torch.zeros(shape, dtype=dtype)))
    kept: Any = state.meta[_SEQUENCE]
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.tensors.items():
        if name.startswith(_PREFIX):
            place, _, part = name.removeprefix(_PREFIX).rpartition("/")
            parts.setdefault(place, {})[part] = tensor
    deltas = {place: unpacked(own) for place, own in parts.items()}
    side = Side(
        current=deltas["current"],
        memories=tuple(
            Memory(deltas[f"memory/{i}"], score) for i, score in enumerate(kept["scores"])
        ),
        shards=tuple(deltas[f"shard/{i}"] for i in range(kept["shards"])),
        score=kept["score"],
        written=kept["written"],
        num_masks=kept["masks"],
    )
    history = tuple((str(prompt), int(number)) for prompt, number in kept["history"])
    return Past(kept["name"], kept["turn"], kept["edits"], side, history)


def with_past(state: State, past: Past) -> State:
    """The state with these edits in place of those it knew."""
    side = past.side
    deltas = {
        "current": side.current,
        **{f"memory/{i}": one.delta for i, one in enumerate(side.memories)},
        **{f"shard/{i}": one for i, one in enumerate(side.shards)},
    }
    tensors = {name: one for name, one in state.tensors.items() if not name.startswith(_PREFIX)}
    for place, delta in deltas.items():
        tensors |= {f"{_PREFIX}{place}/{part}": one for part, one in packed(delta).items()}
    scores: list[JsonValue] = [one.score for one in side.memories]
    history: list[JsonValue] = [list[JsonValue](one) for one in past.history]
    kept: dict[str, JsonValue] = {
        "name": past.name,
        "turn": past.turn,
        "edits": past.edits,
        "scores": scores,
        "shards": len(side.shards),
        "score": side.score,
        "written": side.written,
        "masks": side.num_masks,
        "history": history,
    }
    return State(tensors, {**state.meta, _SEQUENCE: kept})
