"""Loss of the answers of facts, computed again and again while something in one block is trained.

Everything below that block is the same in every pass, so it is computed once: a pass runs the later
blocks only, and the head only where a label is read. What is trained enters by `lm.swap` or
`lm.add`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from corrigenda.engines.gradients import LabelledRow, predict
from corrigenda.errors import NonFinite
from corrigenda.lm.footprint import graph_tokens
from corrigenda.lm.kv_cache import batches, pad_id, widen
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Tokens
from corrigenda.lm.tail import Tail
from corrigenda.patch import HookPatch, ledger_of

# Tokens run together with gradients.
_STEP_TOKENS = {"cpu": 1024, "cuda": 16384}


class AnswerLosses(NamedTuple):
    """Losses and hits of labels, one entry a label, row after row.

    Attributes:
        losses: -log p of the label, in nats.
        hits: Whether the label is the most likely token.
        owners: The row it belongs to, among those that were run.
    """

    losses: Float[Tensor, " labels"]
    hits: Bool[Tensor, " labels"]
    owners: Int[Tensor, " labels"]

    @property
    def means(self) -> Float[Tensor, " rows"]:
        """Return the mean loss of each row."""
        counts = torch.bincount(self.owners)
        return self.losses.new_zeros(len(counts)).index_add(0, self.owners, self.losses) / counts

    @property
    def right(self) -> list[bool]:
        """Return for each row whether every label is the most likely token."""
        wrong = torch.bincount(self.owners, weights=(~self.hits).double())
        return (wrong == 0).tolist()


class AnswerPasses:
    """A batch of facts, run from the block on in which something is trained.

    While a swap is active, tensors of the pass begin at column `starts[row]` of each row.

    Attributes:
        rows: The facts in tokens.
        starts: First position of each row that runs.
        ends: Position of the last token of each prompt.
    """

    def __init__(
        self,
        lm: LanguageModel,
        rows: Sequence[LabelledRow],
        layer: int,
        *,
        from_prompt_end: bool,
        suspended: Sequence[object] = (),
    ) -> None:
        """Run the model once and keep what does not change.

        Where a patch is active that hooks into the model, whole rows run each time: such a patch
        may look at the whole prompt.

        Args:
            lm: The model, as it is now.
            rows: The facts in tokens, at least one.
            layer: Lowest block at which anything is put in.
            from_prompt_end: Whether it is put in only from the prompt's last token on.
            suspended: Active patches that do nothing meanwhile.
        """
        self._lm, self.rows = lm, list(rows)
        self.ends = torch.tensor([row.reads[0] for row in rows], device=lm.device)
        self.starts = torch.zeros_like(self.ends)
        self._tail: Tail | None = None
        idle = set(map(id, suspended))
        # Telling whether a patch has a method is slow, and the same for all of a class.
        working = {type(patch): patch for patch in ledger_of(lm) if id(patch) not in idle}
        if layer > 0 and not any(isinstance(patch, HookPatch) for patch in working.values()):
            self.starts = self.ends if from_prompt_end else self.starts
            tokens = Tokens.pad([row.ids for row in rows], pad_id(lm))
            self._tail = Tail.build(lm, tokens, layer - 1, self.starts, role="state")

    def scores(self, chosen: Sequence[int] | None = None) -> AnswerLosses:
        """Score the answers of some rows, by default all; gradients flow to what is put in."""
        indices = list(range(len(self.rows)) if chosen is None else chosen)
        rows = [self.rows[index] for index in indices]
        if self._tail is None:
            return _score_whole(self._lm, rows)
        counts = torch.tensor([len(row.labels) for row in rows], device=self.ends.device)
        steps = torch.arange(int(counts.max()), device=counts.device)
        real = steps < counts[:, None]
        at = self.ends[indices, None] + steps * real
        everything = indices == list(range(len(self.rows)))
        picked = None if everything else torch.tensor(indices, device=counts.device)
        nothing = torch.zeros(len(indices), self._lm.d_model, device=counts.device)
        hidden = self._tail.run(nothing, at, rows=picked)
        logits = widen(self._lm.head(hidden[real.to(hidden.device)]))
        labels = torch.tensor([label for row in rows for label in row.labels])
        return _compare(logits, labels.to(logits.device), rows)


def step_tokens(lm: LanguageModel) -> int:
    """Return how many tokens run together with gradients, at most."""
    return graph_tokens(lm, lm.num_layers, _STEP_TOKENS)


def group_by_length(lm: LanguageModel, rows: Sequence[LabelledRow]) -> list[list[int]]:
    """Return groups of rows, by index, that run together with gradients."""
    tokens = step_tokens(lm)
    return [list(group) for group in batches(lm, [len(row.ids) for row in rows], tokens)]


def require_finite(loss: float, where: str) -> None:
    """Refuse a loss that is infinite or NaN.

    Raises:
        NonFinite (CG201): it is.
    """
    if not math.isfinite(loss):
        raise NonFinite(
            f"the loss of an answer is {loss}.",
            where=where,
            hint="The model gives no finite probabilities here: earlier edits may have broken it, "
            "the learning rate is too high, or its number format overflows (try float32).",
        )


@torch.no_grad()
def score_answers(lm: LanguageModel, rows: Sequence[LabelledRow]) -> tuple[list[float], list[bool]]:
    """Return the mean loss of each fact's answer, and whether the model gives that answer."""
    losses, right = [0.0] * len(rows), [False] * len(rows)
    for group in batches(lm, [len(row.ids) for row in rows], None):
        found = _score_whole(lm, [rows[index] for index in group])
        for index, loss, hit in zip(group, found.means.tolist(), found.right, strict=True):
            losses[index], right[index] = loss, hit
    return losses, right


def _score_whole(lm: LanguageModel, rows: Sequence[LabelledRow]) -> AnswerLosses:
    ends = torch.tensor([row.reads[0] for row in rows], device=lm.device)
    with lm.prompt_ends.mark(ends):
        logits, labels = predict(lm, rows)
    return _compare(logits, labels, rows)


def _compare(logits: Tensor, labels: Tensor, rows: Sequence[LabelledRow]) -> AnswerLosses:
    counts = torch.tensor([len(row.labels) for row in rows], device=logits.device)
    owners = torch.arange(len(rows), device=logits.device).repeat_interleave(counts)
    losses = cross_entropy(logits, labels, reduction="none")
    return AnswerLosses(losses, logits.argmax(-1) == labels, owners)
