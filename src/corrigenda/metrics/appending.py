"""Scores of PEAK: one more right answer must not disturb the answers that are right already.

Rows have role `reliability` or `generalization` under `rank`; their rivals are the right answers,
then the hard wrong ones, then random ones, as many as the tags `right`, `hard` and `random` say.
P is the geometric mean of token probabilities, s = sigmoid(P).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from corrigenda.cases import Protocol
from corrigenda.errors import MalformedRows
from corrigenda.metrics.estimate import BOOTSTRAP, AnswerValue, Bootstrap, Estimate, over_cases
from corrigenda.metrics.metric import LOWER, Metric, define
from corrigenda.metrics.selection import (
    NOT_COMPARED,
    probability,
    required_log_probs,
    select,
    tag_of,
)
from corrigenda.metrics.success import NO_RIVAL
from corrigenda.rows import Row

NOTHING_LEFT = "the unedited model does not tell right from wrong answers"
NOT_BEFORE = "the unedited model prefers the other answer"

_MOST_MORE_PROBABLE = 0.2
"""Share of hard wrong answers above a right one, from which on it is dropped."""

Wrong = Literal["hard", "random"]


class Kept(NamedTuple):
    """Places of the answers that are compared, the same before and after."""

    right: tuple[int, ...]
    hard: tuple[int, ...]
    random: tuple[int, ...]


class Disturbance(NamedTuple):
    """What an edit did to the other answers, each in [0, 1]; 0 is nothing."""

    forgetting: float
    noising: float


def choose_answers(
    right: Sequence[float], hard: Sequence[float], random: Sequence[float]
) -> Kept | None:
    """Return which answers the unedited model tells apart; None where a set is empty.

    A right answer is dropped where at least a fifth of the hard wrong ones are more probable, then
    every wrong one at least as probable as the least probable right one kept.

    Example:
        >>> choose_answers([0.5, 0.01], [0.1, 0.6], [0.2])
        >>> choose_answers([0.5, 0.4], [0.1, 0.2], [0.45, 0.3])
        Kept(right=(0, 1), hard=(0, 1), random=(1,))
    """
    kept = tuple(
        place
        for place, value in enumerate(right)
        if sum(other > value for other in hard) < _MOST_MORE_PROBABLE * len(hard)
    )
    if not kept:
        return None
    least = min(right[place] for place in kept)
    below = [
        tuple(place for place, value in enumerate(wrong) if value < least)
        for wrong in (hard, random)
    ]
    return Kept(kept, *below) if all(below) else None


def measure_disturbance(
    right_before: Sequence[float],
    wrong_before: Sequence[float],
    right: Sequence[float],
    wrong: Sequence[float],
) -> Disturbance:
    """Return the additive forgetting and noising of PEAK, equations as on the benchmark's card.

    Args:
        right_before: P of the right answers under the unedited model.
        wrong_before: P of the wrong ones.
        right: The same of the edited model.
        wrong: The same.

    Example:
        >>> found = measure_disturbance([0.5, 0.4], [0.1, 0.2], [0.3, 0.1], [0.2, 0.15])
        >>> round(found.forgetting, 3), round(found.noising, 3)
        (0.768, 1.0)
    """
    s_right, s_wrong = list(map(_squash, right)), list(map(_squash, wrong))
    lost = math.fsum(one for one in s_right if one < max(s_wrong)) / math.fsum(s_right)
    raised = math.fsum(one for one in s_wrong if one > min(s_right)) / math.fsum(s_wrong)
    fall = _mean(right) / _mean(right_before)
    rise = _mean(wrong) / _mean(wrong_before)
    forgetting = 1 - (1 - lost) * fall if fall < 1 else lost
    noising = 1 - (1 - raised) / rise if rise > 1 else raised
    return Disturbance(forgetting, noising)


def additivity(
    rows: Sequence[Row],
    which: Literal["forgetting", "noising"],
    *,
    wrong: Wrong = "hard",
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Mean disturbance over prompts, then cases; 0 for the unedited model.

    Args:
        rows: Of one run.
        which: Of the right answers, or of the wrong ones.
        wrong: Which wrong answers are compared with.
        bootstrap: How to find the interval.

    Raises:
        MalformedRows (CG507): tags do not say which rival is what.
    """
    found, skipped = _select(rows, ("reliability", "generalization"))
    items: list[AnswerValue] = []
    for row in found:
        sets = _split(row)
        if isinstance(sets, str):
            skipped[sets] = skipped.get(sets, 0) + 1
            continue
        before, after, kept = sets
        right = [after.right[place] for place in kept.right]
        places = kept.hard if wrong == "hard" else kept.random
        other, other_before = (
            (after.hard, before.hard) if wrong == "hard" else (after.random, before.random)
        )
        value = measure_disturbance(
            [before.right[place] for place in kept.right],
            [other_before[place] for place in places],
            right,
            [other[place] for place in places],
        )
        items.append(AnswerValue(row.case, getattr(value, which)))
    label = f"additivity_{which}@rank" + (":random" if wrong == "random" else "")
    return over_cases(label, items, skipped=skipped, bootstrap=bootstrap)


def appended(
    rows: Sequence[Row],
    name: str,
    role: str,
    *,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Share of prompts whose new answer beats the least probable right answer kept."""
    found, skipped = _select(rows, (role,))
    items: list[AnswerValue] = []
    for row in found:
        sets = _split(row)
        if isinstance(sets, str):
            skipped[sets] = skipped.get(sets, 0) + 1
            continue
        least = min(sets[1].right[place] for place in sets[2].right)
        new = probability(required_log_probs(row))
        items.append(AnswerValue(row.case, float(new > least)))
    return over_cases(f"{name}@rank", items, skipped=skipped, bootstrap=bootstrap)


def answers_kept(rows: Sequence[Row], *, bootstrap: Bootstrap = BOOTSTRAP) -> Estimate:
    """Share of neighbours whose answer still beats the new one, of those where it did before."""
    found, skipped = select(rows, "locality/neighborhood", protocol=Protocol.RANK)
    items: list[AnswerValue] = []
    for row in found:
        if not (row.rival_log_probs and row.rival_log_probs_before and row.log_probs_before):
            skipped[NOT_COMPARED if row.rival_log_probs else NO_RIVAL] += 1
            continue
        rival_before = probability(row.rival_log_probs_before[0])
        if probability(row.log_probs_before) <= rival_before:
            skipped[NOT_BEFORE] += 1
            continue
        own, rival = probability(required_log_probs(row)), probability(row.rival_log_probs[0])
        items.append(AnswerValue(row.case, float(own > rival)))
    return over_cases("answers_kept@rank", items, skipped=skipped, bootstrap=bootstrap)


class _Answers(NamedTuple):
    """P of the answers of each set."""

    right: list[float]
    hard: list[float]
    random: list[float]


def _select(rows: Sequence[Row], roles: Sequence[str]) -> tuple[list[Row], dict[str, int]]:
    found: list[Row] = []
    skipped: dict[str, int] = {}
    for role in roles:
        own, reasons = select(rows, role, protocol=Protocol.RANK)
        found += [row for row in own if tag_of(row, "right") is not None]
        for reason, count in reasons.items():
            skipped[reason] = skipped.get(reason, 0) + count
    return found, skipped


def _split(row: Row) -> tuple[_Answers, _Answers, Kept] | str:
    """Return the answers before and after, and which are kept; or why there are none."""
    if not row.rival_log_probs:
        return NO_RIVAL
    if not row.rival_log_probs_before:
        return NOT_COMPARED
    sizes = [int(tag_of(row, name) or 0) for name in ("right", "hard", "random")]
    if sum(sizes) != len(row.rival_log_probs):
        raise MalformedRows(
            f"{len(row.rival_log_probs)} rivals, but the tags count {sum(sizes)}.",
            where=row.label,
            hint="Give the tags `right`, `hard` and `random` as the loader of PEAK does.",
        )
    before, after = (
        _Answers(*_cut([probability(one) for one in given], sizes))
        for given in (row.rival_log_probs_before, row.rival_log_probs)
    )
    kept = choose_answers(*before)
    return NOTHING_LEFT if kept is None else (before, after, kept)


def _cut(values: list[float], sizes: Sequence[int]) -> list[list[float]]:
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return [values[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _squash(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


METRICS: tuple[Metric, ...] = (
    define(
        "appended@rank",
        "the new answer beside the old ones",
        appended,
        "appended",
        "reliability",
        reads="reliability",
    ),
    define(
        "appended_paraphrase@rank",
        "the same, asked in other words",
        appended,
        "appended_paraphrase",
        "generalization",
        reads="generalization",
    ),
    define(
        "answers_kept@rank",
        "other subjects keep an old answer",
        answers_kept,
        reads="locality/neighborhood",
    ),
    *(
        define(
            f"additivity_{which}@rank" + (":random" if wrong == "random" else ""),
            "right answers disturbed" if which == "forgetting" else "wrong answers raised",
            additivity,
            which,
            reads="reliability",
            better=LOWER,
            reference=0.0,
            options={"wrong": wrong},
        )
        for wrong in ("hard", "random")
        for which in ("forgetting", "noising")
    ),
)
