"""MELO's switch: which block each row of a pass goes through, decided once, on its prompt."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrigenda.engines.shared_memory import Memory
from corrigenda.lm.hooks import TensorMap, additions, scatter_rows
from corrigenda.lm.model import LanguageModel, gather
from corrigenda.lm.sites import Point, Site, value
from corrigenda.methods.melo.clusters import Database, Records, Router

if TYPE_CHECKING:
    from corrigenda.methods.melo.editor import MeloPatch

A_PART, B_PART = "a/", "b/"
"""Before the site, in names of tensors."""


@dataclass(frozen=True)
class Layers:
    """What patches that share a database have in common."""

    index: Site
    targets: tuple[Site, ...]
    gain: float


class Switch(Memory["MeloPatch"]):
    """The database of all active patches with the same layers, at work."""

    def __init__(self, lm: LanguageModel, layers: Layers) -> None:
        """Start without blocks."""
        super().__init__(lm)
        self.layers = layers
        self._route: Int[Tensor, " batch"] | None = None
        self._blocks: dict[Site, tuple[Tensor, Tensor]] = {}

    @property
    def full(self) -> list[MeloPatch]:
        """Patches that have a block."""
        return [patch for patch in self.patches if patch.stored]

    @cached_property
    def records(self) -> Records | None:
        """Records of all patches; None where there are none."""
        full = self.full
        if not full:
            return None
        return Records.joined([one.stored for one in full], [one.num_blocks for one in full])

    @cached_property
    def database(self) -> Database:
        """The clusters."""
        # It outlives the pass that asks for it first.
        with torch.inference_mode(False):
            return Database() if self.records is None else Database.of(self.records)

    @cached_property
    def _router(self) -> Router:
        assert self.records is not None, "somebody has a block"
        device = self.lm.weight(self.layers.index).device
        with torch.inference_mode(False):
            return Router(self.database, self.records.blocks, device)

    def forget(self) -> None:
        """Drop records, clusters and routes: the patches are others now."""
        self._route = None
        for name in ("records", "database", "_router"):
            if name in self.__dict__:
                delattr(self, name)

    def transforms(self) -> Mapping[Point, TensorMap]:
        """Keys are read behind the index layer; terms are added behind the targets."""
        terms = {site: partial(self._term, site) for site in self.layers.targets}
        return {value(self.layers.index): self._read, **additions(terms)}

    def _read(self, output: Float[Tensor, "batch pos d"]) -> Tensor:
        if self.suspended or self.records is None:
            self._route = None
            return output
        route = self.lm.prompts.once(
            self, lambda ends: self._router(gather(output, ends)).to(output.device)
        )
        if route is not self._route:
            self._route, self._blocks = route, {}
        return output

    def _rows(self) -> Int[Tensor, " rows"] | None:
        """Rows that switch a block on; None if there are none."""
        if self._route is None or not bool((self._route >= 0).any()):
            return None
        return (self._route >= 0).nonzero().squeeze(1)

    def _term(
        self, site: Site, x: Float[Tensor, "batch pos d_in"], output: Tensor
    ) -> Float[Tensor, "batch pos d_out"] | None:
        rows = None if self.suspended else self._rows()
        if rows is None:
            return None
        if site not in self._blocks:
            self._blocks[site] = self._gathered(site, rows, output.device)
        a, b = (part.to(x.dtype) for part in self._blocks[site])
        return scatter_rows(self.layers.gain * (x[rows] @ a) @ b, rows, len(x))

    def _gathered(
        self, site: Site, rows: Int[Tensor, " rows"], device: torch.device
    ) -> tuple[Float[Tensor, "rows d_in p"], Float[Tensor, "rows p d_out"]]:
        assert self._route is not None, "there are rows"
        full = self.full
        begins = [0, *itertools.accumulate(patch.num_blocks for patch in full)]
        picked = []
        for index in self._route[rows].tolist():
            owner = bisect.bisect_right(begins, index) - 1
            picked.append((full[owner], index - begins[owner]))
        a, b = (
            torch.stack([patch.stored[f"{name}{site}"][number] for patch, number in picked])
            for name in (A_PART, B_PART)
        )
        return a.to(device), b.to(device)
