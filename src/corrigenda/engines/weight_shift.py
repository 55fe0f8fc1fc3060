"""Shifts of weights through which gradients flow, for training networks that make such shifts.

The weights themselves are never written. A shift is added to the output of its weight, so the model
answers as if the weight had been shifted, up to rounding, and the gradient with respect to the
shift is the gradient with respect to the shifted weight. The backward pass through the network that
made the shift is a second one and needs nothing of the model.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, pad

from corrigenda.engines.gradients import LabelledRow, predict, scaled_gradients
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.decoding import answer
from corrigenda.lm.hooks import Term
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.lm.spans import encode
from corrigenda.patch import Dense

Name = TypeVar("Name")


class FactorShifts(NamedTuple):
    """Shifts of one weight, left @ right.T for each edit; narrower ones are padded with zeros."""

    left: Float[Tensor, "edits d_out r"]
    right: Float[Tensor, "edits d_in r"]

    @classmethod
    def stack(cls, shifts: Sequence[LowRank]) -> FactorShifts:
        """Stack the shifts of several edits; gradients flow."""
        rank = max(one.rank for one in shifts)
        sides = ([one.left for one in shifts], [one.right for one in shifts])
        left, right = (
            torch.stack([pad(one, (0, rank - one.shape[1])) for one in side]) for side in sides
        )
        return cls(left, right)

    def norms(self) -> Float[Tensor, " edits"]:
        """Return the Frobenius norm of each shift, which is not formed."""
        squares = (self.left.mT @ self.left) * (self.right.mT @ self.right)
        return squares.sum(dim=(1, 2)).clamp_min(0).sqrt()


def shift_weights(
    lm: LanguageModel, shifts: Mapping[Site, Float[Tensor, "d_out d_in"]]
) -> AbstractContextManager[None]:
    """Run the model as if shifts were added to its weights, until left; gradients reach the shifts.

    Args:
        lm: The model, with whatever patches are active.
        shifts: What is added, in the dtype its products are taken in.
    """

    def term_of(shift: Tensor) -> Term:
        return lambda read, _: read.to(shift.dtype) @ shift.to(read.device).T

    return lm.add({site: term_of(shift) for site, shift in shifts.items()})


def shift_each(
    lm: LanguageModel, shifts: Mapping[Site, FactorShifts], edits: Int[Tensor, " batch"]
) -> AbstractContextManager[None]:
    """Do the same with a shift for each edit: a row of the pass sees that of its own.

    Args:
        lm: The model, with whatever patches are active.
        shifts: What is added, in the dtype its products are taken in.
        edits: Edit of each row.
    """

    def term_of(shift: FactorShifts) -> Term:
        def term(read: Tensor, _: Tensor) -> Tensor:
            rows = edits.to(shift.left.device)
            left, right = (side[rows].to(read.device) for side in shift)
            return (read.to(left.dtype) @ right) @ left.mT

        return term

    return lm.add({site: term_of(shift) for site, shift in shifts.items()})


def shift_dtype(lm: LanguageModel) -> torch.dtype:
    """Return the dtype in which shifts are multiplied: at least float32."""
    return torch.promote_types(lm.dtype, torch.float32)


def gradients(
    lm: LanguageModel, loss: Float[Tensor, ""], leaves: Mapping[Name, Tensor]
) -> dict[Name, Tensor]:
    """Return the gradient of a loss by leaf; zero where the loss does not depend on a leaf."""
    found = scaled_gradients(lm, loss, list(leaves.values()), unused=True)
    return dict(zip(leaves, found, strict=True))


def label_losses(
    lm: LanguageModel, rows: Sequence[LabelledRow], *, smoothing: float = 0.0
) -> Float[Tensor, " labels"]:
    """Return the cross-entropy of every label on the model as it is, row after row, in nats.

    Args:
        lm: The model.
        rows: The batch.
        smoothing: Share of a label that is spread evenly over the vocabulary.
    """
    logits, labels = predict(lm, rows)
    return cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def is_argmax(lm: LanguageModel, rows: Sequence[LabelledRow]) -> list[bool]:
    """Return for each row whether every label is the most likely token."""
    with torch.no_grad():
        logits, labels = predict(lm, rows)
    right = (logits.argmax(1) == labels).split([len(row.labels) for row in rows])
    return [bool(one.all()) for one in right]


def log_probabilities(
    lm: LanguageModel, rows: Sequence[LabelledRow]
) -> Float[Tensor, "labels vocab"]:
    """Return log-probabilities of the whole vocabulary at every position where a label is read."""
    return predict(lm, rows).logits.log_softmax(1)


def divergences(
    lm: LanguageModel, rows: Sequence[LabelledRow], before: Float[Tensor, "labels vocab"]
) -> Float[Tensor, " labels"]:
    """Return KL(before || now) of the prediction at every position where a label is read, in nats.

    Args:
        lm: The model.
        rows: The batch; its labels only name the positions.
        before: Result of `log_probabilities` for these rows.
    """
    now = log_probabilities(lm, rows)
    return kl_div(now, before.to(now), reduction="none", log_target=True).sum(1)


def draw_paraphrase(fact: Fact, chance: random.Random) -> Fact:
    """Return the fact with one of its paraphrases as prompt, or itself where it has none."""
    prompt = chance.choice(fact.paraphrases) if fact.paraphrases else fact.prompt
    return replace(fact, prompt=prompt, subject=None, subject_start=None)


def smaller_form(left: Float[Tensor, "d_out r"], right: Float[Tensor, "d_in r"]) -> LowRank | Dense:
    """Return `left @ right.T` as factors, or as a full matrix where that takes fewer numbers."""
    if left.numel() + right.numel() < left.shape[0] * right.shape[0]:
        return LowRank(left, right)
    return Dense(left @ right.T)


class OwnAnswers:
    """Cache of the model's own answers to prompts that an edit should leave alone."""

    def __init__(self, lm: LanguageModel) -> None:
        """Create an empty cache."""
        self._lm = lm
        self._texts: dict[str, str] = {}

    def texts(self, prompts: Sequence[str]) -> list[str]:
        """Return the model's own greedy answer to each prompt, its first sentence.

        Raises:
            PromptTooLong (CG105): a prompt exceeds the context.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        self._texts |= dict(zip(new, answer(self._lm, new), strict=True))
        return [self._texts[prompt] for prompt in prompts]

    def rows(self, prompts: Sequence[str]) -> list[LabelledRow]:
        """Return each prompt as a row whose labels are the model's own answer.

        Where the answer is empty, the label is the last token of the prompt.

        Raises:
            PromptTooLong (CG105): a prompt exceeds the context.
        """
        rows = []
        for index, (prompt, text) in enumerate(zip(prompts, self.texts(prompts), strict=True)):
            one = encode(self._lm, prompt, target=text)
            if one.labels:
                rows.append(
                    LabelledRow(tuple(one.ids[:-1]), tuple(one.reads), one.target_ids, index)
                )
            else:
                rows.append(LabelledRow(tuple(one.ids), (one.prompt_last,), (one.ids[-1],), index))
        return rows
