"""WISE's side memory: its scores, masks of sub-spaces, merging of sub-spaces, and its tensors.

Letters: W main memory, a down projection (d_out d_in) - W' its side copy - D = W' - W (d_out d_in)
- a inputs of the projection (batch pos d_in).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import JsonValue
from torch import Tensor
from torch.nn.functional import linear

from corrigenda.state import State

Merge = Literal["ties", "linear"]
Activation = Callable[[Tensor], Tensor]

_PREFIX = "wise/"
_SEQUENCE = f"{_PREFIX}sequence"


class SideMemory(NamedTuple):
    """A finished side memory, to which queries are routed.

    Attributes:
        delta: D.
        score: eps, the smallest score of the edits in it.
    """

    delta: Float[Tensor, "d_out d_in"]
    score: float


@dataclass(frozen=True, eq=False)
class SideState:
    """Everything that a sequence of edits has written, apart from the main memory.

    Attributes:
        memories: Finished ones: at most one where shards are merged into it, else several.
        shards: Changes of the sub-spaces that are full but not merged yet.
        current: Change of the sub-space that is being written; where it was trained.
        score: Smallest score of the edits since the last merge; None where there is none.
        written: Edits in the current sub-space.
        num_masks: Sub-spaces drawn so far.
    """

    current: Float[Tensor, "d_out d_in"]
    memories: tuple[SideMemory, ...] = ()
    shards: tuple[Float[Tensor, "d_out d_in"], ...] = ()
    score: float | None = None
    written: int = 0
    num_masks: int = 1

    def add_edits(
        self, current: Float[Tensor, "d_out d_in"], scores: Sequence[float], count: int
    ) -> SideState:
        """Return the state after `count` edits of the current sub-space, with scores that count."""
        known = [*scores, *([] if self.score is None else [self.score])]
        return replace(
            self, current=current, score=min(known, default=None), written=self.written + count
        )

    def finish_shard(self) -> SideState:
        """Return the state with the current sub-space finished and a new one begun."""
        return replace(
            self,
            current=torch.zeros_like(self.current),
            shards=(*self.shards, self.current.cpu()),
            written=0,
            num_masks=self.num_masks + 1,
        )

    def pending_memory(self, merge: MergePolicy) -> SideMemory | None:
        """Return the edits since the last merge as one memory; None where no edit counts."""
        if self.score is None:
            return None
        return SideMemory(merge.merge_new(self._all_shards()), self.score)

    def merge(self, merge: MergePolicy) -> SideState:
        """Return the state with all sub-spaces merged into memories."""
        return replace(
            self,
            memories=self.all_memories(merge),
            shards=(),
            current=torch.zeros_like(self.current),
            score=None,
            written=0,
        )

    def all_memories(self, merge: MergePolicy) -> tuple[SideMemory, ...]:
        """Return the memories to which queries are routed, those not merged yet included."""
        pending = self.pending_memory(merge)
        if pending is None:
            return self.memories
        if merge.keep_apart or not self.memories:
            return (*self.memories, pending)
        (present,) = self.memories
        return (
            SideMemory(
                merge.merge_into(present.delta, self._all_shards()),
                min(present.score, pending.score),
            ),
        )

    def _all_shards(self) -> tuple[Float[Tensor, "d_out d_in"], ...]:
        """Return the changes since the last merge, on the CPU."""
        return (*self.shards, *([self.current.cpu()] if self.written else []))


@dataclass(frozen=True)
class MergePolicy:
    """Policy by which the shards of sub-spaces are merged into memories.

    Attributes:
        keep_apart: Each merge makes a memory of its own (WISE-Retrieve).
        how: "ties", or "linear", a weighted sum.
        density: Share of the entries of a shard that TIES keeps, the largest.
        present: Weight of the present side memory when new shards are merged into it; they share
            the rest.
    """

    keep_apart: bool
    how: Merge
    density: float
    present: float

    def merge_new(
        self, shards: Sequence[Float[Tensor, "d_out d_in"]]
    ) -> Float[Tensor, "d_out d_in"]:
        """Return shards, with equal weights, as one change."""
        return self._merge(shards, [1.0 / len(shards)] * len(shards))

    def merge_into(
        self,
        present: Float[Tensor, "d_out d_in"],
        shards: Sequence[Float[Tensor, "d_out d_in"]],
    ) -> Float[Tensor, "d_out d_in"]:
        """Return the present memory with new shards merged into it."""
        share = (1.0 - self.present) / len(shards)
        return self._merge([present, *shards], [self.present, *[share] * len(shards)])

    def _merge(
        self, deltas: Sequence[Float[Tensor, "d_out d_in"]], weights: Sequence[float]
    ) -> Float[Tensor, "d_out d_in"]:
        if len(deltas) == 1:
            return deltas[0].clone()
        if self.how == "linear":
            return torch.stack([w * one for w, one in zip(weights, deltas, strict=True)]).sum(0)
        return ties(deltas, weights, self.density)


def trim(delta: Float[Tensor, "d_out d_in"], density: float) -> Float[Tensor, "d_out d_in"]:
    """Return the share `density` of the entries with the largest size; the others are zero."""
    count = max(1, int(density * delta.numel()))
    size = delta.abs().flatten()
    if int(torch.count_nonzero(size)) <= count:
        return delta
    bound = size.kthvalue(delta.numel() - count + 1).values
    return torch.where(delta.abs() >= bound, delta, torch.zeros_like(delta))


def ties(
    deltas: Sequence[Float[Tensor, "d_out d_in"]], weights: Sequence[float], density: float
) -> Float[Tensor, "d_out d_in"]:
    """Trim, elect a sign for each entry, and average those that agree with it.

    The sign elected is that of the weighted sum, plus where it is zero. A zero agrees with no sign,
    so an entry that only one change touches stays as it is.

    Reference: Yadav et al. 2023, section 3; WISE (Wang et al. 2024), equation 7.
    """
    kept = [trim(delta, density) for delta in deltas]
    total = sum(w * one for w, one in zip(weights, kept, strict=True))
    assert isinstance(total, Tensor), "at least one change is merged"
    positive = total >= 0
    summed, share = torch.zeros_like(total), torch.zeros_like(total)
    for weight, one in zip(weights, kept, strict=True):
        agrees = torch.where(positive, one > 0, one < 0)
        summed += weight * one * agrees
        share += weight * agrees
    return summed / torch.where(share == 0, torch.ones_like(share), share)


def random_mask(
    shape: Sequence[int], ratio: float, *, seed: int, number: int
) -> Bool[Tensor, "d_out d_in"]:
    """Draw the entries of a sub-space, each with probability `ratio`, on the CPU."""
    own = 1_000_003 * seed + number
    generator = torch.Generator().manual_seed(own if abs(own) < 2**63 else own % 2**63)
    return torch.rand(tuple(shape), generator=generator) < ratio


def token_scores(
    inputs: Float[Tensor, "batch pos d_in"],
    delta: Float[Tensor, "d_out d_in"],
    outputs: Float[Tensor, "batch pos d_out"] | None = None,
    act: Activation | None = None,
) -> Float[Tensor, "batch pos"]:
    """Return how differently main and side memory respond to each token.

    ||a D^T||, or with an activation function ||act(o) - act(o + a D^T)|| with o the outputs of the
    main memory, as the authors' code has it.

    Reference: Wang et al. 2024, equation 2.
    """
    return response_scores(linear(inputs, delta), outputs, act)


def response_scores(
    response: Float[Tensor, "batch pos d_out"],
    outputs: Float[Tensor, "batch pos d_out"] | None = None,
    act: Activation | None = None,
) -> Float[Tensor, "batch pos"]:
    """Return the same as `token_scores`, from the response a D^T."""
    if act is None:
        return torch.linalg.vector_norm(response, dim=-1)
    assert outputs is not None, "activations are compared at outputs"
    outputs = outputs.to(response.dtype)
    return torch.linalg.vector_norm(act(outputs) - act(outputs + response), dim=-1)


def query_scores(
    scores: Float[Tensor, "batch pos"],
    inside: Bool[Tensor, "batch pos"],
    longest_mean: int | None = None,
) -> Float[Tensor, " batch"]:
    """Return the mean score of each row's own tokens, or the largest score of longer rows."""
    inside = inside.to(scores.device)
    count = inside.sum(1)
    mean = (scores * inside).sum(1) / count.clamp_min(1)
    if longest_mean is None:
        return mean
    largest = scores.masked_fill(~inside, 0.0).amax(1)
    return torch.where(count > longest_mean, largest, mean)


def choose(
    scores: Float[Tensor, "memory batch"], thresholds: Float[Tensor, " memory"]
) -> Int[Tensor, " batch"]:
    """Choose the memory that responds most to each query among those above their threshold, or -1.

    Reference: Wang et al. 2024, equations 4 and 9.
    """
    thresholds = thresholds.to(scores.device)[:, None]
    above = scores > thresholds
    best = scores.masked_fill(~above, -1.0).argmax(0)
    return torch.where(above.any(0), best, torch.full_like(best, -1))


def pack(delta: Float[Tensor, "d_out d_in"]) -> dict[str, Tensor]:
    """Return a change as one bit an entry and the values of those that are not zero; exact."""
    delta = delta.detach().cpu()
    bits = np.packbits((delta != 0).flatten().numpy())
    return {
        "bits": torch.from_numpy(bits),
        "values": delta[delta != 0].clone(),
        "shape": torch.tensor(delta.shape),
    }


def unpack(parts: Mapping[str, Tensor]) -> Float[Tensor, "d_out d_in"]:
    """Return the change that `pack` was given."""
    shape = parts["shape"].tolist()
    count = shape[0] * shape[1]
    bits = np.unpackbits(parts["bits"].cpu().numpy(), count=count).astype(bool)
    delta = torch.zeros(count, dtype=parts["values"].dtype)
    delta[torch.from_numpy(bits)] = parts["values"].cpu()
    return delta.view(*shape)


class EditSequence(NamedTuple):
    """A sequence of edits so far, as a state holds it.

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
    side: SideState
    history: tuple[tuple[str, int], ...] = ()


def read_sequence(state: State, shape: tuple[int, int], dtype: torch.dtype) -> EditSequence:
    """Return the sequence that a state holds; an empty one where it holds none."""
    if _SEQUENCE not in state.meta:
        return EditSequence("", 0, 0, SideState(torch.zeros(shape, dtype=dtype)))
    kept: Any = state.meta[_SEQUENCE]
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.tensors.items():
        if name.startswith(_PREFIX):
            place, _, part = name.removeprefix(_PREFIX).rpartition("/")
            parts.setdefault(place, {})[part] = tensor
    deltas = {place: unpack(own) for place, own in parts.items()}
    side = SideState(
        current=deltas["current"],
        memories=tuple(
            SideMemory(deltas[f"memory/{i}"], score) for i, score in enumerate(kept["scores"])
        ),
        shards=tuple(deltas[f"shard/{i}"] for i in range(kept["shards"])),
        score=kept["score"],
        written=kept["written"],
        num_masks=kept["masks"],
    )
    history = tuple((str(prompt), int(number)) for prompt, number in kept["history"])
    return EditSequence(kept["name"], kept["turn"], kept["edits"], side, history)


def write_sequence(state: State, sequence: EditSequence) -> State:
    """Return the state with this sequence of edits in place of the one it held."""
    side = sequence.side
    deltas = {
        "current": side.current,
        **{f"memory/{i}": one.delta for i, one in enumerate(side.memories)},
        **{f"shard/{i}": one for i, one in enumerate(side.shards)},
    }
    tensors = {name: one for name, one in state.tensors.items() if not name.startswith(_PREFIX)}
    for place, delta in deltas.items():
        tensors |= {f"{_PREFIX}{place}/{part}": one for part, one in pack(delta).items()}
    scores: list[JsonValue] = [one.score for one in side.memories]
    history: list[JsonValue] = [list[JsonValue](one) for one in sequence.history]
    kept: dict[str, JsonValue] = {
        "name": sequence.name,
        "turn": sequence.turn,
        "edits": sequence.edits,
        "scores": scores,
        "shards": len(side.shards),
        "score": side.score,
        "written": side.written,
        "masks": side.num_masks,
        "history": history,
    }
    return State(tensors, {**state.meta, _SEQUENCE: kept})
