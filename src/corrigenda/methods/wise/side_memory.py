"""A side memory: how far it is from the main one, how sub-spaces merge, how it is kept on disk.

Letters: W main memory, a down projection (d_out d_in) - W' its side copy - D = W' - W (d_out d_in)
- a inputs of the projection (batch pos d_in).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import linear

Merge = Literal["ties", "linear"]
Activation = Callable[[Tensor], Tensor]


class Memory(NamedTuple):
    """A side memory that can be chosen.

    Attributes:
        delta: D.
        score: eps, the smallest score of the edits in it.
    """

    delta: Float[Tensor, "d_out d_in"]
    score: float


@dataclass(frozen=True, eq=False)
class Side:
    """Everything a sequence of edits has written beside the main memory.

    Attributes:
        memories: Finished ones: at most one where shards are merged into it, else several.
        shards: Changes of the sub-spaces that are full but not merged yet.
        current: Change of the sub-space that is being written.
        score: Smallest score of the edits since the last merge; None where there is none.
        written: Edits in the current sub-space.
        num_masks: Sub-spaces drawn so far.
    """

    current: Float[Tensor, "d_out d_in"]
    memories: tuple[Memory, ...] = ()
    shards: tuple[Float[Tensor, "d_out d_in"], ...] = ()
    score: float | None = None
    written: int = 0
    num_masks: int = 1

    def noted(
        self, current: Float[Tensor, "d_out d_in"], scores: Sequence[float], count: int
    ) -> Side:
        """After `count` edits into the current sub-space, with the scores of those that count."""
        known = [*scores, *([] if self.score is None else [self.score])]
        return replace(
            self, current=current, score=min(known, default=None), written=self.written + count
        )

    def sealed(self) -> Side:
        """With the current sub-space finished and a new one begun."""
        return replace(
            self,
            current=torch.zeros_like(self.current),
            shards=(*self.shards, self.current),
            written=0,
            num_masks=self.num_masks + 1,
        )

    def pending(self, merge: Mergers) -> Memory | None:
        """What was written since the last merge, as one memory; None where no edit counts."""
        if self.score is None:
            return None
        shards = self.shards if not self.written else (*self.shards, self.current)
        return Memory(merge.fresh(shards), self.score)

    def merged(self, merge: Mergers) -> Side:
        """With everything written turned into memories."""
        return replace(
            self,
            memories=self.chosen_from(merge),
            shards=(),
            current=torch.zeros_like(self.current),
            score=None,
            written=0,
        )

    def chosen_from(self, merge: Mergers) -> tuple[Memory, ...]:
        """The memories a query is routed to."""
        pending = self.pending(merge)
        if pending is None:
            return self.memories
        if merge.keep_apart or not self.memories:
            return (*self.memories, pending)
        shards = self.shards if not self.written else (*self.shards, self.current)
        (present,) = self.memories
        return (Memory(merge.into(present.delta, shards), min(present.score, pending.score)),)


@dataclass(frozen=True)
class Mergers:
    """How shards become memories.

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

    def fresh(self, shards: Sequence[Float[Tensor, "d_out d_in"]]) -> Float[Tensor, "d_out d_in"]:
        """Shards of equal weight as one change."""
        return self._merge(shards, [1.0 / len(shards)] * len(shards))

    def into(
        self,
        present: Float[Tensor, "d_out d_in"],
        shards: Sequence[Float[Tensor, "d_out d_in"]],
    ) -> Float[Tensor, "d_out d_in"]:
        """The present memory with new shards in it."""
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


def trimmed(delta: Float[Tensor, "d_out d_in"], density: float) -> Float[Tensor, "d_out d_in"]:
    """The share `density` of the entries with the largest size; the others are zero."""
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

    The sign elected is that of the weighted sum, plus where it is zero. A zero agrees with nobody,
    so an entry that only one change touches is kept as it is.

    Reference: Yadav et al. 2023, section 3; WISE (Wang et al. 2024), equation 7.
    """
    kept = [trimmed(delta, density) for delta in deltas]
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
    """The entries of a sub-space: each with probability `ratio`, drawn on the CPU."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + number)
    return torch.rand(tuple(shape), generator=generator) < ratio


def token_scores(
    inputs: Float[Tensor, "batch pos d_in"],
    delta: Float[Tensor, "d_out d_in"],
    outputs: Float[Tensor, "batch pos d_out"] | None = None,
    act: Activation | None = None,
) -> Float[Tensor, "batch pos"]:
    """How differently both memories respond to each token.

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
    """As `token_scores`, from the response a D^T."""
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
    """Mean of the scores of each row's own tokens; the largest where it has more than so many."""
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
    """The memory of each query: of those above their threshold the one that responds most, or -1.

    Reference: Wang et al. 2024, equations 4 and 9.
    """
    thresholds = thresholds.to(scores.device)[:, None]
    above = scores > thresholds
    best = scores.masked_fill(~above, -1.0).argmax(0)
    return torch.where(above.any(0), best, torch.full_like(best, -1))


def packed(delta: Float[Tensor, "d_out d_in"]) -> dict[str, Tensor]:
    """A change as one bit an entry and the values of those that are not zero; exact."""
    delta = delta.detach().cpu()
    bits = np.packbits((delta != 0).flatten().numpy())
    return {
        "bits": torch.from_numpy(bits),
        "values": delta[delta != 0].clone(),
        "shape": torch.tensor(delta.shape),
    }


def unpacked(parts: Mapping[str, Tensor]) -> Float[Tensor, "d_out d_in"]:
    """The inverse of `packed`."""
    shape = parts["shape"].tolist()
    count = shape[0] * shape[1]
    bits = np.unpackbits(parts["bits"].cpu().numpy(), count=count).astype(bool)
    delta = torch.zeros(count, dtype=parts["values"].dtype)
    delta[torch.from_numpy(bits)] = parts["values"].cpu()
    return delta.view(*shape)
