"""Scores of TAXI: does a changed category carry its properties along?

Means over questions, not over cases: a ratio of sums, with an interval over cases, since questions
of one edit depend on each other. The choice with the greatest sum of log-probabilities counts, as
in the paper, which favours short ones; `:mean` divides by tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from corrigenda.cases import Protocol
from corrigenda.metrics.estimate import (
    BOOTSTRAP,
    Bootstrap,
    Estimate,
    ratio_of_sums,
    statistic,
)
from corrigenda.metrics.metric import AS_BEFORE, HIGHER, Metric, define
from corrigenda.metrics.selection import required_log_probs, select
from corrigenda.metrics.success import NO_RIVAL
from corrigenda.rows import Row

CHANCE = "taxi_chance"


def category_score(
    rows: Sequence[Row],
    name: str,
    role: str,
    *,
    per_token: bool = False,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Share of questions whose right choice has the greatest log-probability of all; ties fail.

    Args:
        rows: Of one run, under `rank`.
        name: Name of the score; of `taxi_chance` the value of a question is one over its choices.
        role: Role, or family of roles.
        per_token: Divide log-probabilities by the number of tokens.
        bootstrap: How to find the interval.
    """
    found, skipped = select(rows, role, protocol=Protocol.RANK)
    own: dict[str, list[float]] = {}
    for row in found:
        rivals = row.rival_log_probs or []
        if not rivals or not all(rivals):
            skipped[NO_RIVAL] += 1
        elif name == CHANCE:
            own.setdefault(row.case, []).append(1 / (1 + len(rivals)))
        else:
            right = _score(required_log_probs(row), per_token)
            best = max(_score(one, per_token) for one in rivals)
            own.setdefault(row.case, []).append(float(right > best))
    label = f"{name}@rank" + (":mean" if per_token else "")
    return statistic(
        label,
        {case: (math.fsum(values), float(len(values))) for case, values in own.items()},
        ratio_of_sums,
        items=sum(map(len, own.values())),
        skipped=skipped,
        bootstrap=bootstrap,
        by_case={case: math.fsum(values) / len(values) for case, values in own.items()},
        share=True,
    )


def _score(log_probs: Sequence[float], per_token: bool) -> float:
    total = math.fsum(log_probs)
    return total / len(log_probs) if per_token else total


_SCORES = {
    "taxi_success": ("reliability", "the new category, among all"),
    "taxi_consistency": ("property/changed", "properties that should follow the category"),
    "taxi_invariance": ("property/unchanged", "properties that both categories share"),
    "taxi_score": ("property", "all properties"),
    "taxi_reverse": ("reverse", "from category or property to the thing"),
}

METRICS: tuple[Metric, ...] = (
    *(
        define(
            f"{name}@rank" + (":mean" if per_token else ""),
            title,
            category_score,
            name,
            role,
            reads=role,
            better=HIGHER,
            options={"per_token": per_token},
        )
        for name, (role, title) in _SCORES.items()
        for per_token in (False, True)
    ),
    define(
        f"{CHANCE}@rank",
        "what guessing has",
        category_score,
        CHANCE,
        "property",
        reads="property",
        better=AS_BEFORE,
    ),
)
