"""MEND: small networks, trained once, turn the gradient of a fact into an edit.

`Mend.compute_changes` is the edit, in the terms of `network`; `MendTrainer` is the training.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import kl_div

from corrigenda.engines.gradients import LabelledRow, by_length, labelled_rows, predict
from corrigenda.engines.hypernetwork import Changes, HypernetworkEditor, LayersByPart, TrainingPlan
from corrigenda.engines.weight_shift import (
    OwnAnswers,
    draw_paraphrase,
    gradients,
    log_probabilities,
    smaller_form,
)
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, resolve_sites
from corrigenda.methods.mend.network import (
    Factors,
    Networks,
    RewrittenFactors,
    apply_factors,
    gradient_factors,
)
from corrigenda.progress import Progress
from corrigenda.state import State
from corrigenda.training import Turn, draw_unrelated_prompt, shuffle_epoch, split

_ASKED_AT_ONCE = 512


class Mend(HypernetworkEditor):
    """Model editing by rewritten gradients: one rank-one change for each token of a fact.

    Reference: Mitchell et al. 2022, sections 3.1 to 3.3. See the card.
    """

    name: ClassVar[str] = "mend"
    required_match: ClassVar[tuple[str, ...]] = ("rank", "rewrite", "normalise", "shared")
    last_blocks: ClassVar[int] = 3
    default_parts: ClassVar[tuple[str, ...]] = ("mlp.gate", "mlp.up", "mlp.down")

    layers: LayersByPart | None = Field(
        default=None,
        description="Blocks whose feed-forward weights change, or blocks by part; the last three.",
    )
    parts: tuple[str, ...] | None = Field(
        default=None,
        description="Weights of each block, if `layers` does not name them; all feed-forward "
        "weights it has.",
    )
    rank: int = Field(default=1920, ge=1, description="Inner width of the networks, at most.")
    rewrite: RewrittenFactors = Field(
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

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return the configured weights, lowest block first.

        Raises:
            UnknownSite (CG303): the model has no such block or part.
        """
        layers = self.default_blocks(lm) if self.layers is None else self.layers
        if not isinstance(layers, dict):
            parts = self.parts or [part for part in self.default_parts if part in lm.family.slots]
            layers = dict.fromkeys(parts, layers)
        sites = resolve_sites(lm, layers, where=f"method {self.name}")
        for site in sites:
            lm.shape(site)
        places = {part: place for place, part in enumerate(layers)}
        return tuple(sorted(sites, key=lambda site: (site.layer, places[site.part])))

    def build_network(self, lm: LanguageModel) -> Networks:
        """Build the untrained networks, one for each shape of weight, and the rates."""
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

    def compute_changes(
        self, lm: LanguageModel, facts: Sequence[Fact], rows: Sequence[LabelledRow], state: State
    ) -> Changes:
        """Compute a change of rank one for each token of each fact, and add them up.

        Each fact is edited as if it were the only one.
        """
        networks = self.load_network(lm, state)
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
        return Changes(changes, losses=losses)

    def plan_training(
        self,
        lm: LanguageModel,
        network: nn.Module,
        facts: tuple[Fact, ...],
        progress: Progress | None,
    ) -> TrainingPlan:
        """Plan to train edits that carry over to paraphrases and spare the rest, with Adam."""
        assert isinstance(network, Networks)
        parts = split(facts, validation=self.validation, seed=self.seed)
        optimiser = torch.optim.Adam(
            [
                {"params": list(network.groups.parameters()), "lr": self.learning_rate},
                {"params": list(network.rates.parameters()), "lr": self.rate_learning_rate},
            ]
        )
        trainer = self.make_trainer(lm, network)
        learned, judged = (trainer.draw_unrelated(facts) for facts in parts)
        size = self.batch_size * self.facts_at_once
        first = shuffle_epoch(self.seed, 0, len(learned))[: self.steps * size * self.accumulate]
        trainer.ask([*(learned[item] for item in first), *judged], progress)
        chance = random.Random(f"validation/{self.seed}")
        fixed = trainer.make_tasks(parts.validation, judged, range(len(judged)), chance)

        def step(turn: Turn) -> float:
            tasks = trainer.make_tasks(parts.training, learned, turn.items, turn.chance)
            return trainer.learn(tasks)

        schedule = self.make_schedule(size, self.clip, self.accumulate)
        return TrainingPlan(
            optimiser, len(parts.training), step, lambda: trainer.validate(fixed), schedule
        )

    def make_trainer(self, lm: LanguageModel, networks: Networks) -> MendTrainer:
        """Make the trainer of networks under these settings."""
        return MendTrainer(
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


class EditTask(NamedTuple):
    """Facts edited at once, and the prompts that judge the edit.

    Attributes:
        facts: The facts.
        paraphrases: The same facts asked in other words, with their targets.
        unrelated: Prompts that should be answered as before, one for each fact.
    """

    facts: tuple[Fact, ...]
    paraphrases: tuple[Fact, ...]
    unrelated: tuple[str, ...]


class OuterLosses(NamedTuple):
    """Both parts of the outer loss, in nats, means over the facts of all tasks.

    Attributes:
        edit: Cross-entropy of the targets after the paraphrases, with the edit.
        locality: KL divergence from the unedited model where unrelated prompts are answered.
    """

    edit: Tensor
    locality: Tensor


@dataclass(frozen=True)
class MendTrainer:
    """Outer problem of MEND: makes edits, measures them, and trains the networks.

    Attributes:
        lm: The model, left as it is.
        networks: The networks to train.
        sites: The weights that are edited.
        answers: The model's own answers to prompts that should not change.
        edit_weight: c_e, of the edit loss.
        locality_weight: c_loc, of the locality loss.
        facts_at_once: Facts of a task.
        batch_size: Tasks of a pass when validating.
        seed: Seed of the choice of unrelated prompts.

    Reference: MEND (Mitchell et al. 2022), section 3.3 and algorithm 1.
    """

    lm: LanguageModel
    networks: Networks
    sites: tuple[Site, ...]
    answers: OwnAnswers
    edit_weight: float
    locality_weight: float
    facts_at_once: int
    batch_size: int
    seed: int

    def draw_unrelated(self, facts: Sequence[Fact]) -> list[str]:
        """Draw one prompt for each fact that its edit should not change; fixed for a seed.

        So the model answers each prompt only once, many at a time.
        """
        draw = random.Random(f"outsiders/{self.seed}")
        return [draw_unrelated_prompt(facts, index, draw) for index in range(len(facts))]

    def ask(self, prompts: Sequence[str], progress: Progress | None) -> None:
        """Ask the model for its own answers ahead of the training, many at a time."""
        for begin in range(0, len(prompts), _ASKED_AT_ONCE):
            if progress is not None:
                progress("own answers", begin, len(prompts))
            self.answers.texts(prompts[begin : begin + _ASKED_AT_ONCE])

    def make_tasks(
        self,
        facts: Sequence[Fact],
        unrelated: Sequence[str],
        items: Sequence[int],
        chance: random.Random,
    ) -> list[EditTask]:
        """Make tasks from facts by number, `facts_at_once` each."""
        size = self.facts_at_once
        tasks = []
        for begin in range(0, len(items), size):
            chosen = items[begin : begin + size]
            tasks.append(
                EditTask(
                    tuple(facts[item] for item in chosen),
                    tuple(draw_paraphrase(facts[item], chance) for item in chosen),
                    tuple(unrelated[item] for item in chosen),
                )
            )
        return tasks

    def learn(self, tasks: Sequence[EditTask]) -> float:
        """Add the gradients of the outer loss; returns it.

        Gradients first reach the rewritten factors, then go through the networks alone.
        """
        factors = self._capture(tasks)
        self.networks.update_statistics(factors)
        rewritten = self.networks(factors)
        leaves = {
            site: Factors(
                one.inputs.detach().requires_grad_(), one.outputs.detach().requires_grad_(), one[2]
            )
            for site, one in rewritten.items()
        }
        losses, _ = self._outer(tasks, leaves)
        loss = self._weigh(losses)
        wanted = [tensor for one in leaves.values() for tensor in one[:2]]
        found = gradients(self.lm, loss, dict(enumerate(wanted)))
        outputs = [tensor for one in rewritten.values() for tensor in one[:2]]
        torch.autograd.backward(outputs, list(found.values()))
        return float(loss.detach())

    @torch.no_grad()
    def validate(self, tasks: Sequence[EditTask]) -> dict[str, float]:
        """Measure losses over all tasks, and the share of facts carried over to a paraphrase."""
        sums = {"loss": 0.0, "edit_loss": 0.0, "locality_loss": 0.0, "paraphrase": 0.0}
        size = self.batch_size
        count = sum(len(task.facts) for task in tasks)
        for begin in range(0, len(tasks), size):
            batch = tasks[begin : begin + size]
            losses, carried = self._outer(batch, self.networks(self._capture(batch)))
            figures = (self._weigh(losses), losses.edit, losses.locality)
            share = sum(len(task.facts) for task in batch) / count
            for name, figure in zip(sums, figures, strict=False):
                sums[name] += float(figure) * share
            sums["paraphrase"] += sum(carried) / count
        return sums

    def _capture(self, tasks: Sequence[EditTask]) -> dict[Site, Factors]:
        rows = labelled_rows(self.lm, [fact for task in tasks for fact in task.facts])
        return gradient_factors(self.lm, rows, self.sites, _task_numbers(tasks))[0]

    def _weigh(self, losses: OuterLosses) -> Tensor:
        return self.edit_weight * losses.edit + self.locality_weight * losses.locality

    def _outer(
        self, tasks: Sequence[EditTask], edits: Mapping[Site, Factors]
    ) -> tuple[OuterLosses, list[bool]]:
        paraphrased = labelled_rows(self.lm, [fact for task in tasks for fact in task.paraphrases])
        spared = self.answers.rows([prompt for task in tasks for prompt in task.unrelated])
        with torch.no_grad():
            before = log_probabilities(self.lm, spared)
        owners = torch.tensor(_task_numbers(tasks) * 2)
        with apply_factors(self.lm, edits, owners):
            logits, labels = predict(self.lm, [*paraphrased, *spared])
        now = logits.log_softmax(1)
        sizes = [len(row.labels) for row in (*paraphrased, *spared)]
        wrong = -now.gather(1, labels[:, None])[:, 0]
        drift = kl_div(now[-len(before) :], before, reduction="none", log_target=True).sum(1)
        losses = OuterLosses(
            torch.stack([one.mean() for one in wrong.split(sizes)[: len(paraphrased)]]).mean(),
            torch.stack([one.mean() for one in drift.split(sizes[len(paraphrased) :])]).mean(),
        )
        right = (now.argmax(1) == labels).split(sizes)[: len(paraphrased)]
        return losses, [bool(one.all()) for one in right]


def _task_numbers(tasks: Sequence[EditTask]) -> list[int]:
    """Return the number of the task of each fact."""
    return [number for number, task in enumerate(tasks) for _ in task.facts]
