"""Score of an edit: a harmonic mean of what it should reach, minus a price for damage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div

from corrigenda.engines.ordinary_text import draw_rows
from corrigenda.knowledge.edit_trial import FactOutcome
from corrigenda.lm.kv_cache import pad_id
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.scoring import logits_in_parts, states_at
from corrigenda.lm.sites import Tokens
from corrigenda.statistics.corpus import Corpus, Source

WEIGHTS = {"efficacy": 1.0, "paraphrase": 1.0, "locality": 1.0, "same_subject": 0.5}
"""Weights of the harmonic mean. That other facts of the subject stay counts half: no method of
weights keeps most of them, and they would outweigh all else."""

PRICE = 1.0
"""Price of a nat of drift: mean divergence of next tokens on ordinary text."""

_ROWS, _LENGTH, _EVERY = 4, 48, 4


def score_outcomes(outcomes: Iterable[FactOutcome], drift: float = 0.0) -> float:
    """Return the score of edits, at most 1.

    The weighted harmonic mean of efficacy, paraphrases, kept neighbours and kept other facts of the
    subject; each share as (right + 1/2) / (asked + 1), so that none of a few answers is not yet
    never. Kinds without prompts are left out. Of edits asked in both forms the mean of the two,
    minus `PRICE` times the drift.

    Args:
        outcomes: Outcomes of the facts.
        drift: Drift on ordinary text, in nats.

    Example:
        >>> good = FactOutcome("a", False, True, (True,) * 9, (True,) * 9, ())
        >>> bad = FactOutcome("b", False, False, (False,) * 9, (True,) * 9, ())
        >>> round(score_outcomes([good]), 3), round(score_outcomes([bad]), 3)
        (0.876, 0.119)
    """
    known = list(outcomes)
    forms = [[one for one in known if one.chat is chat] for chat in (False, True)]
    scores = [_harmonic_mean(form) for form in forms if form]
    return sum(scores) / len(scores) - PRICE * drift


def _harmonic_mean(outcomes: Sequence[FactOutcome]) -> float:
    total = weights = 0.0
    for kind, weight in WEIGHTS.items():
        right = [one for outcome in outcomes for one in list_answers(outcome, kind)]
        if right:
            total += weight * (len(right) + 1) / (sum(right) + 0.5)
            weights += weight
    return weights / total


def list_answers(outcome: FactOutcome, kind: str) -> tuple[bool, ...]:
    """Return whether the prompts of a kind have the wanted answer, one by one."""
    found = getattr(outcome, kind)
    return (found,) if isinstance(found, bool) else found


class DriftMeter:
    """Measures how far the next tokens of ordinary text are from those of the unedited model."""

    def __init__(
        self, lm: LanguageModel, corpus: Corpus | Source | None = None, *, seed: int = 0
    ) -> None:
        """Keep the distributions of the unedited model at some places of a few texts.

        Args:
            lm: The model, without the edits.
            corpus: Text; see `engines.ordinary_text.draw_rows` for None.
            seed: Of the draw of texts.
        """
        self._rows = draw_rows(lm, corpus, count=_ROWS, length=_LENGTH, seed=seed)
        self._before = self._read(lm)

    def measure(self, lm: LanguageModel) -> float:
        """Return the mean of KL(before || now) over the places, in nats."""
        now = self._read(lm)
        return float(kl_div(now, self._before, reduction="none", log_target=True).sum(1).mean())

    @torch.no_grad()
    def _read(self, lm: LanguageModel) -> Float[Tensor, "places vocab"]:
        tokens = Tokens.pad(self._rows, pad_id(lm)).to(lm.device)
        reads = [range(len(row) - 1, 0, -_EVERY)[::-1] for row in self._rows]
        hidden = states_at(lm, tokens, reads)
        parts = [logits.log_softmax(1).cpu() for _, logits in logits_in_parts(lm, hidden)]
        return torch.cat(parts)
