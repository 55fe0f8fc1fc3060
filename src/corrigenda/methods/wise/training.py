"""Training of a side memory on facts: the answer's loss, and margins between scores.

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


class Settings(NamedTuple):
    """Settings of the training, in the letters of the paper.

    Attributes:
        steps: Of gradient descent, at most.
        learning_rate: eta.
        irrelevant: alpha, above which an irrelevant text costs.
        relevant: beta, below which an edit costs.
        apart: gamma, by which an edit should score above its irrelevant texts.
        bound: Largest change of an entry.
    """

    steps: int
    learning_rate: float
    irrelevant: float
    relevant: float
    apart: float
    bound: float


class Inputs(NamedTuple):
    """What the side memory sees of some rows.

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
        """Score of each row: the mean over its own tokens."""
        return query_scores(token_scores(self.keys, delta, self.outputs, act), self.inside)


class Lesson(NamedTuple):
    """Facts that are trained together.

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

    inputs: Inputs
    tail: Tail
    reads: Int[Tensor, "batch k"]
    labels: Int[Tensor, " labels"]
    valid: Bool[Tensor, "batch k"]
    owners: Int[Tensor, " batch"]
    irrelevant: Inputs
    irrelevant_owners: Int[Tensor, " texts"]
    replayed: tuple[Inputs | None, Inputs | None] = (None, None)


@dataclass
class Trained:
    """What a training made.

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
def inputs_of(
    lm: LanguageModel, site: Site, rows: Sequence[Sequence[int]], prompt_lasts: Sequence[int]
) -> Inputs:
    """Run the lower part of the model and keep what enters and leaves the projection."""
    tokens = Tokens.pad(rows, pad_id(lm)).to(lm.device)
    seen = lm.tap(tokens, [key(site), value(site)])
    keys, outputs = seen[key(site)], seen[value(site)]
    dtype = torch.promote_types(keys.dtype, torch.float32)
    last = torch.tensor(prompt_lasts, device=keys.device)
    inside = torch.arange(keys.shape[1], device=keys.device) <= last[:, None]
    return Inputs(keys.to(dtype), outputs, inside)


@torch.no_grad()
def lesson(
    lm: LanguageModel,
    site: Site,
    rows: Sequence[Encoded],
    owners: Sequence[int],
    irrelevant: Sequence[Sequence[int]],
    irrelevant_owners: Sequence[int],
    replayed: tuple[Inputs | None, Inputs | None] = (None, None),
) -> Lesson:
    """Prepare facts for training.

    Args:
        lm: The model as it is below the side memory; it must not change meanwhile.
        site: The projection that has a side memory.
        rows: Prompts in context with their targets, without the last target token.
        owners: Fact of each row.
        irrelevant: Token rows that should stay with the main memory.
        irrelevant_owners: Fact of each.
        replayed: See `Lesson`.
    """
    return Lesson(
        *_prepared(lm, site, rows),
        torch.tensor(owners, device=lm.device),
        inputs_of(lm, site, irrelevant, [len(row) - 1 for row in irrelevant]),
        torch.tensor(irrelevant_owners, device=lm.device),
        replayed,
    )


class _Prepared(NamedTuple):
    """Rows run up to the side memory, and where their targets are read; see `Lesson`."""

    inputs: Inputs
    tail: Tail
    reads: Int[Tensor, "batch k"]
    labels: Int[Tensor, " labels"]
    valid: Bool[Tensor, "batch k"]


@torch.no_grad()
def _prepared(lm: LanguageModel, site: Site, rows: Sequence[Encoded]) -> _Prepared:
    device = lm.device
    ids = [row.ids for row in rows]
    tokens = Tokens.pad(ids, pad_id(lm)).to(device)
    starts = torch.zeros(len(rows), dtype=torch.long)
    width = max(len(row.labels) for row in rows)
    reads = torch.tensor(
        [[*row.reads, *[row.reads[-1]] * (width - len(row.reads))] for row in rows], device=device
    )
    counts = torch.tensor([len(row.labels) for row in rows], device=device)
    return _Prepared(
        inputs_of(lm, site, ids, [row.prompt_last for row in rows]),
        Tail.build(lm, tokens, site.layer, starts, role="value"),
        reads,
        torch.tensor([token for row in rows for token in row.target_ids], device=device),
        torch.arange(width, device=device) < counts[:, None],
    )


def train(
    lm: LanguageModel,
    one: Lesson,
    start: Float[Tensor, "d_out d_in"],
    mask: Bool[Tensor, "d_out d_in"],
    settings: Settings,
    *,
    act: Activation | None,
    where: str,
) -> Trained:
    """Write facts into the sub-space `mask` of a side memory, on top of what is there.

    Plain gradient descent on  nll + margins, see `margin_loss`; only entries of the mask change,
    and each stays within the bound. It ends early when the loss is small and no longer moves.

    Args:
        lm: The model; never changed.
        one: The facts.
        start: D as earlier edits of the sub-space left it.
        mask: The sub-space.
        settings: Of the training.
        act: Activation function of the scores; None for the plain difference.
        where: How messages refer to the facts.

    Raises:
        NonFinite (CG201): the loss is not a number.

    Reference: Wang et al. 2024, equations 3, 5 and 6; algorithm 1.
    """
    delta = start.to(one.inputs.keys).clone().requires_grad_()
    mask = mask.to(delta.device)
    trained = Trained(delta)
    with torch.enable_grad():
        for _ in range(settings.steps):
            response = linear(one.inputs.keys, delta)
            answer = answer_losses(lm, one, response).mean()
            loss = answer + margin_loss(one, delta, response, settings, act)
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
                delta -= settings.learning_rate * gradient * mask
                delta.clamp_(-settings.bound, settings.bound)
    return _finished(lm, one, trained, act)


def answer_losses(
    lm: LanguageModel, one: Lesson, response: Float[Tensor, "batch pos d_out"]
) -> Float[Tensor, " batch"]:
    """Mean of -log p over the target's tokens of each row, the side memory in place."""
    return _nll(lm, one.tail.run(response, one.reads), one.labels, one.valid)


def _nll(
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
    one: Lesson,
    delta: Float[Tensor, "d_out d_in"],
    response: Float[Tensor, "batch pos d_out"],
    settings: Settings,
    act: Activation | None,
) -> Float[Tensor, ""]:
    """Keep irrelevant texts below alpha, edits above beta, and both gamma apart.

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
        positive_mean(others - settings.irrelevant)
        + positive_mean(settings.relevant - edits)
        + positive_mean(settings.apart - gaps)
    )
    elsewhere, here = one.replayed
    if elsewhere is not None:
        loss = loss + positive_mean(elsewhere.scores(delta, act) - settings.irrelevant)
    if here is not None:
        loss = loss + positive_mean(settings.relevant - here.scores(delta, act))
    return loss


def positive_mean(terms: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Mean of the terms above zero; zero, with a gradient, where there is none."""
    above = relu(terms)
    return above.sum() / (terms > 0).sum().clamp_min(1)


class Reply(NamedTuple):
    """How a fact is answered.

    Attributes:
        memory: Number of the side memory its prompt is routed to; -1 is the main memory.
        loss: Of the target there, mean of -log p over its tokens.
    """

    memory: int
    loss: float


@torch.no_grad()
def replies_of(
    lm: LanguageModel,
    site: Site,
    rows: Sequence[Encoded],
    deltas: Sequence[Float[Tensor, "d_out d_in"]],
    thresholds: Sequence[float],
    act: Activation | None,
) -> list[Reply]:
    """Route facts, without context, and rate their targets.

    Args:
        lm: The model, the side memories not active.
        site: The projection that has side memories.
        rows: Prompts with their targets, without the last target token.
        deltas: D of each side memory.
        thresholds: Of each.
        act: Activation function of the scores.
    """
    inputs, tail, reads, labels, valid = _prepared(lm, site, rows)
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
    losses = _nll(lm, tail.run(response, reads), labels, valid)
    return [Reply(*pair) for pair in zip(chosen.tolist(), losses.tolist(), strict=True)]


@torch.no_grad()
def _finished(lm: LanguageModel, one: Lesson, trained: Trained, act: Activation | None) -> Trained:
    """Score every fact once more, with the memory as it was left."""
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
