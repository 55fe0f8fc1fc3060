"""KnowledgeEditor: a recurrent network reads the edit and gates the gradient of every weight.

The edit is `KnowledgeEditor.compute_changes`; the network is in `network`, the training in
`training`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from corrigenda.engines.gradients import LabelledRow
from corrigenda.engines.hypernetwork import Changes, HypernetworkEditor, TrainingPlan
from corrigenda.engines.weight_shift import OwnAnswers, draw_paraphrase, is_argmax, smaller_form
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.footprint import (
    FLOAT,
    USUAL_READS,
    USUAL_TOKENS,
    graph_bytes,
    head_bytes,
    vocabulary_of,
)
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods.knowledge_editor.network import Conditioner, Gate
from corrigenda.methods.knowledge_editor.training import (
    ConstrainedExample,
    KnowledgeEditorTrainer,
    Quantity,
    capture,
    condition_ids,
    condition_texts,
)
from corrigenda.patch import Header, WeightPatch
from corrigenda.progress import Progress
from corrigenda.state import State
from corrigenda.training import Turn, draw_unrelated_prompt, split

_ENOUGH_SUCCESS = 0.9
_SHRINK = 0.8


class KnowledgeEditor(HypernetworkEditor):
    """Gated gradients: a bounded change for each fact, learned under a constraint.

    Reference: De Cao, Aziz, Titov 2021, section 4. See the card.
    """

    name: ClassVar[str] = "knowledge-editor"
    required_match: ClassVar[tuple[str, ...]] = ("max_scale",)
    last_blocks: ClassVar[int] = 3
    default_parts: ClassVar[tuple[str, ...]] = ("mlp.gate", "mlp.up", "mlp.down")

    hidden: int = Field(default=128, ge=1, le=65536, description="Width of the reader.")
    condition: int = Field(default=1024, ge=1, le=65536, description="Width of its output.")
    head: int = Field(default=128, ge=1, le=65536, description="Inner width of a head.")
    max_scale: float = Field(default=1.0, gt=0, description="Bound of the scale of a change.")
    rounds: int = Field(
        default=1,
        ge=1,
        description="Changes added up at most, each from a new gradient, until the answer comes.",
    )
    learning_rate: float = Field(default=3e-4, gt=0, description="Of the network.")
    multiplier_rate: float = Field(default=0.1, gt=0, description="Of the multiplier, alpha.")
    warm_up: int = Field(
        default=1000, ge=0, description="Steps until the learning rate is reached; then it falls."
    )
    batch_size: int = Field(default=1, ge=1, description="Edits in one step, each by itself.")
    others: int = Field(default=63, ge=1, description="Prompts that should stay, for each edit.")
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="Of the labels of the edit.")
    constraint: Quantity = Field(
        default="divergence",
        description="What must stay below the margin: divergence at the unrelated prompts, or "
        "the mean norm of the changes.",
    )
    margin: float = Field(default=1e-3, gt=0, description="Margin of the constraint at first.")
    least_margin: float = Field(default=1e-5, gt=0, description="Margin it is tightened to.")
    validation: int = Field(default=100, ge=1, description="Facts to validate on, more or less.")

    def build_network(self, lm: LanguageModel) -> Conditioner:
        """Build the untrained network."""
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

    def plan_training(
        self,
        lm: LanguageModel,
        network: nn.Module,
        facts: tuple[Fact, ...],
        progress: Progress | None,
    ) -> TrainingPlan:
        """Plan to train on single edits with RMSprop; multiplier ascends, margin shrinks."""
        assert isinstance(network, Conditioner)
        parts = split(facts, validation=self.validation, seed=self.seed)
        trainer = KnowledgeEditorTrainer(
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
            share = self.warm_up_share(turn.step)
            for group, rate in zip(
                optimiser.param_groups, (self.learning_rate, self.multiplier_rate), strict=True
            ):
                group["lr"] = rate * share
            return trainer.learn(self.make_examples(parts.training, turn.items, turn.chance))

        def validate() -> Mapping[str, float]:
            chance = random.Random(f"validation/{self.seed}")
            judged = range(len(parts.validation))
            examples = self.make_examples(parts.validation, judged, chance)
            figures = trainer.validate(examples, size)
            if figures["efficacy"] > _ENOUGH_SUCCESS:
                network.tighten(_SHRINK, self.least_margin)
            return figures

        optimiser.register_step_post_hook(lambda *_: network.clamp_multiplier())
        schedule = self.make_schedule(size, None)
        return TrainingPlan(optimiser, len(parts.training), step, validate, schedule)

    def working_memory(self, lm: LanguageModel, num_facts: int) -> int:
        """Return the bytes of the network and of one graph; changes are factors, which are small.

        The word vectors, a copy of the model's own, are most of the network.
        """
        sites = self.sites(lm)
        outputs = sum(2 * sum(lm.shape(site)) + 1 for site in sites)
        reader = 8 * self.hidden * (lm.d_model + self.hidden)
        heads = self.head * (len(sites) * self.condition + outputs)
        words = vocabulary_of(lm) * lm.d_model
        numbers = words + reader + 2 * self.hidden * self.condition + heads
        rows = min(num_facts, self.micro_batch)
        blocks = lm.num_layers - min(site.layer for site in sites)
        graph = graph_bytes(lm, blocks, rows * USUAL_TOKENS) + head_bytes(lm, rows * USUAL_READS)
        return FLOAT * numbers + graph

    def warm_up_share(self, step: int) -> float:
        """Return the share of the learning rates at a step: up in the warm-up, then down to 0."""
        if step < self.warm_up:
            return (step + 1) / (self.warm_up + 1)
        return (self.steps - step) / max(1, self.steps - self.warm_up)

    def compute_changes(
        self, lm: LanguageModel, facts: Sequence[Fact], rows: Sequence[LabelledRow], state: State
    ) -> Changes:
        """Compute the change of each fact by itself, and add them up."""
        network = self.load_network(lm, state)
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
            for own in self._change_each(lm, batch, gates, rounds):
                for site, change in own.items():
                    sums[site] = sums[site] + change if site in sums else change
        changes = {site: smaller_form(one.left, one.right) for site, one in sums.items()}
        return Changes(changes, {"rounds": rounds, "conditions": texts})

    def _change_each(
        self,
        lm: LanguageModel,
        batch: Sequence[LabelledRow],
        gates: Mapping[Site, Gate],
        rounds: list[int],
    ) -> list[dict[Site, LowRank]]:
        """Compute the change of each fact, from as many gradients as needed; counts `rounds`."""
        found = []
        for edit, samples in enumerate(capture(lm, batch, tuple(gates))):
            row = batch[edit]
            own = {site: gates[site].factors(edit, one) for site, one in samples.items()}
            rounds[row.fact] = 1
            while rounds[row.fact] < self.rounds:
                with WeightPatch(own, Header(method=self.name)).apply(lm, mode="runtime"):
                    if is_argmax(lm, [row])[0]:
                        break
                    again = capture(lm, [row], tuple(gates))[0]
                own = {
                    site: own[site] + gates[site].factors(edit, one) for site, one in again.items()
                }
                rounds[row.fact] += 1
            found.append(own)
        return found

    def make_examples(
        self, facts: Sequence[Fact], items: Sequence[int], chance: random.Random
    ) -> list[ConstrainedExample]:
        """Make examples of facts, each with unrelated prompts: its neighbours and other facts."""
        found = []
        for item in items:
            count = (self.others + 1) // 2
            unrelated = [draw_unrelated_prompt(facts, item, chance) for _ in range(count)]
            other_facts = [fact for fact in facts if fact.subject != facts[item].subject] or facts
            unrelated += [chance.choice(other_facts).prompt for _ in range(self.others // 2)]
            found.append(
                ConstrainedExample(
                    facts[item], draw_paraphrase(facts[item], chance), tuple(unrelated)
                )
            )
        return found
