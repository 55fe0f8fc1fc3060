"""MELO: a low-rank block for every few facts; each prompt uses one block, or none, by its key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from corrigenda.editor import Edit, Editor, Requires, Supports
from corrigenda.engines.gradients import LabelledRow, labelled_rows
from corrigenda.engines.shared_memory import (
    KeyDistances,
    entry_id,
    key_distances,
    key_noise,
    keys_at,
    memory_of,
    suspend,
)
from corrigenda.errors import BadConfig, CorrigendaError
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, value
from corrigenda.methods.melo.clusters import (
    ACT_NAMES,
    ClusterDatabase,
    ClusterPlacement,
    place_fact,
)
from corrigenda.methods.melo.patch import A_PART, B_PART, BlockLayers, BlockRouter, MeloPatch
from corrigenda.methods.melo.training import (
    BlockTraining,
    LowRankBlock,
    TrainedBlocks,
    new_block,
    train_block,
)
from corrigenda.settings import select
from corrigenda.state import State

_DEPTH = 35 / 48
_NUM_TARGETS = 2
_ORDER = {"attn.q": 0, "attn.k": 0, "attn.v": 0, "attn.out": 1, "mlp.gate": 2, "mlp.up": 2}


class Melo(Editor):
    """Trains a low-rank block for each batch of facts, which only the prompts near them use.

    Reference: Yu et al. 2024, sections 3.2 and 3.3. See the card, `melo.md`.
    """

    name: ClassVar[str] = "melo"
    requires: ClassVar[Requires] = Requires()
    learns_rows: ClassVar[bool] = True
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, exact=False, order_free=False, contained=True
    )

    index: str | None = Field(
        default=None,
        description="Layer at whose output keys are read, as 35.mlp.up; at 35/48 of the depth if "
        "not given.",
    )
    targets: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Layers that blocks add to, above the index; the same part of the next two "
        "blocks if not given.",
    )
    radius: float = Field(
        default=0.5, gt=0, description="Radius of a new cluster, R_init, in units of the keys."
    )
    rank: int = Field(default=2, ge=1, description="Rank of a block, p.")
    batch_size: int = Field(default=4, ge=1, description="Facts that share a block.")
    gain: float = Field(default=1.0, gt=0, description="Factor of a block's term.")
    steps: int = Field(default=50, ge=1, description="Steps for each block, at most.")
    learning_rate: float = Field(default=1e-2, gt=0, description="Of Adam, at the beginning.")
    decay_every: int = Field(
        default=20, ge=1, description="Steps after which the learning rate decays, repeatedly."
    )
    decay: float = Field(default=0.5, gt=0, le=1, description="Factor of the learning rate.")
    stop_loss: float = Field(
        default=0.0,
        ge=0,
        description="Loss below which a block is done, if all its facts are the model's first "
        "choice, token by token. 0 takes all steps.",
    )
    seed: int = Field(default=0, description="Of the blocks' first values.")

    @field_validator("index", "targets")
    @classmethod
    def _are_sites(cls, named: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for name in (named,) if isinstance(named, str) else named or ():
            try:
                Site.parse(name)
            except CorrigendaError as error:
                raise ValueError(error.message) from error
        return named

    @model_validator(mode="after")
    def _index_comes_first(self) -> Self:
        if self.index is not None and self.targets is not None:
            late = _find_early(Site.parse(self.index), map(Site.parse, self.targets))
            if late:
                raise ValueError(f"{late[0]} is computed before the index layer, {self.index}")
        return self

    def layers(self, lm: LanguageModel) -> tuple[Site, tuple[Site, ...]]:
        """Return the index layer and the layers that blocks add to, lowest first.

        Raises:
            UnknownSite (CG303): the model has no such layer, or it belongs to experts.
            BadConfig (CG502): a target is not computed after the index layer.
        """
        if self.index is None:
            index = Site(min(int(_DEPTH * lm.num_layers), lm.num_layers - 2), "mlp.up")
        else:
            index = Site.parse(self.index)
        if self.targets is None:
            later = range(index.layer + 1, min(index.layer + 1 + _NUM_TARGETS, lm.num_layers))
            targets = tuple(Site(layer, index.part) for layer in later)
        else:
            targets = tuple(sorted(set(map(Site.parse, self.targets))))
        late = _find_early(index, targets)
        if late or not targets:
            raise BadConfig(
                f"no layer after the index layer {index} is to be adapted."
                if not targets
                else f"{late[0]} is computed before the index layer, {index}.",
                where=f"method {self.name}, {lm.name}",
                hint="Name `index`, and `targets` that come after it.",
            )
        for site in (index, *targets):
            lm.module(site)
        return index, targets

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return no sites: no weight changes; `layers` are the layers that blocks add to."""
        return ()

    def distances(self, lm: LanguageModel, facts: Sequence[Fact]) -> KeyDistances:
        """Measure distances of keys of paraphrases, neighbours and other facts, to set `radius`."""
        return key_distances(lm, facts, value(self.layers(lm)[0]))

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Train a block for every `batch_size` facts; the model is left as it is.

        The state is returned as it is: the clusters are those of the active patches.

        Raises:
            PromptTooLong (CG105): a fact does not fit into the context.
            NonFinite (CG201): the model gives no finite loss.
            UnknownSite (CG303), BadConfig (CG502): see `layers`.
        """
        index, targets = self.layers(lm)
        config = {
            **self.model_dump(mode="json"),
            "index": str(index),
            "targets": [str(site) for site in targets],
        }
        if not facts:
            return Edit(MeloPatch.make(lm, {}, method=self.name, config=config), state)
        rows = labelled_rows(lm, facts)
        router = memory_of(lm, BlockRouter, BlockLayers(index, targets, self.gain))
        keys = keys_at(lm, [row.ids[: row.reads[0] + 1] for row in rows], value(index))
        noise = key_noise(lm, keys)
        plan, database = self._plan(router, keys, rows, noise)
        with suspend(router):
            idle = () if router is None else router.patches
            trained = self._train(lm, targets, rows, [fact.label for fact in facts], idle)
        stored = {
            "keys": keys,
            "radii": torch.full((len(rows),), self.radius, dtype=torch.float64),
            "noise": torch.tensor(noise, dtype=torch.float64),
            "acts": torch.tensor([one.act for one in plan]),
            "ids": torch.tensor(_entry_ids(keys, rows)),
            "roots": torch.tensor([one.root for one in plan]),
            "blocks": torch.arange(len(rows)) // self.batch_size,
            "targets": torch.tensor([token for row in rows for token in row.labels]),
            "lengths": torch.tensor([len(row.labels) for row in rows]),
        }
        for site in targets:
            stored[f"{A_PART}{site}"] = torch.stack([one.blocks[site].a for one in trained])
            stored[f"{B_PART}{site}"] = torch.stack([one.blocks[site].b for one in trained])
        notes = _notes(
            facts, plan, trained, _find_forgotten(router, database, facts), len(database)
        )
        patch = MeloPatch.make(
            lm, stored, method=self.name, config=config, facts=facts, notes=notes
        )
        return Edit(patch, state)

    def _plan(
        self,
        router: BlockRouter | None,
        keys: Float[Tensor, "n d"],
        rows: Sequence[LabelledRow],
        noise: Sequence[float],
    ) -> tuple[list[ClusterPlacement], ClusterDatabase]:
        """Return where each fact's key goes, and the clusters after all facts."""
        records = None if router is None else router.records
        database = ClusterDatabase() if records is None else ClusterDatabase.of(records)
        ids = _entry_ids(keys, rows)
        plan: list[ClusterPlacement] = []
        is_first = False
        for fact, row in enumerate(rows):
            if fact % self.batch_size == 0:
                is_first = not len(database)
            one = place_fact(
                database, keys[fact], row.labels, self.radius, noise[fact], is_first=is_first
            )
            database.apply(
                keys[fact], row.labels, self.radius, noise[fact], one.act, ids[fact], one.root
            )
            plan.append(one)
        return plan, database

    def _train(
        self,
        lm: LanguageModel,
        targets: Sequence[Site],
        rows: Sequence[LabelledRow],
        names: Sequence[str],
        idle: Sequence[object],
    ) -> list[TrainedBlocks]:
        training = select(BlockTraining, self)
        trained = []
        for begin in range(0, len(rows), self.batch_size):
            own = rows[begin : begin + self.batch_size]
            content = f"{self.seed}/{sorted((row.ids, row.labels) for row in own)}".encode()
            seed = int.from_bytes(hashlib.sha256(content).digest()[:7], "big")
            generator = torch.Generator().manual_seed(seed)
            first: dict[Site, LowRankBlock] = {}
            for site in targets:
                d_out, d_in = lm.shape(site)
                first[site] = new_block(d_in, d_out, self.rank, generator)
            part = names[begin : begin + self.batch_size]
            trained.append(train_block(lm, first, own, training, names=part, suspended=idle))
        return trained


def _entry_ids(keys: Float[Tensor, "n d"], rows: Sequence[LabelledRow]) -> list[int]:
    return [entry_id(own, row.labels) for own, row in zip(keys, rows, strict=True)]


def _find_early(index: Site, targets: Iterable[Site]) -> list[Site]:
    """Return the targets that are computed before the index layer, or together with it."""
    own = index.layer, _ORDER.get(index.part, 3)
    return [site for site in targets if (site.layer, _ORDER.get(site.part, 3)) <= own]


def _find_forgotten(
    router: BlockRouter | None, database: ClusterDatabase, facts: Sequence[Fact]
) -> list[str]:
    """Return the facts, of this edit or before, whose keys this edit moved out of clusters."""
    before: list[int] = [] if router is None else router.database.forgotten
    earlier = [] if router is None else [fact for patch in router.full for fact in patch.facts]
    owners = [*earlier, *facts]
    edited_again = {fact.prompt for fact in facts}
    return [
        owners[row].label
        for row in database.forgotten[len(before) :]
        if row >= len(earlier) or owners[row].prompt not in edited_again
    ]


def _notes(
    facts: Sequence[Fact],
    plan: Sequence[ClusterPlacement],
    trained: Sequence[TrainedBlocks],
    forgotten: Sequence[str],
    num_clusters: int,
) -> dict[str, object]:
    right = [hit for one in trained for hit in one.right]
    losses = [loss for one in trained for loss in one.losses]
    notices = [
        f"{fact.label}: not converged; the answer's loss is {own[-1]:.2f}."
        for fact, own, hit in zip(facts, losses, right, strict=True)
        if not hit
    ]
    notices += [f"{label}: out of reach; a cluster shrank away from it." for label in forgotten]
    return {
        "status": ["written" if hit else "not converged" for hit in right],
        "notices": notices,
        "acts": [ACT_NAMES[one.act] for one in plan],
        "nearest": [float(f"{min(one.distance, 1e30):.6g}") for one in plan],
        "losses": [[float(f"{loss:.6g}") for loss in own] for own in losses],
        "stop": [one.stop for one in trained],
        "clusters": num_clusters,
    }
