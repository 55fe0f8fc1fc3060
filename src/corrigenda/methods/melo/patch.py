"""MELO's patch: low-rank blocks, and the router that gives each prompt one of them or none."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrigenda.engines.shared_memory import SharedMemory, join
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.hooks import TensorMap, additions, scatter_rows
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.naming import gather
from corrigenda.lm.sites import Point, Site, value
from corrigenda.methods.melo.clusters import ClusterDatabase, ClusterIndex
from corrigenda.patch import ModulePatch, WeightPatch

A_PART, B_PART = "a/", "b/"
"""Prefixes of the site in names of tensors."""


@dataclass(frozen=True)
class BlockLayers:
    """Layers and gain that patches must share to share a database."""

    index: Site
    targets: tuple[Site, ...]
    gain: float


class MeloPatch(ModulePatch):
    """Low-rank blocks, with the keys of the prompts that use them.

    Patches that are active with the same layers share one database of clusters. Each prompt uses
    one block at most, so blocks are never merged into the weights; `block` returns a single one as
    an ordinary change of weights.
    """

    kind: ClassVar[str] = "melo"
    forms = MappingProxyType(
        {
            "keys": "float n d_index",
            **dict.fromkeys(("radii", "noise"), "float n"),
            **dict.fromkeys(("acts", "ids", "roots", "blocks", "lengths"), "int n"),
            "targets": "int tokens",
            f"{A_PART}*": "float blocks d_in rank",
            f"{B_PART}*": "float blocks rank d_out",
        }
    )
    options = MappingProxyType({"index": str, "targets": list, "gain": float})

    def require_sound(self) -> None:
        """Refuse sites, blocks and answers that do not belong together."""
        super().require_sound()
        if not self.stored:
            return
        _ = self.index
        names = {f"{part}{site}" for part in (A_PART, B_PART) for site in self.targets}
        if not names <= self.stored.keys():
            raise ValueError("a layer of the configuration has no blocks")
        if int(self.stored["lengths"].sum()) != len(self.stored["targets"]):
            raise ValueError("the lengths of the answers do not add up to their tokens")
        blocks = self.stored["blocks"]
        if len(blocks) and not 0 <= int(blocks.min()) <= int(blocks.max()) < self.num_blocks:
            raise ValueError("a key names a block that is not there")

    @property
    def index(self) -> Site:
        """Return the layer at whose output keys are read."""
        return Site.parse(str(self.header.config["index"]))

    @property
    def targets(self) -> tuple[Site, ...]:
        """Return the layers to whose outputs blocks add."""
        named = self.header.config["targets"]
        assert isinstance(named, list), "what `Melo` wrote"
        return tuple(Site.parse(str(name)) for name in named)

    @property
    def gain(self) -> float:
        """Return the factor of a block's term."""
        return float(str(self.header.config["gain"]))

    @property
    def num_blocks(self) -> int:
        """Return the number of blocks."""
        return len(self.stored[f"{A_PART}{self.targets[0]}"]) if self.stored else 0

    def block(self, number: int) -> WeightPatch:
        """Return one block as a low-rank change of weights that acts on every prompt."""
        changes = {
            site: LowRank(
                self.gain * self.stored[f"{B_PART}{site}"][number].T,
                self.stored[f"{A_PART}{site}"][number],
            )
            for site in self.targets
        }
        return WeightPatch(changes, self.header.model_copy(update={"kind": "weights"}))

    def hooks(self, lm: LanguageModel) -> AbstractContextManager[object]:
        """Add the blocks to the database of the model, until left."""
        layers = BlockLayers(self.index, self.targets, self.gain)
        return join(lm, self, layers, lambda: BlockRouter(lm, layers))


class BlockRouter(SharedMemory[MeloPatch]):
    """Router of all active patches with the same layers: one block, or none, for each prompt."""

    def __init__(self, lm: LanguageModel, layers: BlockLayers) -> None:
        """Create a router without blocks."""
        super().__init__(lm)
        self.layers = layers
        self._route: Int[Tensor, " batch"] | None = None
        self._blocks: dict[Site, tuple[Tensor, Tensor]] = {}

    @cached_property
    def full(self) -> list[MeloPatch]:
        """Return the patches that have a block."""
        return [patch for patch in self.patches if patch.stored]

    @cached_property
    def database(self) -> ClusterDatabase:
        """Return the clusters."""
        # It outlives the pass that needs it first.
        with torch.inference_mode(False):
            database = ClusterDatabase(self.lm.device_at(self.layers.index))
            for patch in self.full:
                database.extend(patch.stored)
            return database

    @cached_property
    def blocks(self) -> list[int]:
        """Return the block that the key of each record selects, all blocks counted."""
        return [
            begin + block
            for patch, begin in zip(self.full, self._begins, strict=False)
            for block in patch.stored["blocks"].tolist()
        ]

    @cached_property
    def _begins(self) -> list[int]:
        """First block of each patch, and their number at the end."""
        return list(itertools.accumulate((patch.num_blocks for patch in self.full), initial=0))

    @cached_property
    def _index(self) -> ClusterIndex:
        return ClusterIndex(self.database, self.blocks)

    def extend(self, patch: MeloPatch) -> None:
        """Apply the records of a patch that became the last one."""
        if not patch.stored:
            return
        self._route = None
        with torch.inference_mode(False):
            if "database" in self.__dict__:
                self.database.extend(patch.stored)
            if "blocks" in self.__dict__:
                begin = self._begins[-1]
                self.blocks += [begin + block for block in patch.stored["blocks"].tolist()]
        if "_begins" in self.__dict__:
            self._begins.append(self._begins[-1] + patch.num_blocks)
        if "full" in self.__dict__:
            self.full.append(patch)

    def forget(self) -> None:
        """Drop clusters and routes, because a patch was taken out."""
        self._route = None
        self.drop("full", "database", "blocks", "_begins", "_index")

    def transforms(self) -> Mapping[Point, TensorMap]:
        """Return hooks that read keys after the index layer and add terms after the targets."""
        terms = {site: partial(self._term, site) for site in self.layers.targets}
        return {value(self.layers.index): self._read, **additions(terms)}

    def _read(self, output: Float[Tensor, "batch pos d"]) -> Tensor:
        if self.suspended or not self.full:
            self._route = None
            return output
        route = self.lm.prompt_ends.decide_once(
            self, lambda ends: self._index.find_blocks(gather(output, ends)).to(output.device)
        )
        if route is not self._route:
            self._route, self._blocks = route, {}
        return output

    def _term(
        self, site: Site, x: Float[Tensor, "batch pos d_in"], output: Tensor
    ) -> Float[Tensor, "batch pos d_out"] | None:
        if self.suspended or self._route is None:
            return None
        rows = (self._route >= 0).nonzero().squeeze(1)
        if not len(rows):
            return None
        if site not in self._blocks:
            self._blocks[site] = self._gather_blocks(site, self._route[rows].tolist(), x)
        a, b = self._blocks[site]
        return scatter_rows(self.layers.gain * (x[rows] @ a) @ b, rows, len(x))

    def _gather_blocks(
        self, site: Site, numbers: list[int], x: Tensor
    ) -> tuple[Float[Tensor, "rows d_in p"], Float[Tensor, "rows p d_out"]]:
        picked = []
        for number in numbers:
            owner = bisect.bisect_right(self._begins, number) - 1
            picked.append((self.full[owner], number - self._begins[owner]))
        a, b = (
            torch.stack([patch.stored[f"{name}{site}"][number] for patch, number in picked]).to(x)
            for name in (A_PART, B_PART)
        )
        return a, b
