"""The model with shifts of its weights that gradients flow to: what learned editors train on.

The weights themselves are never touched. A shift acts where its weight acts, so the model answers
as if the shift had been added, rounding of the sum aside, and the gradient with respect to the
shift is that with respect to the shifted weight. It is taken first; going on from it through the
network that made the shift is a second backward pass, which needs nothing of the model's.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from corrigenda.engines.gradients import LabelledRow, predict
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.decoding import answer
from corrigenda.lm.hooks import Term
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.lm.spans import encode
from corrigenda.patch import Dense

# Gradients of a float16 model may fall below its smallest number.
_LOSS_SCALE = {torch.float16: 1024.0}

Name = TypeVar("Name")

Shifts = Mapping[Site, Float[Tensor, "d_out d_in"] | Float[Tensor, "edits d_out d_in"]]
"""By site, one shift for all rows of a pass, or one for each edit."""


def shift_weights(
    lm: LanguageModel, shifts: Shifts, edits: Int[Tensor, " batch"] | None = None
) -> AbstractContextManager[None]:
    """Run the model as if shifts were added to its weights, until left; gradients reach them.

    Args:
        lm: The model, with whatever patches are active.
        shifts: What is added, in the dtype its products are taken in.
        edits: Which edit each row of the pass sees, where there is a shift for each edit; else all
            rows see the one shift there is.
    """

    def term_of(shift: Tensor) -> Term:
        def term(read: Tensor, _: Tensor) -> Tensor:
            own = shift if edits is None else shift[edits.to(shift.device)]
            return read.to(shift.dtype) @ own.mT

        return term

    return lm.add({site: term_of(shift) for site, shift in shifts.items()})


def shift_dtype(lm: LanguageModel) -> torch.dtype:
    """The dtype that shifts are multiplied in: at least float32."""
    return torch.promote_types(lm.dtype, torch.float32)


def gradients(
    lm: LanguageModel, loss: Float[Tensor, ""], leaves: Mapping[Name, Tensor]
) -> dict[Name, Tensor]:
    """Gradient of a loss with respect to each leaf; zero where the loss does not depend on it."""
    scale = _LOSS_SCALE.get(lm.dtype, 1.0)
    found = torch.autograd.grad(
        loss * scale, list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return {name: one / scale for name, one in zip(leaves, found, strict=True)}


def label_losses(
    lm: LanguageModel, rows: Sequence[LabelledRow], *, smoothing: float = 0.0
) -> Float[Tensor, " labels"]:
    """Cross-entropy of every label on the model as it is, row after row, in nats.

    Args:
        lm: The model.
        rows: The batch.
        smoothing: Share of a label that is spread evenly over the vocabulary.
    """
    logits, labels = predict(lm, rows)
    return cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def is_argmax(lm: LanguageModel, rows: Sequence[LabelledRow]) -> list[bool]:
    """Of each row, whether every label is the most likely token where it is read."""
    with torch.no_grad():
        logits, labels = predict(lm, rows)
    right = (logits.argmax(1) == labels).split([len(row.labels) for row in rows])
    return [bool(one.all()) for one in right]


def log_probabilities(
    lm: LanguageModel, rows: Sequence[LabelledRow]
) -> Float[Tensor, "labels vocab"]:
    """Log-probabilities of the whole vocabulary wherever a label is read."""
    return predict(lm, rows).logits.log_softmax(1)


def divergences(
    lm: LanguageModel, rows: Sequence[LabelledRow], before: Float[Tensor, "labels vocab"]
) -> Float[Tensor, " labels"]:
    """KL(before || now) of what is predicted wherever a label is read, in nats.

    Args:
        lm: The model.
        rows: The batch; what its labels are does not matter.
        before: What `log_probabilities` gave for these rows.
    """
    now = log_probabilities(lm, rows)
    return kl_div(now, before.to(now), reduction="none", log_target=True).sum(1)


def paraphrase_of(fact: Fact, chance: random.Random) -> Fact:
    """The fact asked in other words: one of its paraphrases, or itself where it has none."""
    prompt = chance.choice(fact.paraphrases) if fact.paraphrases else fact.prompt
    return replace(fact, prompt=prompt, subject=None, subject_start=None)


def smaller_form(left: Float[Tensor, "d_out r"], right: Float[Tensor, "d_in r"]) -> LowRank | Dense:
    """`left @ right.T` as factors, or as a full matrix where that takes fewer numbers."""
    if left.numel() + right.numel() < left.shape[0] * right.shape[0]:
        return LowRank(left, right)
    return Dense(left @ right.T)


class OwnAnswers:
    """Prompts that an edit should leave alone, with what the model itself answers; asked once."""

    def __init__(self, lm: LanguageModel) -> None:
        """Start with no prompts."""
        self._lm = lm
        self._texts: dict[str, str] = {}

    def texts(self, prompts: Sequence[str]) -> list[str]:
        """The model's own greedy answer to each prompt, its first sentence.

        Raises:
            PromptTooLong (CG105): a prompt exceeds the context.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        self._texts |= dict(zip(new, answer(self._lm, new), strict=True))
        return [self._texts[prompt] for prompt in prompts]

    def rows(self, prompts: Sequence[str]) -> list[LabelledRow]:
        """Each prompt as a row whose labels are the model's own answer.

        Where the model says nothing, the last token of the prompt is read.

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
