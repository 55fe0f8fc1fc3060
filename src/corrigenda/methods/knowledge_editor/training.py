"""Training of KnowledgeEditor: edits that succeed under a constraint on everything else.

Every edit of a step is made by itself, and the rows that ask about it see its change alone. The
network is trained in two backward passes: through the model to the changes, then from the changes
to the network. The multiplier of the constraint climbs as long as the constraint is violated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.engines.gradients import LabelledRow, Samples, gradient_samples, labelled_rows
from corrigenda.engines.weight_shift import (
    OwnAnswers,
    divergences,
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
from corrigenda.methods.knowledge_editor.network import Conditioner

Constraint = Literal["divergence", "norm"]


class Question(NamedTuple):
    """A fact to edit, the same in other words, and prompts that should stay as they are."""

    fact: Fact
    reworded: Fact
    kept: tuple[str, ...]


class Asked(NamedTuple):
    """A row, the number of the edit it sees, and the weight of each of its labels in a mean."""

    row: LabelledRow
    edit: int
    weight: float


def condition_texts(facts: Sequence[Fact], own: OwnAnswers) -> list[str]:
    """What the network reads: the model's answer, the wanted one, and the question.

    Reference: KnowledgeEditor (De Cao et al. 2021), section 4.1, in the layout of its code.
    """
    said_now = own.texts([fact.prompt for fact in facts])
    return [
        f"{before} >> {fact.target} || {fact.prompt}"
        for before, fact in zip(said_now, facts, strict=True)
    ]


def condition_ids(lm: LanguageModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts for the network."""
    return [lm.tokenizer(text, verbose=False).input_ids for text in texts]


def seen(
    lm: LanguageModel, rows: Sequence[LabelledRow], sites: Sequence[Site]
) -> list[dict[Site, Samples]]:
    """Tokens of each row whose products sum up to the gradient of its mean answer loss.

    Tokens without gradient are left out.
    """
    captured = gradient_samples(lm, rows, sites, every_token=True).samples
    found: list[dict[Site, Samples]] = []
    at = 0
    for row in rows:
        own = slice(at, at := at + len(row.ids))
        parts = {}
        for site, samples in captured.items():
            keys, values = samples.keys[own], samples.gradients[own] / len(row.labels)
            used = values.any(1)
            parts[site] = Samples(keys[used], values[used])
        found.append(parts)
    return found


class Lesson:
    """Training of one network on one model.

    Reference: KnowledgeEditor (De Cao et al. 2021), section 4.2: Lagrangian relaxation.
    """

    def __init__(
        self,
        lm: LanguageModel,
        network: Conditioner,
        *,
        smoothing: float,
        constraint: Constraint,
        micro_batch: int,
    ) -> None:
        """Prepare to train this network; see `KnowledgeEditor` for the options."""
        self.lm, self.network, self.own = lm, network, OwnAnswers(lm)
        self.smoothing, self.constraint, self.micro_batch = smoothing, constraint, micro_batch

    def shifts(self, questions: Sequence[Question]) -> dict[Site, Float[Tensor, "edits out in"]]:
        """The change of each weight for each edit; gradients flow to the network."""
        facts = [one.fact for one in questions]
        gates = self.network(condition_ids(self.lm, condition_texts(facts, self.own)))
        samples = seen(self.lm, labelled_rows(self.lm, facts), tuple(gates))
        found = {}
        for site, gate in gates.items():
            matrices = [one[site].gradients.T @ one[site].keys for one in samples]
            found[site] = gate.shifts(torch.stack(matrices).to(gate.scale))
        return found

    def learn(self, questions: Sequence[Question]) -> float:
        """Add to the gradients of network and multiplier; returns the mean loss of the edits."""
        network = self.network
        made = self.shifts(questions)
        leaves = {
            site: one.detach().to(self.lm.device, shift_dtype(self.lm)).requires_grad_()
            for site, one in made.items()
        }
        edit_loss, total = self._gradients(
            self.edit_losses(questions, leaves, self.smoothing), leaves
        )
        price = float(network.multiplier.detach())
        objective = network.multiplier.new_zeros(())
        if self.constraint == "divergence":
            spread, drift = self._gradients(self.drifts(questions, leaves), leaves)
            total = {site: one + price * drift[site] for site, one in total.items()}
        else:
            norm = torch.stack([one.norm(dim=(1, 2)).mean() for one in made.values()]).mean()
            spread, objective = float(norm.detach()), price * norm
        for site, one in made.items():
            objective = objective + (total[site].to(one) * one).sum()
        objective.backward()
        climb = torch.full_like(network.multiplier, network.allowed - spread)
        before = network.multiplier.grad
        network.multiplier.grad = climb if before is None else before + climb
        return edit_loss

    def _gradients(
        self, losses: Iterator[Tensor], leaves: Mapping[Site, Tensor]
    ) -> tuple[float, dict[Site, Tensor]]:
        """Sum of losses, and of their gradients; one graph at a time."""
        value = 0.0
        total = {site: torch.zeros_like(one) for site, one in leaves.items()}
        for loss in losses:
            value += float(loss.detach())
            for site, gradient in gradients(self.lm, loss, leaves).items():
                total[site] += gradient
        return value, total

    def edit_losses(
        self, questions: Sequence[Question], shifts: Mapping[Site, Tensor], smoothing: float
    ) -> Iterator[Tensor]:
        """Parts of the mean loss of the edits: of each, over the labels of both its wordings."""
        rows = [
            labelled_rows(self.lm, [one.fact for one in questions]),
            labelled_rows(self.lm, [one.reworded for one in questions]),
        ]
        asked = _weighted([[pair[edit] for pair in rows] for edit in range(len(questions))])
        for batch in self._batches(asked):
            rows_now, edits, weights = _columns(batch, self.lm.device)
            with shift_weights(self.lm, shifts, edits):
                losses = label_losses(self.lm, rows_now, smoothing=smoothing)
            yield (losses * weights.to(losses)).sum()

    def drifts(
        self, questions: Sequence[Question], shifts: Mapping[Site, Tensor]
    ) -> Iterator[Tensor]:
        """Parts of the mean divergence of what the model itself would say at kept prompts."""
        for batch in self._batches(self._kept(questions)):
            rows, edits, weights = _columns(batch, self.lm.device)
            with torch.no_grad():
                before = log_probabilities(self.lm, rows)
            with shift_weights(self.lm, shifts, edits):
                found = divergences(self.lm, rows, before)
            yield (found * weights.to(found)).sum()

    @torch.no_grad()
    def judge(self, questions: Sequence[Question], size: int) -> dict[str, float]:
        """Edit facts one by one and look, `size` at a time.

        The loss is the sum of the shares of facts not said, paraphrases not said, and kept answers
        lost, since the margin, and so the Lagrangian, changes on the way.
        """
        took: list[bool] = []
        carried: list[bool] = []
        kept: list[bool] = []
        drift = edit_loss = 0.0
        for begin in range(0, len(questions), size):
            part = questions[begin : begin + size]
            shifts = {
                site: one.to(self.lm.device, shift_dtype(self.lm))
                for site, one in self.shifts(part).items()
            }
            share = len(part) / len(questions)
            edit_loss += share * sum(float(one) for one in self.edit_losses(part, shifts, 0.0))
            drift += share * sum(float(one) for one in self.drifts(part, shifts))
            took += self._said(self._alone([one.fact for one in part]), shifts)
            carried += self._said(self._alone([one.reworded for one in part]), shifts)
            kept += self._said(self._kept(part), shifts)
        shares = [sum(one) / len(one) for one in (took, carried, kept)]
        return {
            "loss": 3.0 - sum(shares),
            "edit_loss": edit_loss,
            "divergence": drift,
            "efficacy": shares[0],
            "paraphrase": shares[1],
            "retained": shares[2],
            "multiplier": float(self.network.multiplier),
            "margin": self.network.allowed,
        }

    def _kept(self, questions: Sequence[Question]) -> list[Asked]:
        rows = iter(self.own.rows([text for one in questions for text in one.kept]))
        return _weighted([[next(rows) for _ in one.kept] for one in questions])

    def _alone(self, facts: Sequence[Fact]) -> list[Asked]:
        return [Asked(row, row.fact, 1.0) for row in labelled_rows(self.lm, facts)]

    def _said(self, asked: Sequence[Asked], shifts: Mapping[Site, Tensor]) -> list[bool]:
        found: list[bool] = []
        for batch in self._batches(asked):
            rows, edits, _ = _columns(batch, self.lm.device)
            with shift_weights(self.lm, shifts, edits):
                found += is_argmax(self.lm, rows)
        return found

    def _batches(self, asked: Sequence[Asked]) -> list[list[Asked]]:
        ordered = sorted(asked, key=lambda one: len(one.row.ids))
        size = self.micro_batch
        return [ordered[begin : begin + size] for begin in range(0, len(ordered), size)]


def _weighted(groups: Sequence[Sequence[LabelledRow]]) -> list[Asked]:
    """Rows by edit, weighted so that sums are means over the labels of an edit, and over edits."""
    asked = []
    for edit, rows in enumerate(groups):
        weight = 1.0 / (len(groups) * sum(len(row.labels) for row in rows))
        asked += [Asked(row, edit, weight) for row in rows]
    return asked


def _columns(
    batch: Sequence[Asked], device: torch.device
) -> tuple[list[LabelledRow], Tensor, Tensor]:
    """Rows, the edit of each row, and the weight of each label."""
    weights = [one.weight for one in batch for _ in one.row.labels]
    edits = torch.tensor([one.edit for one in batch], device=device)
    return [one.row for one in batch], edits, torch.tensor(weights, dtype=torch.float64)
