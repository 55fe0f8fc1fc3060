"""Locality: answers that are unchanged, answers that are still right, and drawdown.

Unchanged means equal to the answer of the unedited model, which every row carries:

| name | 1 where |
|---|---|
| `@teacher_forced:tokens` | share of positions of the expected answer with the same argmax |
| `@teacher_forced:exact` | all of them |
| `@greedy:exact` | the continuation is the same text |
| `@greedy:sentence` | it is the same up to the end of its first sentence or line |
| `@greedy:answer` | its short answer is the same, as `short_answers.keeps_answer` tells |
| `@generate`, `@chat` | the whole natural answer is the same; also `:answer`, `:tokens` |
| `@generate:contained` | one of the two answers occurs in the other; also of `@chat` |
| `@greedy:tokens` | share of the unedited model's tokens that are at the same place |

Under teacher forcing both models read the right answer, so what drifts after its first token is
hidden. Extended locality (other relations of the subject, neighbours after a distracting sentence)
is locality of another kind: `unchanged(rows, "locality/distracted_neighborhood", ...)`. There the
unedited model read the same distracting sentence, since both answers are to one prompt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from corrigenda.cases import GENERATED, NATURAL, Against, Protocol
from corrigenda.errors import UnknownMetric, did_you_mean
from corrigenda.metrics.estimate import (
    BOOTSTRAP,
    AnswerValue,
    Bootstrap,
    Estimate,
    Numbers,
    column_means,
    difference,
    mean,
    over_cases,
    pool,
    statistic,
)
from corrigenda.metrics.metric import DIFFERENCE, LOWER, POSITIVE, Metric, define, list_measures
from corrigenda.metrics.selection import (
    NOT_COMPARED,
    as_before,
    probability,
    required_answer,
    required_ids,
    required_log_probs,
    select,
)
from corrigenda.metrics.strings import contains
from corrigenda.metrics.success import Measure, measure_named, metric_name, success
from corrigenda.rows import Row, Stage
from corrigenda.short_answers import keeps_answer

NO_GOLD = "no expected answer"
UNKNOWN_BEFORE = "not known to the unedited model"
_SENTENCE_END = re.compile(
    "[.!?](?=\\s|$)|[\u3002\uff01\uff1f\uff61\u061f\u06d4\u0964\u104b\u1362\u17d4]|\n"
)


def same_argmax(row: Row) -> float | str:
    """Share of the positions of the expected answer that have the same argmax as before."""
    if row.predicted_before is None:
        return NOT_COMPARED
    after = required_ids(row, "predicted")
    if not after:
        return NO_GOLD
    return mean(float(a == b) for a, b in zip(row.predicted_before, after, strict=True))


def same_argmax_everywhere(row: Row) -> float | str:
    """1 if every position has the same argmax as before."""
    return _require_all(same_argmax(row))


def same_text(row: Row) -> float | str:
    """1 if the continuation is the same text as before."""
    if row.answer_before is None:
        return NOT_COMPARED
    return float(required_answer(row) == row.answer_before)


def same_sentence(row: Row) -> float | str:
    """1 if the continuation is the same up to the end of its first sentence or line.

    What a model generates after its answer differs for the slightest change.
    """
    if row.answer_before is None:
        return NOT_COMPARED
    now, before = (
        _SENTENCE_END.split(text, maxsplit=1)[0].strip()
        for text in (required_answer(row), row.answer_before)
    )
    return float(now == before)


def same_answer(row: Row) -> float | str:
    """1 if the answer is the same: where it was an expected one, any spelling of it is."""
    if row.answer_before is None:
        return NOT_COMPARED
    known = row.expected[0] if len(row.expected) == 1 else ()
    return float(keeps_answer(row.answer_before, required_answer(row), known))


def one_holds_other(row: Row) -> float | str:
    """1 if one of the two answers occurs in the other; neither may be without words.

    HalluEditBench compares characters, so that an empty answer is in any other, "No" in "Norway".
    """
    if row.answer_before is None:
        return NOT_COMPARED
    now, before = required_answer(row), row.answer_before
    return float(contains(now, before) or contains(before, now))


def same_tokens(row: Row) -> float | str:
    """Share of the tokens generated before that are at the same place now.

    Of a continuation that was empty before, 1 if it still is.
    """
    if row.predicted_before is None:
        return NOT_COMPARED
    before, after = row.predicted_before, required_ids(row, "predicted")
    if not before:
        return float(not after)
    return sum(a == b for a, b in zip(before, after, strict=False)) / len(before)


UNCHANGED: dict[Protocol, dict[str, Measure]] = {
    Protocol.TEACHER_FORCED: {"tokens": same_argmax, "exact": same_argmax_everywhere},
    Protocol.GREEDY: {
        "exact": same_text,
        "sentence": same_sentence,
        "answer": same_answer,
        "tokens": same_tokens,
    },
    **{
        protocol: {
            "exact": same_text,
            "answer": same_answer,
            "tokens": same_tokens,
            "contained": one_holds_other,
        }
        for protocol in NATURAL
    },
}
"""Measures of what is unchanged, by protocol and name; the first of a protocol is its default."""


def unchanged(
    rows: Sequence[Row],
    role: str = "locality",
    *,
    protocol: Protocol,
    measure: str | None = None,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Share of answers that are those of the unedited model; kinds in a case weigh the same.

    Items without an expected answer, where the protocol needs one, and those the unedited model was
    not asked are left out and counted.

    Args:
        rows: Of one run; those compared with TARGET or BEFORE are not read.
        role: Role, or family of roles.
        protocol: How the answers were taken.
        measure: Name of a measure in `UNCHANGED`.
        bootstrap: How to find the interval.

    Raises:
        MixedRows (CG506): rows of several runs, or two answers to one probe.
        MalformedRows (CG507): an answer without what the measure reads.
        UnknownMetric (CG505): the protocol has no measure by that name.

    Example:
        >>> row = Row(case="1", role="locality/neighbour", protocol=Protocol.TEACHER_FORCED,
        ...           against=Against.UNEDITED, token_ids=[29, 234, 333],
        ...           predicted_before=[29, 234, 334], predicted=[29, 234, 333])
        >>> round(unchanged([row], protocol=Protocol.TEACHER_FORCED).value, 4)
        0.6667
    """
    known = UNCHANGED.get(protocol, {})
    name = next(iter(known), "") if measure is None else measure
    if name not in known:
        raise UnknownMetric(
            f'{protocol} has no measure "{name}" of what is unchanged.',
            hint=did_you_mean(name, [*known]) if known else "Ask under another protocol.",
        )
    found, skipped = select(rows, role, protocol=protocol, against=Against.UNEDITED)
    items: list[AnswerValue] = []
    for row in found:
        value = known[name](row)
        if isinstance(value, str):
            skipped[value] += 1
        else:
            items.append(AnswerValue(row.case, value, row.role.removeprefix(role)))
    label = metric_name(role, protocol, measure)
    return over_cases(label, items, skipped=skipped, bootstrap=bootstrap)


def still_correct(
    rows: Sequence[Row],
    role: str = "locality",
    *,
    protocol: Protocol,
    measure: str | None = None,
    only_known: bool = True,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Share of expected answers that are still given, where the unedited model gave them.

    Args:
        rows: Of one run.
        role: Role, or family of roles.
        protocol: How the answers were taken.
        measure: Name of a measure of the protocol (see `success`).
        only_known: Leave out what the unedited model did not answer rightly. Without that the
            number measures knowledge rather than locality; zsRE's "specificity" is reported so.
        bootstrap: How to find the interval.
    """
    found, skipped = select(rows, role, protocol=protocol)
    decide = measure_named(protocol, measure)
    items: list[AnswerValue] = []
    for row in found:
        if not row.expected and (protocol in GENERATED or not row.token_ids):
            skipped[NO_GOLD] += 1
            continue
        if only_known:
            before = as_before([row])[0]
            held = before.skipped or decide(before)
            if held != 1:
                skipped[held if isinstance(held, str) else UNKNOWN_BEFORE] += 1
                continue
        value = decide(row)
        if isinstance(value, str):
            skipped[value] += 1
        else:
            items.append(AnswerValue(row.case, value, row.role.removeprefix(role)))
    name = metric_name(f"{role}_correct", protocol, measure)
    return over_cases(name, items, skipped=skipped, bootstrap=bootstrap)


def drawdown(
    rows: Sequence[Row],
    role: str = "locality",
    *,
    protocol: Protocol = Protocol.TEACHER_FORCED,
    measure: str | None = None,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Accuracy lost on questions the edit is not about: before minus after (MEND); lower is better.

    Args and errors are those of `success`.
    """
    after = success(rows, role, protocol=protocol, measure=measure, bootstrap=bootstrap)
    own = as_before([row for row in rows if row.role.partition("/")[0] == role.partition("/")[0]])
    before = success(
        own, role, protocol=protocol, measure=measure, stage=Stage.BEFORE, bootstrap=bootstrap
    )
    return difference(metric_name("drawdown", protocol, measure), before, after)


def perplexity_drawdown(
    rows: Sequence[Row], role: str = "locality", *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Perplexity of the expected answers after the edit minus before (MEND, for generation).

    The perplexity of all answers together, exp of the mean loss over cases: a mean of perplexities
    would be that of the one answer that has become least likely.
    """
    found, skipped = select(rows, role, protocol=Protocol.TEACHER_FORCED)
    losses: tuple[list[AnswerValue], list[AnswerValue]] = ([], [])
    for row in found:
        if not row.log_probs_before:
            skipped[NOT_COMPARED] += 1
            continue
        losses[0].append(AnswerValue(row.case, -mean(required_log_probs(row))))
        losses[1].append(AnswerValue(row.case, -mean(row.log_probs_before)))
    after, before = map(pool, losses)
    return statistic(
        metric_name("drawdown_perplexity", Protocol.TEACHER_FORCED),
        {case: (after[case], before[case]) for case in after},
        _difference_of_perplexities,
        items=len(losses[0]),
        skipped=skipped,
        bootstrap=bootstrap,
        columns=losses,
    )


def retained_probability(
    rows: Sequence[Row], role: str = "locality", *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Share of its probability per token that an answer retains, at most 1.

    Of answers that should stay as likely as they were, such as the other objects of an edited fact
    that has several.

    Args:
        rows: Of one run, under `rank`; those compared with TARGET or BEFORE are not read.
        role: Role, or family of roles.
        bootstrap: How to find the interval.
    """
    found, skipped = select(rows, role, protocol=Protocol.RANK, against=Against.UNEDITED)
    items: list[AnswerValue] = []
    for row in found:
        before = probability(row.log_probs_before) if row.log_probs_before else 0.0
        if not before:
            skipped[NOT_COMPARED] += 1
            continue
        value = min(1.0, probability(required_log_probs(row)) / before)
        items.append(AnswerValue(row.case, value, row.role.removeprefix(role)))
    name = metric_name("retained_probability", Protocol.RANK)
    return over_cases(name, items, skipped=skipped, bootstrap=bootstrap)


def mean_divergence(
    rows: Sequence[Row],
    role: str = "locality",
    *,
    protocol: Protocol,
    reverse: bool = False,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """KL(unedited || edited) in nats, over all compared tokens of a case; lower is better.

    Args:
        rows: Of one run.
        role: Role, or family of roles.
        protocol: How the answers were taken.
        reverse: KL(edited || unedited) instead.
        bootstrap: How to find the interval.
    """
    found, skipped = select(rows, role, protocol=protocol)
    tokens: dict[str, list[float]] = {}
    used = 0
    for row in found:
        values = row.divergence_reversed if reverse else row.divergence
        if not values:
            skipped[NOT_COMPARED] += 1
            continue
        used += 1
        tokens.setdefault(row.case, []).extend(values)
    by_case = {case: mean(values) for case, values in tokens.items()}
    return statistic(
        metric_name(f"{role}_divergence" + ("_reversed" if reverse else ""), protocol),
        {case: (value,) for case, value in by_case.items()},
        items=used,
        skipped=skipped,
        bootstrap=bootstrap,
        by_case=by_case,
    )


def divergence(
    unedited: Sequence[float], edited: Sequence[float], *, reverse: bool = False
) -> float:
    """KL divergence of two distributions in nats: sum of P ln(P / P*), P of the unedited model.

    Args:
        unedited: P, probabilities that sum to 1.
        edited: P*.
        reverse: Sum of P* ln(P* / P) instead.

    Example:
        >>> round(divergence([0.7, 0.2, 0.1], [0.5, 0.3, 0.2]), 6)
        0.085123
    """
    first, second = (edited, unedited) if reverse else (unedited, edited)
    terms = [
        (p * math.log(p / q) if q else math.inf) if p else 0.0
        for p, q in zip(first, second, strict=True)
    ]
    return math.fsum(terms)


def _difference_of_perplexities(values: Numbers) -> Numbers:
    with np.errstate(over="ignore", invalid="ignore"):
        after, before = np.exp(column_means(values)).T
        return after - before


def _require_all(value: float | str) -> float | str:
    return value if isinstance(value, str) else float(value == 1)


METRICS: tuple[Metric, ...] = (
    *(
        define(
            metric_name("locality", protocol, measure),
            "answers that are as before",
            unchanged,
            reads="locality",
            options={"protocol": protocol, "measure": measure},
        )
        for protocol, measure in list_measures(UNCHANGED)
    ),
    *(
        define(
            metric_name("locality_correct", protocol),
            "known answers that are still right",
            still_correct,
            reads="locality",
            options={"protocol": protocol},
        )
        for protocol in (Protocol.TEACHER_FORCED, Protocol.GREEDY, *NATURAL)
    ),
    *(
        define(
            metric_name(f"locality_divergence{suffix}", Protocol.TEACHER_FORCED),
            "KL divergence from the unedited model",
            mean_divergence,
            reads="locality",
            better=LOWER,
            span=POSITIVE,
            scale=1.0,
            legacy=bool(suffix),
            options={"protocol": Protocol.TEACHER_FORCED, "reverse": bool(suffix)},
        )
        for suffix in ("", "_reversed")
    ),
    define(
        "drawdown@teacher_forced",
        "accuracy lost elsewhere",
        drawdown,
        reads="locality",
        better=LOWER,
        span=DIFFERENCE,
    ),
    define(
        "drawdown_perplexity@teacher_forced",
        "perplexity gained elsewhere",
        perplexity_drawdown,
        reads="locality",
        better=LOWER,
        span=(None, None),
        scale=1.0,
    ),
    define(
        "retained_probability@rank",
        "share of their probability that other right answers retain",
        retained_probability,
        reads="locality",
    ),
)
