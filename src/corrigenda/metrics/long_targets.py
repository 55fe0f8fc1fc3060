"""Scores of WISE's data: perplexity of a long target, and of unseen text about the same thing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from corrigenda.cases import Protocol
from corrigenda.metrics.estimate import BOOTSTRAP, AnswerValue, Bootstrap, Estimate, over_cases
from corrigenda.metrics.metric import LOWER, Metric, define
from corrigenda.metrics.selection import probability, required_log_probs, select
from corrigenda.rows import Row

THRESHOLD = 0.8
"""Probability above which a token of unseen text counts."""


def target_perplexity(
    rows: Sequence[Row], role: str = "reliability", *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Mean over cases of exp(mean loss of a target's tokens), the right ones fed; 1 is least.

    Example:
        >>> row = Row(case="1", role="reliability", protocol=Protocol.TEACHER_FORCED,
        ...           log_probs=[math.log(0.5), math.log(0.25), math.log(0.5)])
        >>> round(target_perplexity([row]).value, 2)
        2.52
    """
    found, skipped = select(rows, role, protocol=Protocol.TEACHER_FORCED)
    items = [AnswerValue(row.case, 1 / probability(required_log_probs(row))) for row in found]
    name = "target_perplexity@teacher_forced"
    return over_cases(name, items, skipped=skipped, bootstrap=bootstrap, share=False)


def unseen_share(
    rows: Sequence[Row], role: str = "unseen_text", *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Share of the tokens of a text with probability above .8 given those before; its first not.

    Example:
        >>> row = Row(case="1", role="unseen_text", protocol=Protocol.TEACHER_FORCED,
        ...           log_probs=[math.log(p) for p in (0.9, 0.85, 0.3, 0.81)])
        >>> unseen_share([row]).value
        0.75
    """
    found, skipped = select(rows, role, protocol=Protocol.TEACHER_FORCED)
    items = [
        AnswerValue(row.case, sum(one > math.log(THRESHOLD) for one in own) / len(own))
        for row in found
        for own in [required_log_probs(row)]
    ]
    name = "unseen_share@teacher_forced"
    return over_cases(name, items, skipped=skipped, bootstrap=bootstrap)


METRICS: tuple[Metric, ...] = (
    define(
        "target_perplexity@teacher_forced",
        "perplexity of the target",
        target_perplexity,
        reads="reliability",
        better=LOWER,
        span=(0.0, None),
        scale=1.0,
    ),
    define(
        "unseen_share@teacher_forced",
        "likely tokens of other text about the same",
        unseen_share,
        reads="unseen_text",
    ),
)
