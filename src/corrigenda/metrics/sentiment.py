"""Edits of sentiment (ConvSent): the wanted attitude, on the same topic as before.

Rows score whole replies, token by token: `sentiment/wanted` those of the target sentiment,
`sentiment/opposite` the others, each given a question about the topic. Row k - 1 of the logits
predicts token k, and only tokens of the reply count. How far replies on other topics move is
`locality.mean_divergence`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from corrigenda.cases import Protocol
from corrigenda.metrics.estimate import (
    BOOTSTRAP,
    AnswerValue,
    Bootstrap,
    Estimate,
    mean,
    over_cases,
)
from corrigenda.metrics.metric import Metric, define
from corrigenda.metrics.selection import NOT_COMPARED, required_log_probs, select
from corrigenda.metrics.success import metric_name
from corrigenda.rows import Row

WANTED, OPPOSITE = "sentiment/wanted", "sentiment/opposite"
ONE_SIDED = "no reply of the other sentiment"
_NAMES = {"success": "sentiment_success", "sentiment": "sentiment", "topic": "sentiment_topic"}


class SentimentShift(NamedTuple):
    """Parts of the success of one edit.

    Attributes:
        sentiment: z_sent = sigmoid(L+ - L-) after the edit.
        topic: z_topic = min(1, exp(L+ after - L+ before)): have wanted replies stayed likely?
    """

    sentiment: float
    topic: float

    @property
    def success(self) -> float:
        """Their product."""
        return self.sentiment * self.topic


def sentiment_shift(wanted: float, opposite: float, wanted_before: float) -> SentimentShift:
    """Return the parts of success from mean log-likelihoods per token of sets of replies.

    Args:
        wanted: L+ of the edited model.
        opposite: L- of the edited model.
        wanted_before: L+ of the unedited model.

    Example:
        >>> round(sentiment_shift(-2, -3, -1.5).success, 6)
        0.443409
    """
    odds = wanted - opposite
    sigmoid = 1 / (1 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1 + math.exp(odds))
    return SentimentShift(sigmoid, math.exp(min(0.0, wanted - wanted_before)))


def sentiment_success(
    rows: Sequence[Row],
    *,
    part: str = "success",
    protocol: Protocol = Protocol.RANK,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """z_sent z_topic, mean over cases.

    Args:
        rows: Of one run.
        part: "success", or "sentiment" or "topic" alone.
        protocol: How the replies were scored.
        bootstrap: How to find the interval.
    """
    wanted, skipped = select(rows, WANTED, protocol=protocol)
    opposite, more = select(rows, OPPOSITE, protocol=protocol)
    skipped += more
    likely: dict[str, tuple[list[float], list[float]]] = {}
    for row in wanted:
        if not row.log_probs_before:
            skipped[NOT_COMPARED] += 1
            continue
        after, before = likely.setdefault(row.case, ([], []))
        after += required_log_probs(row)
        before += row.log_probs_before
    unlikely: dict[str, list[float]] = {}
    for row in opposite:
        unlikely.setdefault(row.case, []).extend(required_log_probs(row))
    skipped[ONE_SIDED] += len(set(likely) ^ set(unlikely))
    items: list[AnswerValue] = []
    for case in sorted(set(likely) & set(unlikely)):
        after, before = likely[case]
        shift = sentiment_shift(mean(after), mean(unlikely[case]), mean(before))
        items.append(AnswerValue(case, getattr(shift, part)))
    return over_cases(
        metric_name(_NAMES[part], protocol),
        items,
        skipped={reason: count for reason, count in skipped.items() if count},
        bootstrap=bootstrap,
        answers=len(wanted) + len(opposite),
    )


METRICS: tuple[Metric, ...] = tuple(
    define(
        f"{name}@rank",
        "wanted attitude, on the same topic",
        sentiment_success,
        reads=WANTED,
        options={"part": part},
    )
    for part, name in _NAMES.items()
)
