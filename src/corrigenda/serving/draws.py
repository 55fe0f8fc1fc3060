"""The choice of the next token by temperature and nucleus, and its log-probabilities."""

from __future__ import annotations

import random
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class TokenChances(NamedTuple):
    """Natural log-probabilities at one place of an answer, before temperature.

    Attributes:
        chosen: Of the token that was chosen.
        top: Likeliest tokens with theirs, best first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


def draw(
    logits: Float[Tensor, " vocab"], *, temperature: float, top_p: float, generator: random.Random
) -> int:
    """Return a token: the likeliest at temperature 0, else one drawn among the likeliest.

    The nucleus is the smallest set of likeliest tokens whose probability reaches `top_p`.

    Args:
        logits: Of one row.
        temperature: 0 or more.
        top_p: In (0, 1].
        generator: What is drawn from.

    Reference: nucleus sampling, Holtzman et al. 2020, section 3.1.
    """
    if temperature == 0:
        return int(logits.argmax())
    probabilities = ((logits.double() - logits.max()) / temperature).softmax(0)
    if top_p == 1:
        return _draw_place(probabilities, generator)
    ordered = probabilities.sort(descending=True)
    before = ordered.values.cumsum(0) - ordered.values
    kept = max(1, int((before < top_p).sum()))
    return int(ordered.indices[_draw_place(ordered.values[:kept], generator)])


def _draw_place(weights: Float[Tensor, " n"], generator: random.Random) -> int:
    total = weights.cumsum(0)
    drawn = generator.random() * float(total[-1])
    return min(int((total <= drawn).sum()), len(weights) - 1)


def token_chances(logits: Float[Tensor, " vocab"], chosen: int, num_top: int) -> TokenChances:
    """Return the log-probabilities of a chosen token and of the likeliest ones."""
    log_probs = logits.log_softmax(0)
    best = log_probs.topk(min(num_top, len(log_probs)))
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenChances(float(log_probs[chosen]), top)
