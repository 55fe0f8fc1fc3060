"""MELO: small low-rank blocks, of which each prompt switches on one or none by its key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from corrigenda.editor import Edit, Editor, Requires, Supports
from corrigenda.engines import shared_memory
from corrigenda.engines.gradients import LabelledRow, labelled_rows
from corrigenda.engines.shared_memory import identity, joined, keys_at, memory_of, suspended
from corrigenda.errors import BadConfig, CorrigendaError
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, value
from corrigenda.methods.melo.clusters import NAMES, Database, Placed, placed
from corrigenda.methods.melo.router import A_PART, B_PART, Layers, Switch
from corrigenda.methods.melo.training import (
    Block,
    Settings,
    Trained,
    new_block,
    train_block,
)
from corrigenda.patch import ModulePatch, WeightPatch
from corrigenda.state import State

_DEPTH = 35 / 48
_NUM_TARGETS = 2
_ORDER = {"attn.q": 0, "attn.k": 0, "attn.v": 0, "attn.out": 1, "mlp.gate": 2, "mlp.up": 2}


class MeloPatch(ModulePatch):
    """Blocks, and the keys that switch them on.

    While several with the same layers are active, they share one database of clusters. Each prompt
    switches on one block at most, so blocks are never merged into the weights; one alone can be had
    as an ordinary change of weights, see `block`.
    """

    kind: ClassVar[str] = "melo"

    @property
    def index(self) -> Site:
        """The layer at whose output keys are read."""
        return Site.parse(str(self.header.config["index"]))

    @property
    def targets(self) -> tuple[Site, ...]:
        """The layers beside which blocks stand."""
        named = self.header.config["targets"]
        assert isinstance(named, list), "what `Melo` wrote"
        return tuple(Site.parse(str(name)) for name in named)

    @property
    def gain(self) -> float:
        """What a block's term is multiplied by."""
        return float(str(self.header.config["gain"]))

    @property
    def num_blocks(self) -> int:
        """How many blocks it has."""
        return len(self.stored[f"{A_PART}{self.targets[0]}"]) if self.stored else 0

    def block(self, number: int) -> WeightPatch:
        """One block as a low-rank change of weights, for every prompt; it can be exported."""
        changes = {
            site: LowRank(
                self.gain * self.stored[f"{B_PART}{site}"][number].T,
                self.stored[f"{A_PART}{site}"][number],
            )
            for site in self.targets
        }
        return WeightPatch(changes, self.header.model_copy(update={"kind": "weights"}))

    def hooks(self, lm: LanguageModel) -> AbstractContextManager[object]:
        """Join the database of the model."""
        layers = Layers(self.index, self.targets, self.gain)
        return joined(lm, self, layers, lambda: Switch(lm, layers))


class Melo(Editor):
    """A block of low rank for each batch of facts, switched on by the prompts of those facts.

    Reference: Yu et al. 2024, sections 3.2 and 3.3. See the card, `melo.md`.
    """

    name: ClassVar[str] = "melo"
    requires: ClassVar[Requires] = Requires()
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
        description="Layers beside which blocks stand, above the index; the same part of the two "
        "blocks behind it if not given.",
    )
    radius: float = Field(
        default=0.5, gt=0, description="Radius of a new cluster, R_init, in units of the keys."
    )
    rank: int = Field(default=2, ge=1, description="Rank of a block, p.")
    batch_size: int = Field(default=4, ge=1, description="Facts that share a block.")
    gain: float = Field(default=1.0, gt=0, description="What a block's term is multiplied by.")
    steps: int = Field(default=50, ge=1, description="Steps for each block, at most.")
    learning_rate: float = Field(default=1e-2, gt=0, description="Of Adam, at the beginning.")
    decay_every: int = Field(
        default=20, ge=1, description="Steps after which the learning rate decays, again and again."
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
            late = _not_behind(Site.parse(self.index), map(Site.parse, self.targets))
            if late:
                raise ValueError(f"{late[0]} is computed before the index layer, {self.index}")
        return self

    def layers(self, lm: LanguageModel) -> tuple[Site, tuple[Site, ...]]:
        """The index layer and the layers beside which blocks stand, lowest first.

        Raises:
            UnknownSite (CG303): the model has no such layer, or it belongs to experts.
            BadConfig (CG502): a target is not behind the index layer.
        """
        if self.index is None:
            index = Site(min(int(_DEPTH * lm.num_layers), lm.num_layers - 2), "mlp.up")
        else:
            index = Site.parse(self.index)
        if self.targets is None:
            behind = range(index.layer + 1, min(index.layer + 1 + _NUM_TARGETS, lm.num_layers))
            targets = tuple(Site(layer, index.part) for layer in behind)
        else:
            targets = tuple(sorted(set(map(Site.parse, self.targets))))
        late = _not_behind(index, targets)
        if late or not targets:
            raise BadConfig(
                f"no layer behind the index layer {index} is to be adapted."
                if not targets
                else f"{late[0]} is computed before the index layer, {index}.",
                where=f"method {self.name}, {lm.name}",
                hint="Name `index`, and `targets` that come behind it.",
            )
        for site in (index, *targets):
            lm.module(site)
        return index, targets

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """None: no weight changes; `layers` says beside which layers blocks stand."""
        return ()

    def distances(self, lm: LanguageModel, facts: Sequence[Fact]) -> shared_memory.Distances:
        """How far keys of paraphrases, neighbours and other facts lie apart, to set `radius` by."""
        return shared_memory.distances(lm, facts, value(self.layers(lm)[0]))

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Train a block for every `batch_size` facts; the model is left as it is.

        The state is handed through: the clusters are those of the patches that are active.

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
        switch = memory_of(lm, Switch, Layers(index, targets, self.gain))
        keys = keys_at(lm, [row.ids[: row.reads[0] + 1] for row in rows], value(index))
        noise = shared_memory.noise(lm, keys)
        plan, database = self._plan(switch, keys, rows, noise)
        with suspended(switch):
            idle = () if switch is None else switch.patches
            trained = self._train(lm, targets, rows, [fact.label for fact in facts], idle)
        stored = {
            "keys": keys,
            "radii": torch.full((len(rows),), self.radius, dtype=torch.float64),
            "noise": torch.tensor(noise, dtype=torch.float64),
            "acts": torch.tensor([one.act for one in plan]),
            "ids": torch.tensor(_ids(keys, rows)),
            "roots": torch.tensor([one.root for one in plan]),
            "blocks": torch.arange(len(rows)) // self.batch_size,
            "targets": torch.tensor([token for row in rows for token in row.labels]),
            "lengths": torch.tensor([len(row.labels) for row in rows]),
        }
        for site in targets:
            stored[f"{A_PART}{site}"] = torch.stack([one.blocks[site].a for one in trained])
            stored[f"{B_PART}{site}"] = torch.stack([one.blocks[site].b for one in trained])
        notes = _notes(facts, plan, trained, _forgotten(switch, database, facts), len(database))
        patch = MeloPatch.make(
            lm, stored, method=self.name, config=config, facts=facts, notes=notes
        )
        return Edit(patch, state)

    def _plan(
        self,
        switch: Switch | None,
        keys: Float[Tensor, "n d"],
        rows: Sequence[LabelledRow],
        noise: Sequence[float],
    ) -> tuple[list[Placed], Database]:
        """Where each fact's key goes, and the clusters once all are in."""
        records = None if switch is None else switch.records
        database = Database() if records is None else Database.of(records)
        ids = _ids(keys, rows)
        plan: list[Placed] = []
        is_first = False
        for fact, row in enumerate(rows):
            if fact % self.batch_size == 0:
                is_first = not len(database)
            one = placed(
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
    ) -> list[Trained]:
        settings = Settings(
            steps=self.steps,
            learning_rate=self.learning_rate,
            decay_every=self.decay_every,
            decay=self.decay,
            stop_loss=self.stop_loss,
            gain=self.gain,
        )
        trained = []
        for begin in range(0, len(rows), self.batch_size):
            own = rows[begin : begin + self.batch_size]
            content = f"{self.seed}/{sorted((row.ids, row.labels) for row in own)}".encode()
            seed = int.from_bytes(hashlib.sha256(content).digest()[:7], "big")
            generator = torch.Generator().manual_seed(seed)
            first: dict[Site, Block] = {}
            for site in targets:
                d_out, d_in = lm.weight(site).shape
                first[site] = new_block(d_in, d_out, self.rank, generator)
            part = names[begin : begin + self.batch_size]
            trained.append(train_block(lm, first, own, settings, names=part, suspended=idle))
        return trained


def _ids(keys: Float[Tensor, "n d"], rows: Sequence[LabelledRow]) -> list[int]:
    return [identity(own, row.labels) for own, row in zip(keys, rows, strict=True)]


def _not_behind(index: Site, targets: Iterable[Site]) -> list[Site]:
    """Targets that are computed before the index layer, or together with it."""
    own = index.layer, _ORDER.get(index.part, 3)
    return [site for site in targets if (site.layer, _ORDER.get(site.part, 3)) <= own]


def _forgotten(switch: Switch | None, database: Database, facts: Sequence[Fact]) -> list[str]:
    """Facts, of this edit or before, whose keys fell out of their clusters by this edit."""
    before: list[int] = [] if switch is None else switch.database.forgotten
    earlier = [] if switch is None else [fact for patch in switch.full for fact in patch.facts]
    owners = [*earlier, *facts]
    edited_again = {fact.prompt for fact in facts}
    return [
        owners[row].label
        for row in database.forgotten[len(before) :]
        if row >= len(earlier) or owners[row].prompt not in edited_again
    ]


def _notes(
    facts: Sequence[Fact],
    plan: Sequence[Placed],
    trained: Sequence[Trained],
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
        "acts": [NAMES[one.act] for one in plan],
        "nearest": [float(f"{min(one.distance, 1e30):.6g}") for one in plan],
        "losses": [[float(f"{loss:.6g}") for loss in own] for own in losses],
        "stop": [one.stop for one in trained],
        "clusters": num_clusters,
    }
