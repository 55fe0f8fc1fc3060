"""Training of WISE's side memory on facts: the answer's loss, and margins between scores.

Everything up to the main memory is the same in every step, so inputs of the projection are computed
once, for the prompts in their contexts and for the irrelevant texts. A step adds the side memory's
response at every position and runs the blocks above.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, relu

from corrigenda.errors import NonFinite
from corrigenda.lm.kv_cache import pad_id, widen
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens, key, value
from corrigenda.lm.spans import Encoded
from corrigenda.lm.tail import Tail
from corrigenda.methods.wise.side_memory import (
    choose,
    query_scores,
    response_scores,
    token_scores,
)

Stop = Literal["loss", "steps"]
Activation = Callable[[Tensor], Tensor]

_SETTLED_LOSS = 0.02
_SETTLED_CHANGE = 1e-4


class SideTraining(NamedTuple):
    """Settings of the training of a side memory; see the options of `Wise`.

    Attributes:
        steps: Of gradient descent, at most.
        learning_rate: eta.
        irrelevant_margin: alpha, above which an irrelevant text costs.
        relevant_margin: beta, below which an edit costs.
        apart_margin: gamma, by which an edit should score above its irrelevant texts.
        bound: Largest change of an entry.
    """

    steps: int
    learning_rate: float
    irrelevant_margin: float
    relevant_margin: float
    apart_margin: float
    bound: float


class SideInputs(NamedTuple):
    """Inputs and outputs of the projection for some rows.

    Attributes:
        keys: Inputs a of the projection, at least float32.
        outputs: Outputs of the main memory there.
        inside: The tokens that count for the score: those of the prompt.
    """

    keys: Float[Tensor, "batch pos d_in"]
    outputs: Float[Tensor, "batch pos d_out"]
    inside: Bool[Tensor, "batch pos"]

    def scores(
        self, delta: Float[Tensor, "d_out d_in"], act: Activation | None
    ) -> Float[Tensor, " batch"]:
        """Return the score of each row: the mean over its own tokens."""
        return query_scores(token_scores(self.keys, delta, self.outputs, act), self.inside)


class EditBatch(NamedTuple):
    """Facts that are trained together, prepared for the blocks above the projection.

    Attributes:
        inputs: Rows of prompts in their contexts with targets.
        tail: The blocks above.
        reads: Positions whose distribution gives the labels; the last one repeated where a row has
            fewer.
        labels: Tokens of the targets, row after row.
        valid: Which of `reads` count.
        owners: Fact of each row.
        irrelevant: Texts that should stay with the main memory; some for each fact.
        irrelevant_owners: Fact of each.
        replayed: Prompts of earlier edits, in the memories they were written to and in this one.
    """

    inputs: SideInputs
    tail: Tail
    reads: Int[Tensor, "batch k"]
    labels: Int[Tensor, " labels"]
    valid: Bool[Tensor, "batch k"]
    owners: Int[Tensor, " batch"]
    irrelevant: SideInputs
    irrelevant_owners: Int[Tensor, " texts"]
    replayed: tuple[SideInputs | None, SideInputs | None] = (None, None)


@dataclass
class TrainedSide:
    """A trained side memory, with the course of its training.

    Attributes:
        delta: D, no gradients.
        scores: Score of each fact: mean over its rows.
        irrelevant: Largest score of its irrelevant texts.
        losses: Of the answer, by fact, with the side memory in place.
        totals: Whole loss before each step.
        stop: Why it ended.
    """

    delta: Float[Tensor, "d_out d_in"]
    scores: list[float] = field(default_factory=list)
    irrelevant: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    stop: Stop = "steps"


@torch.no_grad()
def read_inputs(
    lm: LanguageModel, site: Site, rows: Sequence[Sequence[int]], prompt_lasts: Sequence[int]
) -> SideInputs:
    """Run the model up to the projection; return the projection's inputs and outputs."""
    tokens = Tokens.pad(rows, pad_id(lm)).to(lm.device)
    seen = lm.tap(tokens, [key(site), value(site)])
    keys, outputs = seen[key(site)], seen[value(site)]
    dtype = torch.promote_types(keys.dtype, torch.float32)
    last = torch.tensor(prompt_lasts, device=keys.device)
    inside = torch.arange(keys.shape[1], device=keys.device) <= last[:, None]
    return SideInputs(keys.to(dtype), outputs, inside)


@torch.no_grad()
def prepare_batch(
    lm: LanguageModel,
    site: Site,
    rows: Sequence[Encoded],
    owners: Sequence[int],
    irrelevant: Sequence[Sequence[int]],
    irrelevant_owners: Sequence[int],
    replayed: tuple[SideInputs | None, SideInputs | None] = (None, None),
) -> EditBatch:
    """Prepare facts for training.

    Args:
        lm: The model as it is below the side memory; it must not change meanwhile.
        site: The projection that has a side memory.
        rows: Prompts in context with their targets, without the last target token.
        owners: Fact of each row.
        irrelevant: Token rows that should stay with the main memory.
        irrelevant_owners: Fact of each.
        replayed: See `EditBatch`.
    """
    return EditBatch(
        *_prepare(lm, site, rows),
        torch.tensor(owners, device=lm.device),
        read_inputs(lm, site, irrelevant, [len(row) - 1 for row in irrelevant]),
        torch.tensor(irrelevant_owners, device=lm.device),
        replayed,
    )


class _PreparedRows(NamedTuple):
    """Rows run up to the side memory, and where their targets are read; see `EditBatch`."""

    inputs: SideInputs
    tail: Tail
    reads: Int[Tensor, "batch k"]
    labels: Int[Tensor, " labels"]
    valid: Bool[Tensor, "batch k"]


@torch.no_grad()
def _prepare(lm: LanguageModel, site: Site, rows: Sequence[Encoded]) -> _PreparedRows:
    device = lm.device
    ids = [row.ids for row in rows]
    tokens = Tokens.pad(ids, pad_id(lm)).to(device)
    starts = torch.zeros(len(rows), dtype=torch.long)
    width = max(len(row.labels) for row in rows)
    reads = torch.tensor(
        [[*row.reads, *[row.reads[-1]] * (width - len(row.reads))] for row in rows], device=device
    )
    counts = torch.tensor([len(row.labels) for row in rows], device=device)
    return _PreparedRows(
        read_inputs(lm, site, ids, [row.prompt_last for row in rows]),
        Tail.build(lm, tokens, site.layer, starts, role="value"),
        reads,
        torch.tensor([token for row in rows for token in row.target_ids], device=device),
        torch.arange(width, device=device) < counts[:, None],
    )


def train(
    lm: LanguageModel,
    one: EditBatch,
    start: Float[Tensor, "d_out d_in"],
    mask: Bool[Tensor, "d_out d_in"],
    training: SideTraining,
    *,
    act: Activation | None,
    where: str,
) -> TrainedSide:
    """Write facts into the sub-space `mask` of a side memory, on top of what is there.

    Plain gradient descent on  nll + margins, see `margin_loss`; only entries of the mask change,
    and each stays within the bound. It ends early when the loss is small and no longer moves.

    Args:
        lm: The model; never changed.
        one: The facts.
        start: D after the earlier edits of the sub-space.
        mask: The sub-space.
        training: Settings of the training.
        act: Activation function of the scores; None for the plain difference.
        where: How messages refer to the facts.

    Raises:
        NonFinite (CG201): the loss is not a number.

    Reference: Wang et al. 2024, equations 3, 5 and 6; algorithm 1.
    """
    delta = start.to(one.inputs.keys, copy=True).requires_grad_()
    mask = mask.to(delta.device)
    trained = TrainedSide(delta)
    with torch.enable_grad():
        for _ in range(training.steps):
            response = linear(one.inputs.keys, delta)
            answer = answer_losses(lm, one, response).mean()
            loss = answer + margin_loss(one, delta, response, training, act)
            total = loss.item()
            if not math.isfinite(total):
                raise NonFinite(
                    f"the loss of the side memory is {total} at step {len(trained.totals) + 1}.",
                    where=where,
                    hint="Lower the learning rate, or load the model in float32.",
                )
            moved = abs(total - trained.totals[-1]) if trained.totals else math.inf
            trained.totals.append(total)
            if total <= _SETTLED_LOSS and moved <= _SETTLED_CHANGE:
                trained.stop = "loss"
                break
            (gradient,) = torch.autograd.grad(loss, [delta])
            with torch.no_grad():
                # In place: each of these matrices is as large as the weight.
                delta -= gradient.mul_(training.learning_rate).mul_(mask)
                delta.clamp_(-training.bound, training.bound)
    return _score_facts(lm, one, trained, act)


def answer_losses(
    lm: LanguageModel, one: EditBatch, response: Float[Tensor, "batch pos d_out"]
) -> Float[Tensor, " batch"]:
    """Return the mean of -log p over each row's target tokens, with the side memory in place."""
    return _target_losses(lm, one.tail.run(response, one.reads), one.labels, one.valid)


def _target_losses(
    lm: LanguageModel,
    hidden: Float[Tensor, "batch k d_model"],
    labels: Int[Tensor, " labels"],
    valid: Bool[Tensor, "batch k"],
) -> Float[Tensor, " batch"]:
    nll = cross_entropy(widen(lm.head(hidden[valid])), labels, reduction="none")
    counts = valid.sum(1)
    rows = torch.arange(len(counts), device=nll.device).repeat_interleave(counts)
    return nll.new_zeros(len(counts)).index_add(0, rows, nll / counts[rows])


def margin_loss(
    one: EditBatch,
    delta: Float[Tensor, "d_out d_in"],
    response: Float[Tensor, "batch pos d_out"],
    training: SideTraining,
    act: Activation | None,
) -> Float[Tensor, ""]:
    """Return the loss that keeps irrelevant texts below alpha, edits above beta, both gamma apart.

    max(0, D(x_irr) - alpha) + max(0, beta - D(x_e)) + max(0, gamma - (D(x_e) - D(x_irr))), each
    averaged over its positive terms; with replay also max(0, D(x_old) - alpha) for prompts written
    to other memories and max(0, beta - D(x_old)) for those written to this one.

    Reference: Wang et al. 2024, equation 3 and appendix B.3.
    """
    tokens = response_scores(response, one.inputs.outputs, act)
    edits = query_scores(tokens, one.inputs.inside)
    others = one.irrelevant.scores(delta, act)
    pairs = one.owners[:, None] == one.irrelevant_owners
    gaps = (edits[:, None] - others)[pairs]
    loss = (
        positive_mean(others - training.irrelevant_margin)
        + positive_mean(training.relevant_margin - edits)
        + positive_mean(training.apart_margin - gaps)
    )
    elsewhere, here = one.replayed
    if elsewhere is not None:
        loss = loss + positive_mean(elsewhere.scores(delta, act) - training.irrelevant_margin)
    if here is not None:
        loss = loss + positive_mean(training.relevant_margin - here.scores(delta, act))
    return loss


def positive_mean(terms: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Return the mean of the terms above zero; zero, with a gradient, where there are none."""
    above = relu(terms)
    return above.sum() / (terms > 0).sum().clamp_min(1)


class RoutedAnswer(NamedTuple):
    """Route and loss of one fact.

    Attributes:
        memory: Number of the side memory its prompt is routed to; -1 is the main memory.
        loss: Of the target there, mean of -log p over its tokens.
    """

    memory: int
    loss: float


@torch.no_grad()
def route_answers(
    lm: LanguageModel,
    site: Site,
    rows: Sequence[Encoded],
    deltas: Sequence[Float[Tensor, "d_out d_in"]],
    thresholds: Sequence[float],
    act: Activation | None,
) -> list[RoutedAnswer]:
    """Route facts, without context, and measure the losses of their targets.

    Args:
        lm: The model, the side memories not active.
        site: The projection that has side memories.
        rows: Prompts with their targets, without the last target token.
        deltas: D of each side memory.
        thresholds: Of each.
        act: Activation function of the scores.
    """
    inputs, tail, reads, labels, valid = _prepare(lm, site, rows)
    response = torch.zeros_like(inputs.outputs, dtype=inputs.keys.dtype)
    chosen = torch.full((len(rows),), -1, device=response.device)
    if deltas:
        responses = torch.stack([linear(inputs.keys, one.to(inputs.keys)) for one in deltas])
        scores = torch.stack(
            [
                query_scores(response_scores(one, inputs.outputs, act), inputs.inside)
                for one in responses
            ]
        )
        chosen = choose(scores, torch.tensor(thresholds, dtype=torch.float64))
        for row in (chosen >= 0).nonzero().flatten().tolist():
            response[row] = responses[chosen[row], row]
    losses = _target_losses(lm, tail.run(response, reads), labels, valid)
    return [RoutedAnswer(*pair) for pair in zip(chosen.tolist(), losses.tolist(), strict=True)]


@torch.no_grad()
def _score_facts(
    lm: LanguageModel, one: EditBatch, trained: TrainedSide, act: Activation | None
) -> TrainedSide:
    """Score every fact once more, with the trained memory."""
    delta = trained.delta.detach()
    scores = one.inputs.scores(delta, act)
    losses = answer_losses(lm, one, linear(one.inputs.keys, delta))
    others = one.irrelevant.scores(delta, act)
    for fact in range(int(one.owners.max()) + 1):
        own = one.owners == fact
        trained.scores.append(float(scores[own].mean()))
        trained.losses.append(float(losses[own].mean()))
        trained.irrelevant.append(float(others[one.irrelevant_owners == fact].max()))
    trained.delta = delta
    return trained
