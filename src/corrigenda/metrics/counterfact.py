"""CounterFact's scores: which of two answers is more probable, and by how much.

P~ is the geometric mean of token probabilities, so that answers of different length can be held
against each other. A tie is a failure. Efficacy (ES, EM) reads `reliability`, paraphrase (PS, PM)
`generalization`, neighborhood (NS, NM) `locality/neighborhood`, all under `rank`. Prompts are
averaged in their case, then cases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from corrigenda.cases import Protocol
from corrigenda.metrics.estimate import (
    BOOTSTRAP,
    AnswerValue,
    Bootstrap,
    Estimate,
    Numbers,
    column_means,
    over_cases,
    pool,
    statistic,
)
from corrigenda.metrics.metric import DIFFERENCE, LOWER, POSITIVE, SHARE, Metric, define
from corrigenda.metrics.selection import NOT_COMPARED, probability, required_log_probs, select
from corrigenda.metrics.success import NO_RIVAL, metric_name, rival_probabilities
from corrigenda.rows import Row, Stage

ROLES: Mapping[str, str] = {
    "efficacy": "reliability",
    "paraphrase": "generalization",
    "neighborhood": "locality/neighborhood",
    "distracted_neighborhood": "locality/distracted_neighborhood",
    "attribute": "attribute",
}
"""Name of a score in the field, and the role of the rows it reads."""


def score(
    rows: Sequence[Row],
    what: str,
    *,
    normalization: str = "mean",
    stage: Stage = Stage.AFTER,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """ES, PS or NS: how often the expected answer is more probable than its rival.

    Args:
        rows: Of one run.
        what: A key of `ROLES`.
        normalization: "mean" for P~; "sum" for the probability of the whole answer, which favours
            short ones.
        stage: AFTER for the edited model, BEFORE for rows of the unedited one.
        bootstrap: How to find the interval.
    """
    return _compare_with_rivals(
        rows, what, "score", normalization=normalization, stage=stage, on=bootstrap
    )


def magnitude(
    rows: Sequence[Row],
    what: str,
    *,
    normalization: str = "mean",
    stage: Stage = Stage.AFTER,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """EM, PM or NM: P~ of the expected answer minus that of its strongest rival.

    Args are those of `score`.
    """
    return _compare_with_rivals(
        rows, what, "magnitude", normalization=normalization, stage=stage, on=bootstrap
    )


def harmonic_score(
    rows: Sequence[Row],
    *,
    neighborhood: str = "neighborhood",
    normalization: str = "mean",
    stage: Stage = Stage.AFTER,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """S: harmonic mean of the means ES, PS and NS of all cases; 0 if one of them is 0.

    Not a mean of harmonic means of cases. The interval resamples cases, each with all its parts;
    a hierarchical one also the answers of each part. Without any answer to one part there is no
    score.

    Args:
        rows: Of one run.
        neighborhood: Which key of `ROLES` holds the neighbours.
        normalization: As in `score`.
        stage: As in `score`.
        bootstrap: How to find the interval.
    """
    parts: list[list[AnswerValue]] = []
    skipped: Counter[str] = Counter()
    for what in ("efficacy", "paraphrase", neighborhood):
        items, more = _compared_answers(
            rows, what, "score", normalization=normalization, stage=stage
        )
        parts.append(items)
        skipped += more
    by_case = [pool(items) for items in parts]
    cases = sorted({case for part in by_case for case in part}) if all(by_case) else []
    return statistic(
        metric_name("score", Protocol.RANK, None if normalization == "mean" else normalization),
        {case: [part.get(case, np.nan) for part in by_case] for case in cases},
        _harmonic_of_means,
        items=sum(map(len, parts)),
        skipped=skipped,
        bootstrap=bootstrap,
        columns=parts,
    )


def harmonic(values: Sequence[float]) -> float:
    """Harmonic mean; 0 if a value is 0.

    Example:
        >>> round(harmonic([100, 96.4, 75.4]), 2)
        89.19
    """
    if any(value == 0 for value in values):
        return 0.0
    return len(values) / sum(1 / value for value in values)


def neighborhood_divergence(
    rows: Sequence[Row],
    what: str = "neighborhood",
    *,
    protocol: Protocol = Protocol.GREEDY,
    reverse: bool = False,
    legacy_vocabulary_mean: bool = False,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """NKL: KL(P || P*) of the first token after neighborhood prompts, P of the unedited model.

    In nats, mean over the prompts of a case, then cases; lower is better. What CounterFact+ prints
    was computed with both flags set: the direction reversed, and divided by the number of logits.

    Args:
        rows: Of one run.
        what: Kind of neighbours: rows of role `divergence/...` are read.
        protocol: How the answers were taken.
        reverse: KL(P* || P) instead.
        legacy_vocabulary_mean: Divide by the number of logits.
        bootstrap: How to find the interval.
    """
    role = f"divergence/{what}"
    found, skipped = select(rows, role, protocol=protocol)
    items: list[AnswerValue] = []
    for row in found:
        values = row.divergence_reversed if reverse else row.divergence
        if not values or (legacy_vocabulary_mean and not row.vocabulary):
            skipped[NOT_COMPARED] += 1
            continue
        logits = row.vocabulary if legacy_vocabulary_mean and row.vocabulary else 1
        items.append(AnswerValue(row.case, values[0] / logits))
    flags = ("_reversed" if reverse else "") + ("_legacy" if legacy_vocabulary_mean else "")
    name = metric_name(f"{what}_divergence{flags}", protocol)
    return over_cases(name, items, skipped=skipped, bootstrap=bootstrap, share=False)


def _compare_with_rivals(
    rows: Sequence[Row], what: str, kind: str, *, normalization: str, stage: Stage, on: Bootstrap
) -> Estimate:
    items, skipped = _compared_answers(rows, what, kind, normalization=normalization, stage=stage)
    measure = None if normalization == "mean" else normalization
    name = metric_name(f"{what}_{kind}", Protocol.RANK, measure)
    return over_cases(name, items, skipped=skipped, bootstrap=on, share=kind == "score")


def _compared_answers(
    rows: Sequence[Row], what: str, kind: str, *, normalization: str, stage: Stage
) -> tuple[list[AnswerValue], Counter[str]]:
    found, skipped = select(rows, ROLES[what], protocol=Protocol.RANK, stage=stage)
    items: list[AnswerValue] = []
    for row in found:
        own = probability(required_log_probs(row), normalization=normalization)
        rivals = rival_probabilities(row, normalization=normalization)
        if not rivals:
            skipped[NO_RIVAL] += 1
            continue
        rival = max(rivals)
        items.append(AnswerValue(row.case, float(own > rival) if kind == "score" else own - rival))
    return items, skipped


def _harmonic_of_means(values: Numbers) -> Numbers:
    means = column_means(values)
    with np.errstate(divide="ignore"):
        found = means.shape[1] / (1 / means).sum(axis=1)
    return np.where((means == 0).any(axis=1), 0.0, found)


_REPEATED = {"efficacy_score": "reliability@rank", "paraphrase_score": "generalization@rank"}

METRICS: tuple[Metric, ...] = (
    *(
        define(
            f"{what}_{function.__name__}@rank",
            "the expected answer is likelier" + ending,
            function,
            what,
            reads=role,
            span=span,
            repeats=_REPEATED.get(f"{what}_{function.__name__}", ""),
        )
        for what, role in ROLES.items()
        for function, ending, span in (
            (score, "", SHARE),
            (magnitude, ", by how much", DIFFERENCE),
        )
    ),
    define(
        "score@rank",
        "harmonic mean of efficacy, paraphrase and neighborhood",
        harmonic_score,
        reads="reliability",
    ),
    *(
        define(
            f"{what}_divergence{'_reversed_legacy' if legacy else ''}@greedy",
            "KL divergence of the next token from the unedited model",
            neighborhood_divergence,
            what,
            reads=f"divergence/{what}",
            better=LOWER,
            span=POSITIVE,
            scale=1.0,
            legacy=legacy,
            options={"reverse": legacy, "legacy_vocabulary_mean": legacy},
        )
        for what in ("neighborhood", "distracted_neighborhood")
        for legacy in (False, True)
    ),
)
