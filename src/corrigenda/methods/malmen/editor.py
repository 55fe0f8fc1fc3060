"""MALMEN: a network proposes a change for every token, least squares merges thousands of them.

The edit is `Malmen.compute_changes`, in the order of the paper: gradients and keys of the answer's
tokens, proposals of the networks (`network`), their merge (`least_squares`). `MalmenTrainer` is the
training.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from corrigenda.engines.gradients import (
    LabelledRow,
    Samples,
    by_length,
    gradient_samples,
    labelled_rows,
)
from corrigenda.engines.hypernetwork import (
    Changes,
    HypernetworkEditor,
    TrainingPlan,
    differs_in_scale,
    solve_device,
)
from corrigenda.engines.weight_shift import (
    OwnAnswers,
    divergences,
    draw_paraphrase,
    gradients,
    is_argmax,
    label_losses,
    log_probabilities,
    shift_dtype,
    shift_weights,
)
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods.malmen.least_squares import MergedTokens, TokenSum
from corrigenda.methods.malmen.network import Proposers
from corrigenda.progress import Progress
from corrigenda.state import State
from corrigenda.training import Turn, draw_unrelated_prompt, split


class Malmen(HypernetworkEditor):
    """Massive editing: least squares over the proposals of a trained network for many facts.

    Reference: Tan, Zhang, Fu 2024, section 4. See the card.
    """

    name: ClassVar[str] = "malmen"
    required_match: ClassVar[tuple[str, ...]] = ("tokens",)
    last_blocks: ClassVar[int] = 6

    steps: int = Field(default=300, ge=1, description="Steps of training, at most.")
    validate_every: int = Field(default=25, ge=1, description="Steps between validations.")
    num_edits: int = Field(
        default=512, ge=1, description="Facts edited at once in training; edit about as many."
    )
    rank: int = Field(
        default=1920, ge=1, le=65536, description="Inner width of a block of the network."
    )
    blocks: int = Field(default=2, ge=1, le=64, description="Blocks of the network.")
    edit_rate: float = Field(
        default=1e-6, gt=0, description="Length of a proposal before training; learned by weight."
    )
    damping: float = Field(
        default=1.0,
        gt=0,
        description="Ridge of the merge before training, in squared units of the keys; learned.",
    )
    learning_rate: float = Field(default=1e-5, gt=0, description="Of Adam.")
    locality_weight: float = Field(
        default=1.0, ge=0, description="Of the divergence at prompts that should stay."
    )
    clip: float = Field(default=1.0, gt=0, description="Longest gradient of a step.")
    tokens: Literal["answer", "all"] = Field(
        default="answer",
        description="Tokens that propose: those that predict the answer, or all of a row.",
    )
    chunk: int = Field(default=1024, ge=1, description="Tokens that the network reads at once.")

    def build_network(self, lm: LanguageModel) -> Proposers:
        """Build the untrained networks, one for each shape of weight."""
        return Proposers(
            lm,
            self.sites(lm),
            rank=self.rank,
            blocks=self.blocks,
            rate=self.edit_rate,
            damping=self.damping,
            seed=self.seed,
        )

    def plan_training(
        self,
        lm: LanguageModel,
        network: nn.Module,
        facts: tuple[Fact, ...],
        progress: Progress | None,
    ) -> TrainingPlan:
        """Plan to train on merges of batches of facts, with Adam."""
        assert isinstance(network, Proposers)
        # Facts of one subject are held out together, and one of each is edited in a validation:
        # those of a training set may contradict each other.
        subjects = len({fact.subject or fact.prompt for fact in facts})
        wanted = -(-self.num_edits * len(facts) // subjects)
        parts = split(facts, validation=wanted, seed=self.seed)
        trainer = MalmenTrainer(self, lm, network)
        size = min(self.num_edits, len(parts.training))

        def step(turn: Turn) -> float:
            return trainer.learn(_make_examples(parts.training, turn.items, turn.chance))

        def validate() -> Mapping[str, float]:
            chance = random.Random(f"validation/{self.seed}")
            drawn = _draw_one_a_subject(parts.validation, chance)[:size]
            return trainer.validate(_make_examples(drawn, range(len(drawn)), chance))

        adam = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        schedule = self.make_schedule(size, self.clip)
        return TrainingPlan(adam, len(parts.training), step, validate, schedule)

    def compute_changes(
        self, lm: LanguageModel, facts: Sequence[Fact], rows: Sequence[LabelledRow], state: State
    ) -> Changes:
        """Compute the proposals for all facts and merge them into one change of each weight."""
        network = self.load_network(lm, state)
        assert isinstance(network, Proposers)
        sums = {site: TokenSum() for site in self.sites(lm)}
        for batch in by_length(rows, self.micro_batch):
            for site, samples in self.capture(lm, batch).items():
                own, member = network.find(site)
                for part in _split(samples, self.chunk):
                    sums[site].add(part.keys, own.values(part, member))
        changes = {
            site: one.change(network.damping(site), where=str(site)) for site, one in sums.items()
        }
        notes = {
            "samples": {str(site): one.count for site, one in sums.items()},
            "damping": {str(site): float(f"{network.damping(site):.6g}") for site in sums},
            "edit_rate": {str(site): float(f"{network.rate(site):.6g}") for site in sums},
        }
        num_trained = cast("int", self.read_record(state, "config")["num_edits"])
        if not differs_in_scale(num_trained, len(facts)):
            return Changes(changes, notes)
        size = f"trained to edit {num_trained} facts at once, and these are {len(facts)}."
        return Changes(changes, notes, (f"the network was {size}",))

    def capture(self, lm: LanguageModel, rows: Sequence[LabelledRow]) -> dict[Site, Samples]:
        """Capture keys and gradients of one batch of rows, on the device of the networks."""
        found = gradient_samples(lm, rows, self.sites(lm), every_token=self.tokens == "all")
        device = solve_device(lm)
        return {
            site: Samples(*(tensor.to(device) for tensor in samples))
            for site, samples in found.samples.items()
        }


class MergeExample(NamedTuple):
    """A fact to edit, the same in other words, and a prompt whose answer should not change."""

    fact: Fact
    paraphrase: Fact
    unrelated: str


class MergedEdit(NamedTuple):
    """Edit of one set of facts: samples and their merge, by site."""

    samples: dict[Site, Samples]
    merges: dict[Site, MergedTokens]


class MalmenTrainer:
    """Training of the networks on one model: two backward passes, one after the other.

    Reference: MALMEN (Tan et al. 2024), section 4.3 and algorithm 2.
    """

    def __init__(self, editor: Malmen, lm: LanguageModel, network: Proposers) -> None:
        """Prepare to train these networks."""
        self.editor, self.lm, self.network = editor, lm, network
        self.answers = OwnAnswers(lm)

    def learn(self, examples: Sequence[MergeExample]) -> float:
        """Add to the gradients of the networks; returns the mean loss of the paraphrases."""
        edited = self.merge(examples, update=True)
        shifts = {
            site: one.shift().to(self.lm.device, shift_dtype(self.lm)).requires_grad_()
            for site, one in edited.merges.items()
        }
        loss, wanted = self.objective(examples, shifts)
        for site, gradient in wanted.items():
            self.backward(site, edited, gradient)
        return loss

    def merge(self, examples: Sequence[MergeExample], *, update: bool) -> MergedEdit:
        """Edit the facts; `update` takes their samples into the statistics first."""
        found: dict[Site, list[Samples]] = {site: [] for site in self.editor.sites(self.lm)}
        rows = labelled_rows(self.lm, [one.fact for one in examples])
        for batch in by_length(rows, self.editor.micro_batch):
            for site, samples in self.editor.capture(self.lm, batch).items():
                found[site].append(samples)
                if update:
                    self.network.find(site)[0].update_statistics(samples)
        together = {
            site: Samples(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
            for site, batches in found.items()
        }
        merges = {}
        for site, samples in together.items():
            network, member = self.network.find(site)
            with torch.no_grad():
                parts = _split(samples, self.editor.chunk)
                values = torch.cat([network.values(part, member) for part in parts])
            damping = self.network.damping(site)
            merges[site] = MergedTokens.of(samples.keys, values, damping, where=str(site))
        return MergedEdit(together, merges)

    def objective(
        self, examples: Sequence[MergeExample], shifts: Mapping[Site, Tensor]
    ) -> tuple[float, dict[Site, Tensor]]:
        """Compute the mean loss of the paraphrases, and the gradient of the objective.

        The objective is the sum, over batches of rows, of the mean loss of the labels of
        paraphrases and of the weighted mean divergence where prompts should stay.
        """
        lm, size = self.lm, self.editor.micro_batch
        total = {site: torch.zeros_like(shift) for site, shift in shifts.items()}

        def add(loss: Tensor) -> None:
            for site, gradient in gradients(lm, loss, shifts).items():
                total[site] += gradient

        losses: list[float] = []
        for batch in by_length(labelled_rows(lm, [one.paraphrase for one in examples]), size):
            with shift_weights(lm, shifts):
                found = label_losses(lm, batch)
            add(found.mean())
            losses += found.tolist()
        for batch in by_length(self.answers.rows([one.unrelated for one in examples]), size):
            with torch.no_grad():
                before = log_probabilities(lm, batch)
            with shift_weights(lm, shifts):
                found = divergences(lm, batch, before)
            add(self.editor.locality_weight * found.mean())
        return sum(losses) / len(losses), total

    def backward(self, site: Site, edited: MergedEdit, gradient: Tensor) -> None:
        """Take the gradient at one shift back to the network's parameters, chunk by chunk."""
        network, member = self.network.find(site)
        back = edited.merges[site].backward(gradient)
        at = 0
        for part in _split(edited.samples[site], self.editor.chunk):
            values = network.values(part, member)
            (values * back.values[at : at + len(values)].to(values)).sum().backward()
            at += len(values)
        (network.log_damping[member] * back.log_damping).backward()

    @torch.no_grad()
    def validate(self, examples: Sequence[MergeExample]) -> dict[str, float]:
        """Edit facts and measure losses, and the shares of facts and paraphrases answered."""
        lm, size = self.lm, self.editor.micro_batch
        shifts = {
            site: one.shift().to(lm.device, shift_dtype(lm))
            for site, one in self.merge(examples, update=False).merges.items()
        }
        losses, drift, succeeded, carried = [], [], [], []
        for batch in by_length(labelled_rows(lm, [one.fact for one in examples]), size):
            with shift_weights(lm, shifts):
                succeeded += is_argmax(lm, batch)
        for batch in by_length(labelled_rows(lm, [one.paraphrase for one in examples]), size):
            with shift_weights(lm, shifts):
                losses += label_losses(lm, batch).tolist()
                carried += is_argmax(lm, batch)
        for batch in by_length(self.answers.rows([one.unrelated for one in examples]), size):
            before = log_probabilities(lm, batch)
            with shift_weights(lm, shifts):
                drift += divergences(lm, batch, before).tolist()
        loss, divergence = sum(losses) / len(losses), sum(drift) / len(drift)
        return {
            "loss": loss + self.editor.locality_weight * divergence,
            "paraphrase_loss": loss,
            "divergence": divergence,
            "efficacy": sum(succeeded) / len(succeeded),
            "paraphrase": sum(carried) / len(carried),
        }


def _make_examples(
    facts: Sequence[Fact], items: Sequence[int], chance: random.Random
) -> list[MergeExample]:
    return [
        MergeExample(
            facts[item],
            draw_paraphrase(facts[item], chance),
            draw_unrelated_prompt(facts, item, chance),
        )
        for item in items
    ]


def _draw_one_a_subject(facts: Sequence[Fact], chance: random.Random) -> list[Fact]:
    drawn = chance.sample(list(facts), len(facts))
    return list({fact.subject or fact.prompt: fact for fact in drawn}.values())


def _split(samples: Samples, size: int) -> list[Samples]:
    pairs = zip(samples.keys.split(size), samples.gradients.split(size), strict=True)
    return [Samples(keys, gradients) for keys, gradients in pairs]
