"""MALMEN: a network proposes a change for every token, least squares merges thousands of them."""

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
    Course,
    HypernetworkEditor,
    Layers,
    Made,
    far_from,
    home,
)
from corrigenda.engines.weight_shift import (
    OwnAnswers,
    divergences,
    gradients,
    is_argmax,
    label_losses,
    log_probabilities,
    paraphrase_of,
    shift_dtype,
    shift_weights,
)
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods.malmen.least_squares import Gathering, Merged
from corrigenda.methods.malmen.network import Proposers
from corrigenda.progress import Progress
from corrigenda.state import State
from corrigenda.training import Turn, outsider, split

_LAST_BLOCKS = 6


class Malmen(HypernetworkEditor):
    """Merges the proposals of a trained network for very many facts at once.

    Reference: Tan, Zhang, Fu 2024, section 4. See the card, `malmen.md`.
    """

    name: ClassVar[str] = "malmen"
    agreed: ClassVar[tuple[str, ...]] = ("tokens",)

    steps: int = Field(default=300, ge=1, description="Steps of training, at most.")
    validate_every: int = Field(default=25, ge=1, description="Steps between validations.")
    num_edits: int = Field(
        default=512, ge=1, description="Facts edited at once in training; edit about as many."
    )
    rank: int = Field(default=1920, ge=1, description="Inner width of a block of the network.")
    blocks: int = Field(default=2, ge=1, description="Blocks of the network.")
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

    def default_layers(self, lm: LanguageModel) -> Layers:
        """The down projections of the last six blocks."""
        return tuple(range(max(0, lm.num_layers - _LAST_BLOCKS), lm.num_layers))

    def network(self, lm: LanguageModel) -> Proposers:
        """The untrained networks, one for each shape of weight."""
        return Proposers(
            lm,
            self.sites(lm),
            rank=self.rank,
            blocks=self.blocks,
            rate=self.edit_rate,
            damping=self.damping,
            seed=self.seed,
        )

    def course(
        self,
        lm: LanguageModel,
        network: nn.Module,
        facts: tuple[Fact, ...],
        progress: Progress | None,
    ) -> Course:
        """Batches of facts are merged, with Adam."""
        assert isinstance(network, Proposers)
        # Facts of one subject are held out together, and one of each is edited in a validation:
        # those of a training set may contradict each other.
        subjects = len({fact.subject or fact.prompt for fact in facts})
        wanted = -(-self.num_edits * len(facts) // subjects)
        parts = split(facts, validation=wanted, seed=self.seed)
        lesson = Lesson(self, lm, network)
        size = min(self.num_edits, len(parts.training))

        def step(turn: Turn) -> float:
            return lesson.learn(_questions(parts.training, turn.items, turn.chance))

        def validate() -> Mapping[str, float]:
            chance = random.Random(f"validation/{self.seed}")
            judged = _one_a_subject(parts.validation, chance)[:size]
            return lesson.judge(_questions(judged, range(len(judged)), chance))

        adam = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        schedule = self.schedule(size, self.clip)
        return Course(adam, len(parts.training), step, validate, schedule)

    def made(
        self, lm: LanguageModel, facts: Sequence[Fact], rows: Sequence[LabelledRow], state: State
    ) -> Made:
        """The proposals for all facts, merged into one change of each weight."""
        network = self.restored(lm, state)
        assert isinstance(network, Proposers)
        gathered = {site: Gathering() for site in self.sites(lm)}
        for batch in by_length(rows, self.micro_batch):
            for site, samples in self.seen(lm, batch).items():
                own, member = network.of(site)
                for part in _chunks(samples, self.chunk):
                    gathered[site].add(part.keys, own.values(part, member))
        changes = {
            site: one.change(network.damping(site), where=str(site))
            for site, one in gathered.items()
        }
        notes = {
            "samples": {str(site): one.count for site, one in gathered.items()},
            "damping": {str(site): float(f"{network.damping(site):.6g}") for site in gathered},
            "edit_rate": {str(site): float(f"{network.rate(site):.6g}") for site in gathered},
        }
        together = cast("int", self.trained(state, "config")["num_edits"])
        notice = (
            f"the network was trained to edit {together} facts at once, and these are {len(facts)}."
        )
        return Made(changes, notes, (notice,) if far_from(together, len(facts)) else ())

    def seen(self, lm: LanguageModel, rows: Sequence[LabelledRow]) -> dict[Site, Samples]:
        """Keys and gradients of one batch of rows, where the networks live."""
        found = gradient_samples(lm, rows, self.sites(lm), every_token=self.tokens == "all")
        device = home(lm)
        return {
            site: Samples(*(tensor.to(device) for tensor in samples))
            for site, samples in found.samples.items()
        }


class Question(NamedTuple):
    """A fact to edit, the same in other words, and a prompt that should stay as it is."""

    fact: Fact
    reworded: Fact
    kept: str


class Learned(NamedTuple):
    """What one set of facts gave: samples and their merge by site."""

    samples: dict[Site, Samples]
    merged: dict[Site, Merged]


class Lesson:
    """Training of the networks on one model: two backward passes, one after the other.

    Reference: MALMEN (Tan et al. 2024), section 4.3 and algorithm 2.
    """

    def __init__(self, editor: Malmen, lm: LanguageModel, network: Proposers) -> None:
        """Prepare to train these networks."""
        self.editor, self.lm, self.network = editor, lm, network
        self.own = OwnAnswers(lm)

    def learn(self, questions: Sequence[Question]) -> float:
        """Add to the gradients of the networks; returns the mean loss of the reworded facts."""
        edited = self.merged(questions, see=True)
        shifts = {
            site: one.shift().to(self.lm.device, shift_dtype(self.lm)).requires_grad_()
            for site, one in edited.merged.items()
        }
        loss, wanted = self.objective(questions, shifts)
        for site, gradient in wanted.items():
            self.returned(site, edited, gradient)
        return loss

    def merged(self, questions: Sequence[Question], *, see: bool) -> Learned:
        """Edit the facts; `see` takes their samples into the statistics first."""
        found: dict[Site, list[Samples]] = {site: [] for site in self.editor.sites(self.lm)}
        rows = labelled_rows(self.lm, [one.fact for one in questions])
        for batch in by_length(rows, self.editor.micro_batch):
            for site, samples in self.editor.seen(self.lm, batch).items():
                found[site].append(samples)
                if see:
                    self.network.of(site)[0].see(samples)
        together = {
            site: Samples(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
            for site, batches in found.items()
        }
        merged = {}
        for site, samples in together.items():
            network, member = self.network.of(site)
            with torch.no_grad():
                parts = _chunks(samples, self.editor.chunk)
                values = torch.cat([network.values(part, member) for part in parts])
            damping = self.network.damping(site)
            merged[site] = Merged.of(samples.keys, values, damping, where=str(site))
        return Learned(together, merged)

    def objective(
        self, questions: Sequence[Question], shifts: Mapping[Site, Tensor]
    ) -> tuple[float, dict[Site, Tensor]]:
        """Mean loss of the reworded facts, and the gradient of the objective at the shifts.

        The objective is the sum, over batches of rows, of the mean loss of the labels of reworded
        facts and of the weighted mean divergence where prompts should stay.
        """
        lm, size = self.lm, self.editor.micro_batch
        total = {site: torch.zeros_like(shift) for site, shift in shifts.items()}

        def add(loss: Tensor) -> None:
            for site, gradient in gradients(lm, loss, shifts).items():
                total[site] += gradient

        losses: list[float] = []
        for batch in by_length(labelled_rows(lm, [one.reworded for one in questions]), size):
            with shift_weights(lm, shifts):
                found = label_losses(lm, batch)
            add(found.mean())
            losses += found.tolist()
        for batch in by_length(self.own.rows([one.kept for one in questions]), size):
            with torch.no_grad():
                before = log_probabilities(lm, batch)
            with shift_weights(lm, shifts):
                found = divergences(lm, batch, before)
            add(self.editor.locality_weight * found.mean())
        return sum(losses) / len(losses), total

    def returned(self, site: Site, edited: Learned, gradient: Tensor) -> None:
        """Take the gradient at one shift back to the network's parameters, chunk by chunk."""
        network, member = self.network.of(site)
        back = edited.merged[site].returned(gradient)
        at = 0
        for part in _chunks(edited.samples[site], self.editor.chunk):
            values = network.values(part, member)
            (values * back.values[at : at + len(values)].to(values)).sum().backward()
            at += len(values)
        (network.log_damping[member] * back.log_damping).backward()

    @torch.no_grad()
    def judge(self, questions: Sequence[Question]) -> dict[str, float]:
        """Edit facts and look: what training lowers, and shares of what is said afterwards."""
        lm, size = self.lm, self.editor.micro_batch
        shifts = {
            site: one.shift().to(lm.device, shift_dtype(lm))
            for site, one in self.merged(questions, see=False).merged.items()
        }
        losses, drift, took, carried = [], [], [], []
        for batch in by_length(labelled_rows(lm, [one.fact for one in questions]), size):
            with shift_weights(lm, shifts):
                took += is_argmax(lm, batch)
        for batch in by_length(labelled_rows(lm, [one.reworded for one in questions]), size):
            with shift_weights(lm, shifts):
                losses += label_losses(lm, batch).tolist()
                carried += is_argmax(lm, batch)
        for batch in by_length(self.own.rows([one.kept for one in questions]), size):
            before = log_probabilities(lm, batch)
            with shift_weights(lm, shifts):
                drift += divergences(lm, batch, before).tolist()
        loss, divergence = sum(losses) / len(losses), sum(drift) / len(drift)
        return {
            "loss": loss + self.editor.locality_weight * divergence,
            "paraphrase_loss": loss,
            "divergence": divergence,
            "efficacy": sum(took) / len(took),
            "paraphrase": sum(carried) / len(carried),
        }


def _questions(
    facts: Sequence[Fact], items: Sequence[int], chance: random.Random
) -> list[Question]:
    return [
        Question(facts[item], paraphrase_of(facts[item], chance), outsider(facts, item, chance))
        for item in items
    ]


def _one_a_subject(facts: Sequence[Fact], chance: random.Random) -> list[Fact]:
    drawn = chance.sample(list(facts), len(facts))
    return list({fact.subject or fact.prompt: fact for fact in drawn}.values())


def _chunks(samples: Samples, size: int) -> list[Samples]:
    pairs = zip(samples.keys.split(size), samples.gradients.split(size), strict=True)
    return [Samples(keys, gradients) for keys, gradients in pairs]
