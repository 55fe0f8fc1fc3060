"""WISE's patch: side memories, and the router that sends each query to one of them or to none."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from corrigenda.engines.shared_memory import SharedMemory, join
from corrigenda.lm.activation import activation_of
from corrigenda.lm.hooks import Copies, TensorMap, additions, scatter_rows
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Site
from corrigenda.methods.wise.side_memory import (
    SideMemory,
    choose,
    query_scores,
    response_scores,
    unpack,
)
from corrigenda.patch.module import ModulePatch

# The sequence of edits whose memory is being trained; its patches do nothing meanwhile.
_TRAINED: ContextVar[str] = ContextVar("sequence in training", default="")
_PACKED = ("bits", "values", "shape")


@dataclass(frozen=True, eq=False, repr=False)
class SidePatch(ModulePatch):
    """Side memories of one down projection, with the score above which each of them responds.

    It holds everything that its sequence of edits has written so far. Of several active patches of
    one sequence only the latest responds; the others are silent as long as it is active.

    Attributes:
        stored: By memory, `<i>/bits`, `<i>/values`, `<i>/shape` (the entries that are not zero) and
            `<i>/threshold`.
        header: `config` says how queries are routed, `notes` name `layer`, `sequence` and `turn`.
    """

    kind: ClassVar[str] = "wise"
    forms = MappingProxyType(
        {
            "*/bits": "bytes eighths",
            "*/values": "float entries",
            "*/shape": "int 2",
            "*/threshold": "float",
        }
    )
    options = MappingProxyType(
        {
            "routing": ("prompt", "pass"),
            "score": ("difference", "activated"),
            "longest_mean": (int, type(None)),
        }
    )
    noted = MappingProxyType({"layer": int, "sequence": str, "turn": int})

    def require_sound(self) -> None:
        """Refuse memories whose bits, values and shape do not belong together."""
        super().require_sound()
        for name in sorted({name.partition("/")[0] for name in self.stored}):
            bits, values, shape = (self.stored[f"{int(name)}/{one}"] for one in _PACKED)
            d_out, d_in = shape.tolist()
            eighths = -(-d_out * d_in // 8)
            ones = sum(byte.bit_count() for byte in bits.tolist())
            if min(d_out, d_in) < 1 or len(bits) != eighths or ones != len(values):
                raise ValueError(f"the bits, values and shape of memory {name} do not agree")

    def memories(self) -> list[SideMemory]:
        """Return the change and the threshold of each memory."""
        names = sorted({name.partition("/")[0] for name in self.stored}, key=int)
        return [
            SideMemory(
                unpack({part: self.stored[f"{i}/{part}"] for part in ("bits", "values", "shape")}),
                float(self.stored[f"{i}/threshold"]),
            )
            for i in names
        ]

    def hooks(self, lm: LanguageModel) -> AbstractContextManager[object]:
        """Route each query to the memory with the largest response above its threshold, until left.

        Where no row is routed to a side memory, the output tensor is left as it is. The patches of
        a sequence are one hook, of which only the latest takes room for its memories.
        """
        if not self.stored:
            return nullcontext()
        notes = self.header.notes
        site = Site(int(str(notes["layer"])))
        sequence = str(notes["sequence"])
        return join(lm, self, (self.kind, site, sequence), lambda: _SideRouter(lm, site, sequence))


class _SideRouter(SharedMemory[SidePatch]):
    """Router of the latest patch of a sequence: chooses a side memory for each row of a pass."""

    def __init__(self, lm: LanguageModel, site: Site, sequence: str) -> None:
        super().__init__(lm)
        self.site, self.sequence = site, sequence

    def transforms(self) -> Mapping[Point, TensorMap]:
        return additions({self.site: self.respond})

    def extend(self, patch: SidePatch) -> None:
        if _turn(patch) >= _turn(self._latest):
            self.forget()

    def forget(self) -> None:
        self.drop("_latest", "_thresholds", "_deltas")

    @cached_property
    def _latest(self) -> SidePatch:
        return max(reversed(self.patches), key=_turn)

    @cached_property
    def _thresholds(self) -> Tensor:
        return torch.tensor([one.score for one in self._latest.memories()], dtype=torch.float64)

    @cached_property
    def _deltas(self) -> Copies:
        return Copies([one.delta for one in self._latest.memories()])

    def respond(
        self, x: Float[Tensor, "batch pos d_in"], output: Float[Tensor, "batch pos d_out"]
    ) -> Float[Tensor, "batch pos d_out"] | None:
        """Return the response of the chosen memory for each row; None where none was chosen."""
        if self.sequence == _TRAINED.get():
            return None
        deltas = self._deltas.like(x)
        if self._latest.header.config["routing"] == "prompt":
            chosen = self.lm.prompt_ends.decide_once(
                self, lambda ends: self._choose(x, output, deltas, ends.to(x.device))
            )
        else:
            chosen = self._choose(x, output, deltas, None)
        routed = (chosen >= 0).nonzero().flatten()
        if not len(routed):
            return None
        responses = torch.empty(len(routed), *output.shape[1:], dtype=x.dtype, device=x.device)
        for number in chosen[routed].unique().tolist():
            own = chosen[routed] == number
            responses[own] = linear(x[routed[own]], deltas[number])
        return scatter_rows(responses, routed, len(x))

    def _choose(
        self,
        x: Float[Tensor, "batch pos d_in"],
        output: Float[Tensor, "batch pos d_out"],
        deltas: Sequence[Tensor],
        ends: Int[Tensor, " batch"] | None,
    ) -> Int[Tensor, " batch"]:
        config = self._latest.header.config
        longest = None if config["longest_mean"] is None else int(str(config["longest_mean"]))
        act = activation_of(self.lm) if config["score"] == "activated" else None
        inside = self.lm.prompt_ends.mask.to(x.device)
        if ends is not None:
            inside = inside & (torch.arange(x.shape[1], device=x.device) <= ends[:, None])
        scores = [
            query_scores(response_scores(linear(x, delta), output, act), inside, longest)
            for delta in deltas
        ]
        return choose(torch.stack(scores), self._thresholds)


def _turn(patch: SidePatch) -> int:
    return int(str(patch.header.notes["turn"]))


@contextmanager
def silence(sequence: str) -> Generator[None]:
    """Let the patches of a sequence do nothing, so that the main memory answers, until left."""
    token = _TRAINED.set(sequence)
    try:
        yield
    finally:
        _TRAINED.reset(token)
