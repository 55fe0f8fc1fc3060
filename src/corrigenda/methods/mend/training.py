"""The outer problem of MEND: edits are made and judged without touching the model.

The inner problem is the gradient of a fact, token by token; both are shared by training and edit.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import kl_div

from corrigenda.engines.gradients import LabelledRow, gradient_samples, labelled_rows, predict
from corrigenda.engines.weight_shift import (
    OwnAnswers,
    gradients,
    log_probabilities,
    paraphrase_of,
)
from corrigenda.facts import Fact
from corrigenda.lm.hooks import Term
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods.mend.network import Factors, Networks
from corrigenda.progress import Progress
from corrigenda.training import outsider

_ASKED_AT_ONCE = 512


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


@dataclass(frozen=True)
class Trainer:
    """Makes edits, judges them, and sends the gradient of the judgement into the networks.

    Attributes:
        lm: The model, left as it is.
        networks: What is trained.
        sites: The weights that are edited.
        answers: The model's own answers to prompts that should be left alone.
        edit_weight: c_e, of the edit loss.
        locality_weight: c_loc, of the locality loss.
        facts_at_once: Facts of a task.
        batch_size: Tasks of a pass when judging.
        seed: Decides which outsider goes with which fact.
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

    def outsiders(self, facts: Sequence[Fact]) -> list[str]:
        """For each fact one prompt that editing it should leave alone, always the same one.

        So the model has to be asked but once for its own answers, and many at a time.
        """
        draw = random.Random(f"outsiders/{self.seed}")
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
        size = self.facts_at_once
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
        wanted = [tensor for one in leaves.values() for tensor in one[:2]]
        found = gradients(self.lm, loss, dict(enumerate(wanted)))
        made = [tensor for one in rewritten.values() for tensor in one[:2]]
        torch.autograd.backward(made, list(found.values()))
        return float(loss.detach())

    @torch.no_grad()
    def judge(self, tasks: Sequence[Task]) -> dict[str, float]:
        """Losses over all tasks, and the share of facts carried over to a paraphrase."""
        sums = {"loss": 0.0, "edit_loss": 0.0, "locality_loss": 0.0, "paraphrase": 0.0}
        size = self.batch_size
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
        return self.edit_weight * losses.edit + self.locality_weight * losses.locality

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
    rows: Sequence[LabelledRow],
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
    seen = gradient_samples(lm, rows, sites, reduction="sum", every_token=True)
    lengths = torch.tensor([len(row.ids) for row in rows])
    labels = torch.tensor([len(row.labels) for row in rows], dtype=torch.float64)
    per_token = labels.repeat_interleave(lengths)[:, None]
    named = torch.tensor(range(len(rows)) if owners is None else owners)
    owner = named.repeat_interleave(lengths)
    factors = {}
    for site, (inputs, outputs) in seen.samples.items():
        # Padding is gone already; what feeds no label has no gradient and would be normalised.
        used = (inputs != 0).any(1) & (outputs != 0).any(1)
        factors[site] = Factors(inputs[used], (outputs / per_token)[used], owner[used])
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

    def term_of(edit: Factors) -> Term:
        own = (owners[:, None] == edit.owners[None, :])[:, None, :]

        def term(read: Tensor, _: Tensor) -> Tensor:
            along = read.to(edit.inputs.dtype) @ edit.inputs.T
            return (along * own.to(along)) @ edit.outputs

        return term

    return lm.add({site: term_of(edit) for site, edit in edits.items()})


def _owners(tasks: Sequence[Task]) -> list[int]:
    return [number for number, task in enumerate(tasks) for _ in task.facts]
