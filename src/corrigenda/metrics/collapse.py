"""Collapse of the model: perplexity of plain text, and edits that were rolled back.

Texts are rows of role `perplexity`, teacher forced; the first token is scored only if a BOS token
came before it, the same before and after.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from corrigenda.cases import Protocol
from corrigenda.metrics.estimate import (
    BOOTSTRAP,
    AnswerValue,
    Bootstrap,
    Estimate,
    Numbers,
    mean,
    over_cases,
    ratio_of_sums,
    statistic,
)
from corrigenda.metrics.metric import AS_BEFORE, LOWER, POSITIVE, Metric, define
from corrigenda.metrics.selection import NOT_COMPARED, measurements, select
from corrigenda.metrics.success import metric_name
from corrigenda.rows import Measurement, Row, Stage

TOO_SHORT = "no token to predict"
ROLLBACK = "rollback/perplexity"
"""Name of measurements: of each edit, the ratio of mean perplexity to that of the unedited model
with it, and 1 if it was taken back for that, else 0."""


class Collapse(NamedTuple):
    """Limits beyond which a model counts as collapsed; both must be passed.

    Attributes:
        ratio: Mean perplexity over that of the unedited model.
        absolute: Mean perplexity.
    """

    ratio: float = 10.0
    absolute: float = 1000.0


LIMITS = Collapse()


def perplexity(
    rows: Sequence[Row],
    *,
    pooling: str = "mean",
    stage: Stage = Stage.AFTER,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """ME-PPL: mean over texts of exp(mean negative log-likelihood of a token); lower is better.

    Args:
        rows: Of one run, one for each text.
        pooling: "mean" for ME-PPL, a mean of exponentials that single texts can rule; "median"; or
            "corpus", exp(total negative log-likelihood / all tokens). An overflow is infinite and
            makes the mean so.
        stage: AFTER for the edited model, BEFORE for rows of the unedited one.
        bootstrap: How to find the interval.
    """
    found, skipped = select(rows, "perplexity", protocol=Protocol.TEACHER_FORCED, stage=stage)
    losses = _losses_by_text(found, skipped)
    by_text = {case: _exp_or_infinity(mean(values)) for case, values in losses.items()}
    of = {"mean": _mean_first, "median": _median_first, "corpus": _exp_of_ratio}[pooling]
    cases = (
        {case: (math.fsum(values), float(len(values))) for case, values in losses.items()}
        if pooling == "corpus"
        else {case: (value,) for case, value in by_text.items()}
    )
    name = metric_name(
        "perplexity", Protocol.TEACHER_FORCED, None if pooling == "mean" else pooling
    )
    return statistic(
        name, cases, of, items=len(losses), skipped=skipped, bootstrap=bootstrap, by_case=by_text
    )


def perplexity_ratio(rows: Sequence[Row], *, bootstrap: Bootstrap = BOOTSTRAP) -> Estimate:
    """ME-PPL of the edited model over that of the unedited one, on the same texts; 1 is best."""
    found, skipped = select(rows, "perplexity", protocol=Protocol.TEACHER_FORCED)
    compared = [row for row in found if row.log_probs_before]
    skipped[NOT_COMPARED] += len(found) - len(compared)
    after = _losses_by_text(compared, skipped)
    before = {row.case: [-value for value in row.log_probs_before or []] for row in compared}
    cases = {
        case: (_exp_or_infinity(mean(after[case])), _exp_or_infinity(mean(before[case])))
        for case in after
    }
    return statistic(
        metric_name("perplexity_ratio", Protocol.TEACHER_FORCED),
        cases,
        ratio_of_sums,
        items=len(cases),
        skipped={reason: count for reason, count in skipped.items() if count},
        bootstrap=bootstrap,
        by_case={case: a / b for case, (a, b) in cases.items()},
    )


def rolled_back(records: Sequence[Measurement], *, bootstrap: Bootstrap = BOOTSTRAP) -> Estimate:
    """Share of edits that were rolled back because perplexity rose too far; lower is better."""
    found, skipped = measurements(records, ROLLBACK)
    items = [AnswerValue(one.case, one.values[1]) for one in found]
    return over_cases("rolled_back", items, skipped=skipped, bootstrap=bootstrap)


def collapsed(rows: Sequence[Row], limits: Collapse = LIMITS) -> bool:
    """Whether mean perplexity passed both limits, or overflowed."""
    after = perplexity(rows).value
    if math.isinf(after):
        return True
    return perplexity_ratio(rows).value > limits.ratio and after > limits.absolute


def _losses_by_text(found: Sequence[Row], skipped: Counter[str]) -> dict[str, list[float]]:
    """Negative log-likelihoods of each text."""
    losses: dict[str, list[float]] = {}
    for row in found:
        if row.log_probs:
            losses[row.case] = [-value for value in row.log_probs]
        else:
            skipped[TOO_SHORT] += 1
    return losses


def _exp_or_infinity(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _mean_first(values: Numbers) -> Numbers:
    return values[..., 0].mean(axis=1)


def _median_first(values: Numbers) -> Numbers:
    return np.median(values[..., 0], axis=1)


def _exp_of_ratio(values: Numbers) -> Numbers:
    with np.errstate(over="ignore"):
        return np.exp(ratio_of_sums(values))


METRICS: tuple[Metric, ...] = (
    *(
        define(
            "perplexity@teacher_forced" + ("" if pooling == "mean" else f":{pooling}"),
            "perplexity of plain text",
            perplexity,
            reads="perplexity",
            better=LOWER,
            span=(1.0, None),
            scale=1.0,
            options={"pooling": pooling},
        )
        for pooling in ("mean", "median", "corpus")
    ),
    define(
        "perplexity_ratio@teacher_forced",
        "perplexity over that of the unedited model",
        perplexity_ratio,
        reads="perplexity",
        better=AS_BEFORE,
        span=POSITIVE,
        scale=1.0,
        reference=1.0,
    ),
    define(
        "rolled_back",
        "edits taken back, which raised perplexity too far",
        rolled_back,
        reads=ROLLBACK,
        better=LOWER,
    ),
)
