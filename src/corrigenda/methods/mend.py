"""MEND: small networks, trained once, turn the gradient of a fact into an edit."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field, JsonValue

from corrigenda.editor import Edit, Editor, Gives, Needs
from corrigenda.errors import MissingState
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods._gradients import Labelled, by_length, labelled_rows, mean_losses
from corrigenda.methods._mend_network import Factors, Networks, Rewrite
from corrigenda.methods._mend_training import Trainer, gradient_factors
from corrigenda.methods._shifted import OwnAnswers, smallest
from corrigenda.patch import Header, WeightPatch, header_for
from corrigenda.progress import Progress
from corrigenda.state import State
from corrigenda.training import Schedule, Turn, order, split, train

_PREFIX = "mend/"
_BLOCKS = 3
_PARTS = ("mlp.gate", "mlp.up", "mlp.down")
_EVEN_ODDS = math.log(2.0)
# What the networks of a state must agree on with the editor that uses them.
_SHAPE = ("rank", "rewrite", "normalise", "shared")


class Mend(Editor):
    """Rewrites the gradient of one fact, token by token, into the factors of an edit.

    Reference: Mitchell et al. 2022, sections 3.1 to 3.3. See the card, `mend.md`.
    """

    name: ClassVar[str] = "mend"
    needs: ClassVar[Needs] = Needs(training_set=True)
    gives: ClassVar[Gives] = Gives(
        single=True, batch=True, sequential=True, exact=False, order_free=True
    )

    layers: tuple[int, ...] | None = Field(
        default=None, description="Blocks whose feed-forward weights change; the last three."
    )
    parts: tuple[str, ...] | None = Field(
        default=None, description="Weights of each block; all feed-forward weights it has."
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
    steps: int = Field(default=10_000, ge=1, description="Optimiser steps of the training.")
    batch_size: int = Field(default=10, ge=1, description="Tasks of an optimiser step.")
    accumulate: int = Field(default=1, ge=1, description="Passes a step is made of, of that size.")
    facts_at_once: int = Field(default=1, ge=1, description="Facts edited together in a task.")
    clip: float = Field(default=100.0, gt=0, description="Longest gradient of a step.")
    validation: int = Field(default=500, ge=1, description="Facts that training is judged by.")
    validate_every: int = Field(default=500, ge=1, description="Steps between validations.")
    patience: int | None = Field(
        default=2000, ge=1, description="Steps without a better validation before it ends."
    )
    micro_batch: int = Field(default=16, ge=1, description="Facts in one pass of an edit.")
    seed: int = Field(default=0, description="Of the networks, the split and every draw.")

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """The configured weights, lowest block first.

        Raises:
            UnknownSite (CG303): the model has no such block or part.
        """
        layers = self.layers
        if layers is None:
            layers = tuple(range(max(0, lm.num_layers - _BLOCKS), lm.num_layers))
        parts = self.parts or tuple(part for part in _PARTS if part in lm.family.slots)
        sites = tuple(Site(layer, part) for layer in sorted(set(layers)) for part in parts)
        for site in sites:
            lm.weight(site)
        return sites

    def networks(self, lm: LanguageModel, state: State | None = None) -> Networks:
        """The networks of a state, or new ones.

        Raises:
            MissingState (CG503): they were trained for other weights or with other settings.
        """
        sites = self.sites(lm)
        networks = Networks(
            lm,
            sites,
            rank=self.rank,
            rewrite=self.rewrite,
            normalise=self.normalise,
            shared=self.shared,
            rate=self.edit_rate,
            seed=self.seed,
        )
        if state is None:
            return networks
        if state.meta.get(self.name) != self._about(sites):
            raise MissingState(
                "the state holds no networks for these weights and settings.",
                where=f"method {self.name} on {lm.name}",
                hint="Call `editor.fit(lm, facts)` with the same editor and pass its state.",
            )
        networks.load_state_dict(
            {
                name.removeprefix(_PREFIX): tensor
                for name, tensor in state.tensors.items()
                if name.startswith(_PREFIX)
            }
        )
        return networks.eval()

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Turn the gradient of each fact into a change of rank one for each of its tokens.

        The changes of several facts are added up, each as if it were the only one.

        Raises:
            MissingState (CG503): no networks were trained for this editor.
            WrongBase (CG401): they were trained on another model.
            PromptTooLong (CG105): a prompt and its target exceed the context.
            NonFinite (CG201): an input or a gradient is infinite or NaN.
        """
        if not facts:
            return Edit(WeightPatch({}, self._header(lm, facts, {})), state)
        state = state or State()
        state.require_base(lm)
        networks = self.networks(lm, state)
        rows = labelled_rows(lm, facts)
        found: dict[Site, list[Factors]] = {}
        losses: dict[int, float] = {}
        for batch in by_length(rows, self.micro_batch):
            factors, own = gradient_factors(lm, batch, self.sites(lm))
            losses |= {row.fact: loss for row, loss in zip(batch, own, strict=True)}
            with torch.no_grad():
                for site, one in networks(factors).items():
                    found.setdefault(site, []).append(one)
        changes = {
            site: smallest(
                torch.cat([one.outputs for one in parts]).T.cpu(),
                torch.cat([one.inputs for one in parts]).T.cpu(),
            )
            for site, parts in found.items()
        }
        patch = WeightPatch(changes, self._header(lm, facts, {}))
        notes = self._notes(lm, facts, rows, losses, patch)
        return Edit(WeightPatch(changes, self._header(lm, facts, notes)), state)

    def train(
        self,
        lm: LanguageModel,
        facts: tuple[Fact, ...],
        *,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> State:
        """Train the networks so that an edit carries over to paraphrases and spares the rest."""
        parts = split(facts, validation=self.validation, seed=self.seed)
        networks = self.networks(lm)
        optimiser = torch.optim.Adam(
            [
                {"params": list(networks.groups.parameters()), "lr": self.learning_rate},
                {"params": list(networks.rates.parameters()), "lr": self.rate_learning_rate},
            ]
        )
        trainer = self.trainer(lm, networks)
        learned, judged = (trainer.outsiders(facts) for facts in parts)
        per_step = self.batch_size * self.facts_at_once * self.accumulate
        first = order(self.seed, 0, len(learned))[: self.steps * per_step]
        trainer.ask([*(learned[item] for item in first), *judged], progress)
        chance = random.Random(f"validation/{self.seed}")
        fixed = trainer.tasks(parts.validation, judged, range(len(judged)), chance)

        def step(turn: Turn) -> float:
            return trainer.learn(trainer.tasks(parts.training, learned, turn.items, turn.chance))

        trained = train(
            networks,
            optimiser,
            num_items=len(parts.training),
            step=step,
            validate=lambda: trainer.judge(fixed),
            schedule=Schedule(
                steps=self.steps,
                batch_size=self.batch_size * self.facts_at_once,
                accumulate=self.accumulate,
                validate_every=self.validate_every,
                patience=self.patience,
                clip=self.clip,
                seed=self.seed,
            ),
            checkpoint=checkpoint,
            key=f"{self.model_dump_json()}/{lm.digest()}",
            progress=progress,
        )
        tensors = {f"{_PREFIX}{name}": one.cpu() for name, one in networks.state_dict().items()}
        return State(
            tensors,
            {self.name: self._about(self.sites(lm)), "training": trained.to_json()},
        )

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

    def _about(self, sites: Sequence[Site]) -> JsonValue:
        config = self.model_dump(mode="json")
        return {"sites": [str(site) for site in sites], **{name: config[name] for name in _SHAPE}}

    def _header(
        self, lm: LanguageModel, facts: Sequence[Fact], notes: Mapping[str, object]
    ) -> Header:
        config = self.model_dump(mode="json")
        return header_for(lm, method=self.name, config=config, facts=facts, notes=notes)

    def _notes(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        rows: Sequence[Labelled],
        before: Mapping[int, float],
        patch: WeightPatch,
    ) -> dict[str, object]:
        after: dict[int, float] = {}
        with patch.apply(lm, mode="runtime"):
            for batch in by_length(rows, self.micro_batch):
                own = mean_losses(lm, batch)
                after |= {row.fact: loss for row, loss in zip(batch, own, strict=True)}
        pairs = [(before[row.fact], after[row.fact]) for row in rows]
        statuses = ["written" if late <= _EVEN_ODDS else "not converged" for _, late in pairs]
        return {
            "status": statuses,
            "notices": [
                f"{fact.label}: {status}; the answer's loss went from {early:.2f} to {late:.2f}."
                for fact, status, (early, late) in zip(facts, statuses, pairs, strict=True)
                if status != "written"
            ],
            "losses": [[float(f"{loss:.6g}") for loss in pair] for pair in pairs],
            "norms": {str(site): float(f"{norm:.6g}") for site, norm in patch.norms().items()},
            "layers": sorted({site.layer for site in patch.sites}),
        }
