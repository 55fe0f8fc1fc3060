"""KnowledgeEditor: a recurrent network reads the edit and gates the gradient of every weight."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from corrigenda.engines.gradients import LabelledRow
from corrigenda.engines.hypernetwork import Course, HypernetworkEditor, Layers, Made
from corrigenda.engines.weight_shift import OwnAnswers, is_argmax, paraphrase_of, smaller_form
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods.knowledge_editor.network import Conditioner, Gate
from corrigenda.methods.knowledge_editor.training import (
    Constraint,
    Lesson,
    Question,
    condition_ids,
    condition_texts,
    seen,
)
from corrigenda.patch import Header, WeightPatch
from corrigenda.progress import Progress
from corrigenda.state import State
from corrigenda.training import Turn, outsider, split

_LAST_BLOCKS = 3
_ENOUGH_SUCCESS = 0.9
_SHRINK = 0.8


class KnowledgeEditor(HypernetworkEditor):
    """Turns the gradient of a fact into a bounded change under a learned constraint.

    Reference: De Cao, Aziz, Titov 2021, section 4. See the card, `knowledge_editor.md`.
    """

    name: ClassVar[str] = "knowledge-editor"
    agreed: ClassVar[tuple[str, ...]] = ("max_scale",)

    hidden: int = Field(default=128, ge=1, description="Width of the reader, each direction.")
    condition: int = Field(default=1024, ge=1, description="Width of what the reader says.")
    head: int = Field(default=128, ge=1, description="Inner width of the head of a weight.")
    max_scale: float = Field(default=1.0, gt=0, description="Bound of the scale of a change.")
    rounds: int = Field(
        default=1,
        ge=1,
        description="Changes added up at most, each from a new gradient, until the answer is said.",
    )
    learning_rate: float = Field(default=3e-4, gt=0, description="Of the network.")
    multiplier_rate: float = Field(default=0.1, gt=0, description="Of the multiplier, alpha.")
    warm_up: int = Field(
        default=1000, ge=0, description="Steps until the learning rate is reached; then it falls."
    )
    batch_size: int = Field(default=1, ge=1, description="Edits in one step, each by itself.")
    others: int = Field(default=63, ge=1, description="Prompts that should stay, for each edit.")
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="Of the labels of the edit.")
    constraint: Constraint = Field(
        default="divergence",
        description="What must stay below the margin: divergence of the kept prompts' answers, or "
        "the mean norm of the changes.",
    )
    margin: float = Field(default=1e-3, gt=0, description="Margin of the constraint at first.")
    least_margin: float = Field(default=1e-5, gt=0, description="Margin it is tightened to.")
    validation: int = Field(default=100, ge=1, description="Facts to validate on, more or less.")

    def default_layers(self, lm: LanguageModel) -> Layers:
        """Every weight of the feed-forward part of the last three blocks."""
        last = tuple(range(max(0, lm.num_layers - _LAST_BLOCKS), lm.num_layers))
        return {part: last for part in lm.family.slots if part.startswith("mlp.")}

    def network(self, lm: LanguageModel) -> Conditioner:
        """The untrained network."""
        return Conditioner(
            lm,
            self.sites(lm),
            hidden=self.hidden,
            condition=self.condition,
            head=self.head,
            max_scale=self.max_scale,
            margin=self.margin,
            seed=self.seed,
        )

    def course(
        self,
        lm: LanguageModel,
        network: nn.Module,
        facts: tuple[Fact, ...],
        progress: Progress | None,
    ) -> Course:
        """Edits by themselves, with RMSprop; the multiplier climbs, and the margin shrinks."""
        assert isinstance(network, Conditioner)
        parts = split(facts, validation=self.validation, seed=self.seed)
        lesson = Lesson(
            lm,
            network,
            smoothing=self.smoothing,
            constraint=self.constraint,
            micro_batch=self.micro_batch,
        )
        size = min(self.batch_size, len(parts.training))
        multiplier = [network.multiplier]
        others = [one for one in network.parameters() if one is not network.multiplier]
        optimiser = torch.optim.RMSprop(
            [
                {"params": others, "lr": self.learning_rate},
                {"params": multiplier, "lr": self.multiplier_rate},
            ],
            centered=True,
        )

        def step(turn: Turn) -> float:
            share = self.pace(turn.step)
            for group, rate in zip(
                optimiser.param_groups, (self.learning_rate, self.multiplier_rate), strict=True
            ):
                group["lr"] = rate * share
            return lesson.learn(self.questions(parts.training, turn.items, turn.chance))

        def validate() -> Mapping[str, float]:
            chance = random.Random(f"validation/{self.seed}")
            judged = range(len(parts.validation))
            figures = lesson.judge(self.questions(parts.validation, judged, chance), size)
            if figures["efficacy"] > _ENOUGH_SUCCESS:
                network.tighten(_SHRINK, self.least_margin)
            return figures

        optimiser.register_step_post_hook(lambda *_: network.bound())
        schedule = self.schedule(size, None)
        return Course(optimiser, len(parts.training), step, validate, schedule)

    def pace(self, step: int) -> float:
        """Share of the learning rates at a step: up during the warm-up, then down to 0."""
        if step < self.warm_up:
            return (step + 1) / (self.warm_up + 1)
        return (self.steps - step) / max(1, self.steps - self.warm_up)

    def made(
        self, lm: LanguageModel, facts: Sequence[Fact], rows: Sequence[LabelledRow], state: State
    ) -> Made:
        """The sum of the changes for all facts, each made by itself."""
        network = self.restored(lm, state)
        assert isinstance(network, Conditioner)
        texts = condition_texts(facts, OwnAnswers(lm))
        # Sorted, so that the sum does not depend on the order of the facts.
        order = sorted(range(len(facts)), key=lambda i: (rows[i].ids, rows[i].labels))
        sums: dict[Site, LowRank] = {}
        rounds = [0] * len(facts)
        for begin in range(0, len(order), self.micro_batch):
            batch = [rows[i] for i in order[begin : begin + self.micro_batch]]
            with torch.no_grad():
                gates = network(condition_ids(lm, [texts[row.fact] for row in batch]))
            for own in self._changes(lm, batch, gates, rounds):
                for site, change in own.items():
                    sums[site] = sums[site] + change if site in sums else change
        changes = {site: smaller_form(one.left, one.right) for site, one in sums.items()}
        return Made(changes, {"rounds": rounds, "conditions": texts})

    def _changes(
        self,
        lm: LanguageModel,
        batch: Sequence[LabelledRow],
        gates: Mapping[Site, Gate],
        rounds: list[int],
    ) -> list[dict[Site, LowRank]]:
        """The change of each fact, from as many gradients as it takes; counts them in `rounds`."""
        found = []
        for edit, samples in enumerate(seen(lm, batch, tuple(gates))):
            row = batch[edit]
            own = {site: gates[site].factors(edit, one) for site, one in samples.items()}
            rounds[row.fact] = 1
            while rounds[row.fact] < self.rounds:
                with WeightPatch(own, Header(method=self.name)).apply(lm, mode="runtime"):
                    if is_argmax(lm, [row])[0]:
                        break
                    again = seen(lm, [row], tuple(gates))[0]
                own = {
                    site: own[site] + gates[site].factors(edit, one) for site, one in again.items()
                }
                rounds[row.fact] += 1
            found.append(own)
        return found

    def questions(
        self, facts: Sequence[Fact], items: Sequence[int], chance: random.Random
    ) -> list[Question]:
        """Facts to edit, each with prompts that should stay: of its own and of other facts."""
        found = []
        for item in items:
            kept = [outsider(facts, item, chance) for _ in range((self.others + 1) // 2)]
            strange = [fact for fact in facts if fact.subject != facts[item].subject] or facts
            kept += [chance.choice(strange).prompt for _ in range(self.others // 2)]
            found.append(Question(facts[item], paraphrase_of(facts[item], chance), tuple(kept)))
        return found
