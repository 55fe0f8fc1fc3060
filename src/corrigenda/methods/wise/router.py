"""Side memories as a patch: each query is routed to the memory that responds, or to none."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from corrigenda.engines.activation import host_activation
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, key, value
from corrigenda.methods.wise.side_memory import (
    Memory,
    choose,
    query_scores,
    response_scores,
    unpacked,
)
from corrigenda.patch.module import ModulePatch

# The sequence of edits whose memory is being trained: its patches let the main memory answer.
_TRAINED: ContextVar[str] = ContextVar("sequence in training", default="")


@dataclass(frozen=True, eq=False)
class SidePatch(ModulePatch):
    """Side memories of one down projection, with the scores from which on they are asked.

    It holds everything that its sequence of edits has written so far. Of several active patches of
    one sequence the latest speaks, and the others are silent as long as it is active.

    Attributes:
        stored: By memory, `<i>/bits`, `<i>/values`, `<i>/shape` (the entries that are not zero) and
            `<i>/threshold`.
        header: `config` says how queries are routed, `notes` name `layer`, `sequence` and `turn`.
    """

    kind: ClassVar[str] = "wise"

    def memories(self) -> list[Memory]:
        """Change and threshold of each memory."""
        names = sorted({name.partition("/")[0] for name in self.stored}, key=int)
        return [
            Memory(
                unpacked(
                    {part: self.stored[f"{i}/{part}"] for part in ("bits", "values", "shape")}
                ),
                float(self.stored[f"{i}/threshold"]),
            )
            for i in names
        ]

    @contextmanager
    def hooks(self, lm: LanguageModel) -> Generator[None]:
        """Route each query: to the memory that responds most of those above their threshold.

        Where no row is routed to a side memory, the output is the very tensor that came in.
        """
        memories = self.memories()
        if not memories:
            yield
            return
        site = Site(int(str(self.header.notes["layer"])))
        router = _Router(self, lm, memories)
        points = {key(site): router.remember, value(site): router.route}
        with lm.prompt_ends.follow(), lm.swap(points):
            yield

    def is_silent(self, lm: LanguageModel) -> bool:
        """Whether a later patch of its sequence is active, or the sequence is being trained."""
        mine = self.header.notes
        if mine["sequence"] == _TRAINED.get():
            return True
        others = (one.header.notes for one in lm.patches if isinstance(one, SidePatch))
        return any(
            other["sequence"] == mine["sequence"]
            and int(str(other["turn"])) > int(str(mine["turn"]))
            for other in others
        )


class _Router:
    """Carries the projection's input to its output, and asks the memory that was chosen."""

    def __init__(self, patch: SidePatch, lm: LanguageModel, memories: Sequence[Memory]) -> None:
        self._patch, self._lm = patch, lm
        config = patch.header.config
        self._routing = config["routing"]
        longest = config["longest_mean"]
        self._longest = None if longest is None else int(str(longest))
        self._act = host_activation(lm) if config["score"] == "activated" else None
        self._thresholds = torch.tensor([one.score for one in memories], dtype=torch.float64)
        self._deltas = [one.delta for one in memories]
        self._placed: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        self._input: Tensor | None = None

    def remember(self, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        self._input = x
        return x

    def route(self, output: Float[Tensor, "batch pos d_out"]) -> Float[Tensor, "batch pos d_out"]:
        x, self._input = self._input, None
        assert x is not None, "the key hook runs before the value hook"
        if self._patch.is_silent(self._lm):
            return output
        dtype = torch.promote_types(output.dtype, torch.float32)
        place = (output.device, dtype)
        if place not in self._placed:
            self._placed[place] = [one.to(*place) for one in self._deltas]
        deltas, x = self._placed[place], x.to(*place)
        if self._routing == "prompt":
            chosen = self._lm.prompt_ends.decide_once(
                self, lambda ends: self._choose(x, output, deltas, ends.to(x.device))
            )
        else:
            chosen = self._choose(x, output, deltas, None)
        routed = (chosen >= 0).nonzero().flatten()
        if not len(routed):
            return output
        output = output.clone()
        for number in chosen[routed].unique().tolist():
            rows = (chosen == number).nonzero().flatten()
            response = linear(x[rows], deltas[number])
            output[rows] = (output[rows].to(dtype) + response).to(output.dtype)
        return output

    def _choose(
        self,
        x: Float[Tensor, "batch pos d_in"],
        output: Float[Tensor, "batch pos d_out"],
        deltas: Sequence[Tensor],
        ends: Int[Tensor, " batch"] | None,
    ) -> Int[Tensor, " batch"]:
        inside = self._lm.prompt_ends.mask.to(x.device)
        if ends is not None:
            inside = inside & (torch.arange(x.shape[1], device=x.device) <= ends[:, None])
        scores = [
            query_scores(
                response_scores(linear(x, delta), output, self._act), inside, self._longest
            )
            for delta in deltas
        ]
        return choose(torch.stack(scores), self._thresholds)


@contextmanager
def silent(sequence: str) -> Generator[None]:
    """Let the main memory answer in place of this sequence's patches, until left."""
    token = _TRAINED.set(sequence)
    try:
        yield
    finally:
        _TRAINED.reset(token)
