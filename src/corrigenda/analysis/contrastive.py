"""Contrastive Knowledge Assessment: are true statements likelier than false ones?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from corrigenda.errors import BadConfig
from corrigenda.lm.decoding import Score, score
from corrigenda.lm.model import LanguageModel


class Contrast(NamedTuple):
    """Fact with statements of wrong relations between the same subject and object.

    Attributes:
        prompt: Text up to the object.
        target: The object.
        negatives: Texts about the same subject up to the same object, in relations that do not
            hold ("The capital of France is not").
    """

    prompt: str
    target: str
    negatives: tuple[str, ...]


def score_contrasts(
    lm: LanguageModel,
    contrasts: Sequence[Contrast],
    *,
    smoothing: float = 1e-8,
    first_token: bool = False,
) -> list[float]:
    """Score how much likelier objects are in true statements than in false ones.

    CKA = (P(o | s, r) + b) / (mean over r' of P(o | s, r') + b), computed from log-probabilities.
    Below 1 (or a stricter threshold) the model holds the fact falsely.

    Args:
        lm: The model, with whatever patches are active.
        contrasts: What to score.
        smoothing: b, above 0; it bounds the score where the model knows nothing of the object.
        first_token: Take the probability of the object's first token only, as the authors' code
            does; otherwise that of the whole object.

    Raises:
        BadConfig (CG502): a contrast without negatives, or `smoothing` not above 0.
        PromptTooLong (CG105): a text exceeds the context.

    Reference: CaliNET (Dong et al. 2022), section 3, equation 1.
    """
    if smoothing <= 0 or any(not one.negatives for one in contrasts):
        raise BadConfig(
            "each fact needs wrong relations to compare with, and `smoothing` must be above 0.",
            where="contrastive assessment",
        )
    pairs = [(prompt, one.target) for one in contrasts for prompt in (one.prompt, *one.negatives)]
    found = iter(score(lm, pairs))
    floor = math.log(smoothing)
    scores = []
    for one in contrasts:
        true = _read_log_probability(next(found), first_token=first_token)
        others = [
            _read_log_probability(next(found), first_token=first_token) for _ in one.negatives
        ]
        mean = _log_sum(others) - math.log(len(others))
        scores.append(math.exp(_log_sum([true, floor]) - _log_sum([mean, floor])))
    return scores


def compute_false_rate(scores: Sequence[float], threshold: float = 1.0) -> float:
    """Return the share of facts whose score is below a threshold.

    Example:
        >>> compute_false_rate([0.5, 1.0, 3.0, 0.9])
        0.5
    """
    return sum(one < threshold for one in scores) / len(scores)


def _read_log_probability(rated: Score, *, first_token: bool) -> float:
    return rated.log_probs[0] if first_token else rated.total


def _log_sum(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(one - top) for one in logs))
