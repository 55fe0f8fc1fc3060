"""MEND: small networks, trained once, turn the gradient of a fact into an edit."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Int
from pydantic import Field, JsonValue
from torch import Tensor
from torch.nn.functional import kl_div

from corrigenda.editor import Edit, Editor, Gives, Needs
from corrigenda.errors import MissingState
from corrigenda.facts import Fact
from corrigenda.lm.hooks import Transform
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Site, key, value
from corrigenda.methods._gradients import (
    Labelled,
    by_length,
    capture,
    labelled_rows,
    mean_losses,
    predict,
)
from corrigenda.methods._mend_network import Factors, Networks, Rewrite
from corrigenda.methods._shifted import (
    OwnAnswers,
    log_probabilities,
    paraphrase_of,
    smallest,
)
from corrigenda.patch import Header, WeightPatch, header_for
from corrigenda.progress import Progress
from corrigenda.state import State
from corrigenda.training import Schedule, Turn, order, outsider, split, train

_PREFIX = "mend/"
_BLOCKS = 3
_PARTS = ("mlp.gate", "mlp.up", "mlp.down")
_ASKED_AT_ONCE = 512
_EVEN_ODDS = math.log(2.0)
_LOSS_SCALE = {torch.float16: 1024.0}
# What the networks of a state must agree on with the editor that uses them.
_SHAPE = ("rank", "rewrite", "normalise", "shared")


class Task(NamedTuple):
    """Facts edited at once, and what is asked afterwards.

    Attributes:
        facts: What is edited.
        paraphrases: The same facts asked in other words, with their targets.
        outsiders: Prompts that should be answered as before, one for each fact.
    """

    facts: tuple[Fact, ...]
    paraphrases: tuple[Fact, ...]
    outsiders: tuple[str, ...]


class Losses(NamedTuple):
    """Both parts of the outer loss, in nats, means over the facts of all tasks.

    Attributes:
        edit: Cross-entropy of the targets behind the paraphrases, with the edit.
        locality: KL divergence from the unedited model where outsiders are answered.
    """

    edit: Tensor
    locality: Tensor


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
        trainer = Trainer(self, lm, networks)
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


class Trainer:
    """The outer problem: edits are made, and their effects judged, without touching the model."""

    def __init__(self, editor: Mend, lm: LanguageModel, networks: Networks) -> None:
        """Bind the editor, the model and the networks that are trained."""
        self.editor, self.lm, self.networks = editor, lm, networks
        self.sites = editor.sites(lm)
        self.answers = OwnAnswers(lm)

    def outsiders(self, facts: Sequence[Fact]) -> list[str]:
        """For each fact one prompt that editing it should leave alone, always the same one.

        So the model has to be asked but once for its own answers, and many at a time.
        """
        draw = random.Random(f"outsiders/{self.editor.seed}")
        return [outsider(facts, index, draw) for index in range(len(facts))]

    def ask(self, prompts: Sequence[str], progress: Progress | None) -> None:
        """Ask the model for its own answers ahead of the training, many at a time."""
        for begin in range(0, len(prompts), _ASKED_AT_ONCE):
            if progress is not None:
                progress("own answers", begin, len(prompts))
            self.answers.texts(prompts[begin : begin + _ASKED_AT_ONCE])

    def tasks(
        self,
        facts: Sequence[Fact],
        outsiders: Sequence[str],
        items: Sequence[int],
        chance: random.Random,
    ) -> list[Task]:
        """Tasks from facts by number, `facts_at_once` each."""
        size = self.editor.facts_at_once
        tasks = []
        for begin in range(0, len(items), size):
            chosen = items[begin : begin + size]
            tasks.append(
                Task(
                    tuple(facts[item] for item in chosen),
                    tuple(paraphrase_of(facts[item], chance) for item in chosen),
                    tuple(outsiders[item] for item in chosen),
                )
            )
        return tasks

    def learn(self, tasks: Sequence[Task]) -> float:
        """Add the gradients of the outer loss; returns it.

        Gradients first reach the rewritten factors, then go through the networks alone.
        """
        factors = self._captured(tasks)
        self.networks.see(factors)
        rewritten = self.networks(factors)
        leaves = {
            site: Factors(
                one.inputs.detach().requires_grad_(), one.outputs.detach().requires_grad_(), one[2]
            )
            for site, one in rewritten.items()
        }
        losses, _ = self._outer(tasks, leaves)
        loss = self._weighted(losses)
        scale = _LOSS_SCALE.get(self.lm.dtype, 1.0)
        wanted = [tensor for one in leaves.values() for tensor in one[:2]]
        found = torch.autograd.grad(loss * scale, wanted)
        made = [tensor for one in rewritten.values() for tensor in one[:2]]
        torch.autograd.backward(made, [one / scale for one in found])
        return float(loss.detach())

    @torch.no_grad()
    def judge(self, tasks: Sequence[Task]) -> dict[str, float]:
        """Losses over all tasks, and the share of facts carried over to a paraphrase."""
        sums = {"loss": 0.0, "edit_loss": 0.0, "locality_loss": 0.0, "paraphrase": 0.0}
        size = self.editor.batch_size
        count = sum(len(task.facts) for task in tasks)
        for begin in range(0, len(tasks), size):
            batch = tasks[begin : begin + size]
            losses, carried = self._outer(batch, self.networks(self._captured(batch)))
            figures = (self._weighted(losses), losses.edit, losses.locality)
            share = sum(len(task.facts) for task in batch) / count
            for name, figure in zip(sums, figures, strict=False):
                sums[name] += float(figure) * share
            sums["paraphrase"] += sum(carried) / count
        return sums

    def _captured(self, tasks: Sequence[Task]) -> dict[Site, Factors]:
        rows = labelled_rows(self.lm, [fact for task in tasks for fact in task.facts])
        owners = _owners(tasks)
        return gradient_factors(self.lm, rows, self.sites, owners)[0]

    def _weighted(self, losses: Losses) -> Tensor:
        return self.editor.edit_weight * losses.edit + self.editor.locality_weight * losses.locality

    def _outer(
        self, tasks: Sequence[Task], edits: Mapping[Site, Factors]
    ) -> tuple[Losses, list[bool]]:
        told = labelled_rows(self.lm, [fact for task in tasks for fact in task.paraphrases])
        kept = self.answers.rows([prompt for task in tasks for prompt in task.outsiders])
        with torch.no_grad():
            before = log_probabilities(self.lm, kept)
        owners = torch.tensor(_owners(tasks) * 2)
        with edited(self.lm, edits, owners):
            logits, labels = predict(self.lm, [*told, *kept])
        now = logits.log_softmax(1)
        sizes = [len(row.labels) for row in (*told, *kept)]
        wrong = -now.gather(1, labels[:, None])[:, 0]
        moved = kl_div(now[-len(before) :], before, reduction="none", log_target=True).sum(1)
        losses = Losses(
            torch.stack([one.mean() for one in wrong.split(sizes)[: len(told)]]).mean(),
            torch.stack([one.mean() for one in moved.split(sizes[len(told) :])]).mean(),
        )
        right = (now.argmax(1) == labels).split(sizes)[: len(told)]
        return losses, [bool(one.all()) for one in right]


def gradient_factors(
    lm: LanguageModel,
    rows: Sequence[Labelled],
    sites: Sequence[Site],
    owners: Sequence[int] | None = None,
) -> tuple[dict[Site, Factors], list[float]]:
    """Inputs and output gradients at all tokens that the loss of a row depends on.

    The loss of a row is the mean over its labels, and those of several rows are added up.
    `outputs.T @ inputs` is the gradient of the weight; it is never formed.

    Args:
        lm: The model, with whatever patches are active.
        rows: One batch.
        sites: The weights.
        owners: Which edit each row belongs to; each its own if None.

    Returns:
        Factors by site, float64 on the CPU, and the loss of each row.
    """
    seen = capture(lm, rows, sites, reduction="sum", every_token=True)
    lengths = torch.tensor([len(row.ids) for row in rows])
    labels = torch.tensor([len(row.labels) for row in rows], dtype=torch.float64)
    per_token = labels.repeat_interleave(lengths)[:, None]
    named = torch.tensor(range(len(rows)) if owners is None else owners)
    owner = named.repeat_interleave(lengths)
    factors = {}
    for site, (inputs, gradients) in seen.samples.items():
        # Padding is gone already; what feeds no label has no gradient and would be normalised.
        used = (inputs != 0).any(1) & (gradients != 0).any(1)
        factors[site] = Factors(inputs[used], (gradients / per_token)[used], owner[used])
    return factors, seen.losses


def edited(
    lm: LanguageModel, edits: Mapping[Site, Factors], owners: Int[Tensor, " batch"]
) -> AbstractContextManager[None]:
    """Run the model with an edit for each row, until left; gradients reach the factors.

    Args:
        lm: The model, with whatever patches are active.
        edits: By site, the factors of all edits, in the dtype their products are taken in.
        owners: The edit each row of the pass sees.
    """
    inputs: dict[Site, Tensor] = {}

    def remember(site: Site) -> Transform:
        def see(tensor: Tensor) -> Tensor:
            inputs[site] = tensor
            return tensor

        return see

    def add(site: Site, edit: Factors) -> Transform:
        own = (owners[:, None] == edit.owners[None, :])[:, None, :]

        def move(tensor: Tensor) -> Tensor:
            read = inputs.pop(site).to(edit.inputs.dtype) @ edit.inputs.T
            moved = (read * own.to(read)) @ edit.outputs
            return (tensor.to(moved.dtype) + moved).to(tensor.dtype)

        return move

    transforms: dict[Point, Transform] = {}
    for site, edit in edits.items():
        transforms |= {key(site): remember(site), value(site): add(site, edit)}
    return lm.swap(transforms)


def _owners(tasks: Sequence[Task]) -> list[int]:
    return [number for number, task in enumerate(tasks) for _ in task.facts]
