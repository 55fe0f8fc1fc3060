"""Inputs of weights, and gradients of the loss at their outputs, at the tokens of an answer.

Shared by methods that edit along the gradient. One forward and one backward pass a batch: the graph
begins at the lowest of the sites, and no parameter takes part in it. Rows do not see each other, so
with summed losses neither batch nor padding changes a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from corrigenda.facts import Fact
from corrigenda.lm.hooks import TensorMap
from corrigenda.lm.kv_cache import pad_id, widen
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Site, Tokens, key, state, value
from corrigenda.lm.spans import encode_fact

Reduction = Literal["sum", "mean"]

# Gradients of a float16 model may fall below its smallest number.
_LOSS_SCALE = {torch.float16: 1024.0}


def loss_scale(lm: LanguageModel) -> float:
    """Return the factor by which a loss is multiplied so that no gradient of it becomes 0."""
    return _LOSS_SCALE.get(lm.dtype, 1.0)


def scaled_gradients(
    lm: LanguageModel, loss: Float[Tensor, ""], leaves: Sequence[Tensor], *, unused: bool = False
) -> list[Tensor]:
    """Return the gradients of a loss, at least float32; of a multiple of it for float16 models.

    Args:
        lm: The model, for its dtype.
        loss: What is differentiated.
        leaves: With respect to what.
        unused: Whether the loss may not depend on some of them; their gradients are zeros.
    """
    scale = loss_scale(lm)
    found = torch.autograd.grad(
        loss * scale, list(leaves), allow_unused=unused, materialize_grads=unused
    )
    return [one.to(torch.promote_types(one.dtype, torch.float32)) / scale for one in found]


def backward_scaled(lm: LanguageModel, loss: Float[Tensor, ""], leaves: Sequence[Tensor]) -> None:
    """Put the gradients of a loss into `grad` of the leaves, as `scaled_gradients` returns them."""
    scale = loss_scale(lm)
    (loss * scale).backward()
    for leaf in leaves:
        if scale != 1.0 and leaf.grad is not None:
            leaf.grad /= scale


class LabelledRow(NamedTuple):
    """A row of tokens with the labels that some of its positions should predict.

    Attributes:
        ids: Token ids, without the last label.
        reads: Positions whose next-token distribution should give the labels.
        labels: Wanted token after each of `reads`.
        fact: Which fact the row belongs to.
    """

    ids: tuple[int, ...]
    reads: tuple[int, ...]
    labels: tuple[int, ...]
    fact: int = 0


class Samples(NamedTuple):
    """Inputs and output gradients of one weight, one row a token; float64 on the CPU.

    Attributes:
        keys: Inputs of the weight.
        gradients: Gradients of the loss with respect to its outputs.
    """

    keys: Float[Tensor, "samples d_in"]
    gradients: Float[Tensor, "samples d_out"]


class GradientSamples(NamedTuple):
    """Samples and losses of one batch.

    Attributes:
        samples: By site, samples row after row, tokens in order.
        losses: Mean cross-entropy of each row's labels, in nats.
    """

    samples: dict[Site, Samples]
    losses: list[float]


class Predictions(NamedTuple):
    """Logits where labels are read, with the labels; one entry a label, row after row.

    Attributes:
        logits: At least float32.
        labels: The tokens wanted.
    """

    logits: Float[Tensor, "labels vocab"]
    labels: Int[Tensor, " labels"]


def labelled_rows(lm: LanguageModel, facts: Sequence[Fact]) -> list[LabelledRow]:
    """Return each fact's prompt and target as one row whose labels are the target's tokens.

    Raises:
        PromptTooLong (CG105): prompt and target exceed the context.
    """
    rows = []
    for index, fact in enumerate(facts):
        one = encode_fact(lm, fact, drop_last_target=True)
        rows.append(LabelledRow(tuple(one.ids), tuple(one.reads), one.target_ids, index))
    return rows


def by_length(rows: Sequence[LabelledRow], size: int) -> list[list[LabelledRow]]:
    """Split rows into batches, shortest first; the same ones for any order of the rows."""
    ordered = sorted(rows, key=lambda row: (len(row.ids), row.ids, row.labels))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def gradient_samples(
    lm: LanguageModel,
    rows: Sequence[LabelledRow],
    sites: Sequence[Site],
    *,
    reduction: Reduction = "sum",
    every_token: bool = False,
) -> GradientSamples:
    """Capture inputs and output gradients in one forward and one backward pass.

    The loss is the cross-entropy of the labels. With all tokens, `gradients.T @ keys` is the
    gradient of the loss with respect to the weight.

    Args:
        lm: The model, with the patches that are active.
        rows: The batch, at least one row.
        sites: Weights to look at.
        reduction: Sum the losses of all labels, or take their mean over the batch.
        every_token: Samples at all tokens of the rows, prompts included, and not only at `reads`.

    Reference: MEND (Mitchell et al. 2022), section 3; the samples of MALMEN (Tan et al. 2024) and
        UltraEdit (Gu et al. 2025) are those at the answer's tokens.
    """
    tokens = Tokens.pad([row.ids for row in rows], pad_id(lm)).to(lm.device)
    inputs: dict[Site, Tensor] = {}
    outputs: dict[Site, Tensor] = {}
    with torch.enable_grad():
        hidden = _run(lm, tokens, sites, inputs, outputs)
        losses = _losses(lm, hidden, rows)
        loss = losses.sum() if reduction == "sum" else losses.mean()
        gradients = scaled_gradients(lm, loss, [outputs[site] for site in sites])
    if every_token:
        at = tokens.mask.bool()
    else:
        at = torch.zeros_like(tokens.mask, dtype=torch.bool)
        at[_label_positions(rows, lm.device)] = True
    samples = {
        site: Samples(inputs[site][at].cpu().double(), gradient[at].cpu().double())
        for site, gradient in zip(sites, gradients, strict=True)
    }
    return GradientSamples(samples, _average_by_row(losses, rows))


@torch.no_grad()
def mean_losses(lm: LanguageModel, rows: Sequence[LabelledRow]) -> list[float]:
    """Return the mean cross-entropy of each row's labels, in nats."""
    tokens = Tokens.pad([row.ids for row in rows], pad_id(lm)).to(lm.device)
    return _average_by_row(_losses(lm, _run(lm, tokens, (), {}, {}), rows), rows)


def predict(lm: LanguageModel, rows: Sequence[LabelledRow]) -> Predictions:
    """Run one batch and return the logits where labels are read.

    Gradients flow to tensors inside the model or in active swaps that require them.
    """
    tokens = Tokens.pad([row.ids for row in rows], pad_id(lm)).to(lm.device)
    return _predictions(lm, _run(lm, tokens, (), {}, {}), rows)


def _run(
    lm: LanguageModel,
    tokens: Tokens,
    sites: Sequence[Site],
    inputs: dict[Site, Tensor],
    outputs: dict[Site, Tensor],
) -> Float[Tensor, "batch pos d_model"]:
    """Return states after the last block; put the sites' inputs and outputs into the mappings."""

    def remember(site: Site) -> TensorMap:
        def see(tensor: Tensor) -> Tensor:
            inputs[site] = tensor.detach()
            return tensor

        return see

    def follow(site: Site) -> TensorMap:
        def enter(tensor: Tensor) -> Tensor:
            # A copy, since of a fused weight's output only a view is seen here.
            one = tensor.clone()
            outputs[site] = one if one.requires_grad else one.requires_grad_()
            return outputs[site]

        return enter

    transforms: dict[Point, TensorMap] = {}
    for site in sites:
        transforms |= {key(site): remember(site), value(site): follow(site)}
    last = state(lm.num_layers - 1)
    with lm.swap(transforms):
        return lm.run_until(tokens, [last])[last]


def _predictions(
    lm: LanguageModel, hidden: Float[Tensor, "batch pos d_model"], rows: Sequence[LabelledRow]
) -> Predictions:
    labels = torch.tensor([token for row in rows for token in row.labels], device=hidden.device)
    logits = widen(lm.head(hidden[_label_positions(rows, hidden.device)]))
    return Predictions(logits, labels.to(logits.device))


def _losses(
    lm: LanguageModel, hidden: Float[Tensor, "batch pos d_model"], rows: Sequence[LabelledRow]
) -> Float[Tensor, " labels"]:
    logits, labels = _predictions(lm, hidden, rows)
    return cross_entropy(logits, labels, reduction="none")


def _average_by_row(losses: Float[Tensor, " labels"], rows: Sequence[LabelledRow]) -> list[float]:
    parts = losses.detach().split([len(row.labels) for row in rows])
    return [float(part.mean()) for part in parts]


def _label_positions(rows: Sequence[LabelledRow], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return row and column of every position read."""
    pairs = [(i, position) for i, row in enumerate(rows) for position in row.reads]
    places = torch.tensor(pairs, device=device).T
    return places[0], places[1]
