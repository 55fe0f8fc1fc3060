"""MEND: small networks, trained once, turn the gradient of a fact into an edit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from corrigenda.engines.gradients import LabelledRow, by_length
from corrigenda.engines.hypernetwork import Course, HypernetworkEditor, Layers, Made
from corrigenda.engines.weight_shift import OwnAnswers, smaller_form
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, resolve_sites
from corrigenda.methods.mend.network import Factors, Networks, Rewrite
from corrigenda.methods.mend.training import Trainer, gradient_factors
from corrigenda.progress import Progress
from corrigenda.state import State
from corrigenda.training import Turn, order, split

_BLOCKS = 3
_PARTS = ("mlp.gate", "mlp.up", "mlp.down")


class Mend(HypernetworkEditor):
    """Rewrites the gradient of one fact, token by token, into the factors of an edit.

    Reference: Mitchell et al. 2022, sections 3.1 to 3.3. See the card, `mend.md`.
    """

    name: ClassVar[str] = "mend"
    agreed: ClassVar[tuple[str, ...]] = ("rank", "rewrite", "normalise", "shared")

    layers: Layers | None = Field(
        default=None,
        description="Blocks whose feed-forward weights change, or blocks by part; the last three.",
    )
    parts: tuple[str, ...] | None = Field(
        default=None,
        description="Weights of each block, if `layers` does not name them; all feed-forward "
        "weights it has.",
    )
    rank: int = Field(default=1920, ge=1, description="Inner width of the networks, at most.")
    rewrite: Rewrite = Field(
        default="jointly",
        description="Which factors are rewritten: both `jointly` or `separately`, only the "
        "`inputs`, only the `gradients`.",
    )
    normalise: bool = Field(default=True, description="Standardise what the networks read.")
    shared: bool = Field(default=True, description="One network for all weights of a shape.")
    edit_rate: float = Field(default=1e-4, description="First value of the learned rates.")
    learning_rate: float = Field(default=1e-6, gt=0, description="Of Adam, for the networks.")
    rate_learning_rate: float = Field(default=1e-4, gt=0, description="Of Adam, for the rates.")
    edit_weight: float = Field(default=0.1, gt=0, description="Weight of the edit loss, c_e.")
    locality_weight: float = Field(default=1.0, ge=0, description="Weight of the KL loss, c_loc.")
    batch_size: int = Field(default=10, ge=1, description="Tasks of an optimiser step.")
    accumulate: int = Field(default=1, ge=1, description="Passes a step is made of, of that size.")
    facts_at_once: int = Field(default=1, ge=1, description="Facts edited together in a task.")
    clip: float = Field(default=100.0, gt=0, description="Longest gradient of a step.")
    validation: int = Field(default=500, ge=1, description="Facts that training is judged by.")
    patience: int | None = Field(
        default=2000, ge=1, description="Steps without a better validation before it ends."
    )
    micro_batch: int = Field(default=16, ge=1, description="Facts in one pass of an edit.")

    def default_layers(self, lm: LanguageModel) -> Layers:
        """The last three blocks."""
        return tuple(range(max(0, lm.num_layers - _BLOCKS), lm.num_layers))

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """The configured weights, lowest block first.

        Raises:
            UnknownSite (CG303): the model has no such block or part.
        """
        layers = self.default_layers(lm) if self.layers is None else self.layers
        if not isinstance(layers, dict):
            parts = self.parts or [part for part in _PARTS if part in lm.family.slots]
            layers = dict.fromkeys(parts, layers)
        sites = resolve_sites(lm, layers, where=f"method {self.name}")
        for site in sites:
            lm.weight(site)
        places = {part: place for place, part in enumerate(layers)}
        return tuple(sorted(sites, key=lambda site: (site.layer, places[site.part])))

    def network(self, lm: LanguageModel) -> Networks:
        """The untrained networks, one for each shape of weight, and the rates."""
        return Networks(
            lm,
            self.sites(lm),
            rank=self.rank,
            rewrite=self.rewrite,
            normalise=self.normalise,
            shared=self.shared,
            rate=self.edit_rate,
            seed=self.seed,
        )

    def made(
        self, lm: LanguageModel, facts: Sequence[Fact], rows: Sequence[LabelledRow], state: State
    ) -> Made:
        """A change of rank one for each token of each fact, added up.

        Each fact is edited as if it were the only one.
        """
        networks = self.restored(lm, state)
        found: dict[Site, list[Factors]] = {}
        losses: dict[int, float] = {}
        for batch in by_length(rows, self.micro_batch):
            factors, own = gradient_factors(lm, batch, self.sites(lm))
            losses |= {row.fact: loss for row, loss in zip(batch, own, strict=True)}
            for site, one in networks(factors).items():
                found.setdefault(site, []).append(one)
        changes = {
            site: smaller_form(
                torch.cat([one.outputs for one in parts]).T.cpu(),
                torch.cat([one.inputs for one in parts]).T.cpu(),
            )
            for site, parts in found.items()
        }
        return Made(changes, losses=losses)

    def course(
        self,
        lm: LanguageModel,
        network: nn.Module,
        facts: tuple[Fact, ...],
        progress: Progress | None,
    ) -> Course:
        """Edits that should carry over to paraphrases and spare the rest, with Adam."""
        assert isinstance(network, Networks)
        parts = split(facts, validation=self.validation, seed=self.seed)
        optimiser = torch.optim.Adam(
            [
                {"params": list(network.groups.parameters()), "lr": self.learning_rate},
                {"params": list(network.rates.parameters()), "lr": self.rate_learning_rate},
            ]
        )
        trainer = self.trainer(lm, network)
        learned, judged = (trainer.outsiders(facts) for facts in parts)
        size = self.batch_size * self.facts_at_once
        first = order(self.seed, 0, len(learned))[: self.steps * size * self.accumulate]
        trainer.ask([*(learned[item] for item in first), *judged], progress)
        chance = random.Random(f"validation/{self.seed}")
        fixed = trainer.tasks(parts.validation, judged, range(len(judged)), chance)

        def step(turn: Turn) -> float:
            return trainer.learn(trainer.tasks(parts.training, learned, turn.items, turn.chance))

        schedule = self.schedule(size, self.clip, self.accumulate)
        return Course(optimiser, len(parts.training), step, lambda: trainer.judge(fixed), schedule)

    def trainer(self, lm: LanguageModel, networks: Networks) -> Trainer:
        """What trains networks under these settings."""
        return Trainer(
            lm,
            networks,
            self.sites(lm),
            OwnAnswers(lm),
            edit_weight=self.edit_weight,
            locality_weight=self.locality_weight,
            facts_at_once=self.facts_at_once,
            batch_size=self.batch_size,
            seed=self.seed,
        )
