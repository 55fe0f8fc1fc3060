"""Training of KnowledgeEditor: edits that succeed under a constraint on everything else.

Every edit of a step is made by itself, and the rows that ask about it see its change alone. The
network is trained in two backward passes: through the model to the changes, then from the changes
to the network. The multiplier of the constraint ascends as long as the constraint is violated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from corrigenda.engines.gradients import LabelledRow, Samples, gradient_samples, labelled_rows
from corrigenda.engines.weight_shift import (
    FactorShifts,
    OwnAnswers,
    divergences,
    gradients,
    is_argmax,
    label_losses,
    log_probabilities,
    shift_dtype,
    shift_each,
)
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods.knowledge_editor.network import Conditioner

Quantity = Literal["divergence", "norm"]
"""Constrained quantity: divergence at unrelated prompts, or mean norm of the changes."""


class ConstrainedExample(NamedTuple):
    """A fact to edit, the same in other words, and prompts whose answers should not change."""

    fact: Fact
    paraphrase: Fact
    unrelated: tuple[str, ...]


class WeightedRow(NamedTuple):
    """A row, the number of the edit applied to it, and the weight of each of its labels."""

    row: LabelledRow
    edit: int
    weight: float


def condition_texts(facts: Sequence[Fact], own: OwnAnswers) -> list[str]:
    """Compose the texts that the network reads: own answer, wanted answer and question.

    Reference: KnowledgeEditor (De Cao et al. 2021), section 4.1, in the layout of its code.
    """
    answers = own.texts([fact.prompt for fact in facts])
    return [
        f"{before} >> {fact.target} || {fact.prompt}"
        for before, fact in zip(answers, facts, strict=True)
    ]


def condition_ids(lm: LanguageModel, texts: Sequence[str]) -> list[list[int]]:
    """Encode texts for the network."""
    return [lm.tokenizer(text, verbose=False).input_ids for text in texts]


def capture(
    lm: LanguageModel, rows: Sequence[LabelledRow], sites: Sequence[Site]
) -> list[dict[Site, Samples]]:
    """Capture the tokens of each row whose products sum up to the gradient of its mean loss.

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


class KnowledgeEditorTrainer:
    """Training of one network on one model.

    Reference: KnowledgeEditor (De Cao et al. 2021), section 4.2: Lagrangian relaxation.
    """

    def __init__(
        self,
        lm: LanguageModel,
        network: Conditioner,
        *,
        smoothing: float,
        constraint: Quantity,
        micro_batch: int,
    ) -> None:
        """Prepare to train this network; see `KnowledgeEditor` for the options."""
        self.lm, self.network, self.answers = lm, network, OwnAnswers(lm)
        self.smoothing, self.constraint, self.micro_batch = smoothing, constraint, micro_batch

    def shifts(self, examples: Sequence[ConstrainedExample]) -> dict[Site, FactorShifts]:
        """Compute the change of each weight for each edit; gradients flow to the network."""
        facts = [one.fact for one in examples]
        gates = self.network(condition_ids(self.lm, condition_texts(facts, self.answers)))
        samples = capture(self.lm, labelled_rows(self.lm, facts), tuple(gates))
        found = {}
        for site, gate in gates.items():
            own = [gate.factors(edit, one[site]) for edit, one in enumerate(samples)]
            found[site] = FactorShifts.stack(own)
        return found

    def learn(self, examples: Sequence[ConstrainedExample]) -> float:
        """Add to the gradients of network and multiplier; returns the mean loss of the edits."""
        network = self.network
        made = self.shifts(examples)
        leaves = {
            site: FactorShifts(*(side.requires_grad_() for side in self._detach(one)))
            for site, one in made.items()
        }
        edit_loss, total = self._accumulate(
            self.edit_losses(examples, leaves, self.smoothing), leaves
        )
        price = float(network.multiplier.detach())
        objective = network.multiplier.new_zeros(())
        if self.constraint == "divergence":
            spread, drift = self._accumulate(self.divergences(examples, leaves), leaves)
            total = {name: one + price * drift[name] for name, one in total.items()}
        else:
            norm = torch.stack([one.norms().mean() for one in made.values()]).mean()
            spread, objective = float(norm.detach()), price * norm
        for name, one in _sides(made).items():
            objective = objective + (total[name].to(one) * one).sum()
        objective.backward()
        ascent = torch.full_like(network.multiplier, network.allowed - spread)
        before = network.multiplier.grad
        network.multiplier.grad = ascent if before is None else before + ascent
        return edit_loss

    def _detach(self, one: FactorShifts) -> FactorShifts:
        return FactorShifts(
            *(side.detach().to(self.lm.device, shift_dtype(self.lm)) for side in one)
        )

    def _accumulate(
        self, losses: Iterator[Tensor], shifts: Mapping[Site, FactorShifts]
    ) -> tuple[float, dict[tuple[Site, int], Tensor]]:
        """Sum losses and their gradients by site and side; one graph at a time."""
        value = 0.0
        leaves = _sides(shifts)
        total = {name: torch.zeros_like(one) for name, one in leaves.items()}
        for loss in losses:
            value += float(loss.detach())
            for name, gradient in gradients(self.lm, loss, leaves).items():
                total[name] += gradient
        return value, total

    def edit_losses(
        self,
        examples: Sequence[ConstrainedExample],
        shifts: Mapping[Site, FactorShifts],
        smoothing: float,
    ) -> Iterator[Tensor]:
        """Yield parts of the mean loss of the edits, over the labels of both wordings of each."""
        rows = [
            labelled_rows(self.lm, [one.fact for one in examples]),
            labelled_rows(self.lm, [one.paraphrase for one in examples]),
        ]
        weighted = _weight_rows([[pair[edit] for pair in rows] for edit in range(len(examples))])
        for batch in self._batches(weighted):
            rows_now, edits, weights = _transpose(batch, self.lm.device)
            with shift_each(self.lm, shifts, edits):
                losses = label_losses(self.lm, rows_now, smoothing=smoothing)
            yield (losses * weights.to(losses)).sum()

    def divergences(
        self, examples: Sequence[ConstrainedExample], shifts: Mapping[Site, FactorShifts]
    ) -> Iterator[Tensor]:
        """Yield parts of the mean divergence from the model's own answers at unrelated prompts."""
        for batch in self._batches(self._unrelated_rows(examples)):
            rows, edits, weights = _transpose(batch, self.lm.device)
            with torch.no_grad():
                before = log_probabilities(self.lm, rows)
            with shift_each(self.lm, shifts, edits):
                found = divergences(self.lm, rows, before)
            yield (found * weights.to(found)).sum()

    @torch.no_grad()
    def validate(self, examples: Sequence[ConstrainedExample], size: int) -> dict[str, float]:
        """Edit facts one by one and measure, `size` at a time.

        The loss is the sum of the shares of facts and paraphrases not answered, and of unrelated
        answers lost, since the margin, and so the Lagrangian, changes on the way.
        """
        succeeded: list[bool] = []
        carried: list[bool] = []
        retained: list[bool] = []
        drift = edit_loss = 0.0
        for begin in range(0, len(examples), size):
            part = examples[begin : begin + size]
            shifts = {site: self._detach(one) for site, one in self.shifts(part).items()}
            share = len(part) / len(examples)
            edit_loss += share * sum(float(one) for one in self.edit_losses(part, shifts, 0.0))
            drift += share * sum(float(one) for one in self.divergences(part, shifts))
            succeeded += self._check_argmax(self._fact_rows([one.fact for one in part]), shifts)
            carried += self._check_argmax(self._fact_rows([one.paraphrase for one in part]), shifts)
            retained += self._check_argmax(self._unrelated_rows(part), shifts)
        shares = [sum(one) / len(one) for one in (succeeded, carried, retained)]
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

    def _unrelated_rows(self, examples: Sequence[ConstrainedExample]) -> list[WeightedRow]:
        rows = iter(self.answers.rows([text for one in examples for text in one.unrelated]))
        return _weight_rows([[next(rows) for _ in one.unrelated] for one in examples])

    def _fact_rows(self, facts: Sequence[Fact]) -> list[WeightedRow]:
        return [WeightedRow(row, row.fact, 1.0) for row in labelled_rows(self.lm, facts)]

    def _check_argmax(
        self, weighted: Sequence[WeightedRow], shifts: Mapping[Site, FactorShifts]
    ) -> list[bool]:
        found: list[bool] = []
        for batch in self._batches(weighted):
            rows, edits, _ = _transpose(batch, self.lm.device)
            with shift_each(self.lm, shifts, edits):
                found += is_argmax(self.lm, rows)
        return found

    def _batches(self, weighted: Sequence[WeightedRow]) -> list[list[WeightedRow]]:
        ordered = sorted(weighted, key=lambda one: len(one.row.ids))
        size = self.micro_batch
        return [ordered[begin : begin + size] for begin in range(0, len(ordered), size)]


def _sides(shifts: Mapping[Site, FactorShifts]) -> dict[tuple[Site, int], Tensor]:
    """Return both factors of each shift by site and number."""
    return {(site, side): one[side] for site, one in shifts.items() for side in (0, 1)}


def _weight_rows(groups: Sequence[Sequence[LabelledRow]]) -> list[WeightedRow]:
    """Weight rows by edit so that sums are means over the labels of an edit, and over edits."""
    weighted = []
    for edit, rows in enumerate(groups):
        weight = 1.0 / (len(groups) * sum(len(row.labels) for row in rows))
        weighted += [WeightedRow(row, edit, weight) for row in rows]
    return weighted


def _transpose(
    batch: Sequence[WeightedRow], device: torch.device
) -> tuple[list[LabelledRow], Tensor, Tensor]:
    """Return the rows, the edit of each row, and the weight of each label."""
    weights = [one.weight for one in batch for _ in one.row.labels]
    edits = torch.tensor([one.edit for one in batch], device=device)
    return [one.row for one in batch], edits, torch.tensor(weights, dtype=torch.float64)
