"""General abilities: multiple choice by likelihood, before and after edits.

Each item is a row of role `task/<task>`, protocol `rank`: the right choice is expected, the others
are rivals in their order, and the tag `answer` says at which place the right one stands. The choice
of a model is the likeliest, per token; the right one must be above every other, so a tie is wrong.

Reference: unified-model-editing (Gupta et al. 2024) for weighted F1 and MCC over label likelihoods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from corrigenda.cases import Protocol
from corrigenda.errors import MalformedRows
from corrigenda.metrics.estimate import BOOTSTRAP, Bootstrap, Estimate, Numbers, statistic
from corrigenda.metrics.selection import NOT_COMPARED, probability, required_log_probs, select
from corrigenda.metrics.success import metric_name
from corrigenda.rows import Row

FAMILY = "task"
"""Family of the roles."""

_TASK, _ANSWER, _CHOSEN, _CHOSEN_BEFORE = range(4)


def task_score(
    rows: Sequence[Row],
    task: str = "",
    *,
    measure: str = "accuracy",
    normalization: str = "mean",
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Score of the edited model on a task, over all items of all units of work together.

    Args:
        rows: Of one run.
        task: Name of the task; without one, the mean over tasks.
        measure: "accuracy"; "f1", the mean over classes of F1 weighted by their number of items; or
            "correlation", the MCC over all classes, 0 where it is undefined. A class is a place
            among the choices.
        normalization: "mean" compares log-probabilities per token, "sum" of whole choices.
        bootstrap: How to find the interval.
    """
    of = partial(over_tasks, score=MEASURES[measure])
    flag = None if normalization == "mean" else normalization
    return _estimate(f"task_{measure}", rows, task, of, flag, bootstrap)


def task_change(
    rows: Sequence[Row], task: str = "", *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Accuracy after the edits minus that of the unedited model, on the same items."""
    return _estimate("task_change", rows, task, partial(over_tasks, score=_change), None, bootstrap)


def task_retention(
    rows: Sequence[Row], task: str = "", *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Accuracy after the edits over that of the unedited model; the mean over tasks without one.

    A task that the unedited model never gets right has none.
    """
    of = partial(over_tasks, score=_retention)
    return _estimate("task_retention", rows, task, of, None, bootstrap)


def chosen(answer: int, own: Sequence[float], rivals: Sequence[Sequence[float]], how: str) -> int:
    """Place of the choice that a model makes.

    Args:
        answer: Place of the right choice.
        own: Log-probabilities of its tokens.
        rivals: The same of each other choice, in order.
        how: "mean" or "sum".

    Example:
        >>> chosen(1, [-1.0], [[-2.0], [-3.0]], "mean"), chosen(1, [-1.0], [[-2.0], [-1.0]], "mean")
        (1, 2)
    """
    others = [probability(one, normalization=how) for one in rivals]
    best = max(range(len(others)), key=others.__getitem__)
    if probability(own, normalization=how) > others[best]:
        return answer
    return best if best < answer else best + 1


def _estimate(
    name: str,
    rows: Sequence[Row],
    task: str,
    of: Callable[[Numbers], Numbers],
    flag: str | None,
    bootstrap: Bootstrap,
) -> Estimate:
    role = f"{FAMILY}/{task}" if task else FAMILY
    found, skipped = select(rows, role, protocol=Protocol.RANK)
    places = {kind: place for place, kind in enumerate(sorted({row.kind for row in found}))}
    cases: dict[str, tuple[float, ...]] = {}
    for row in found:
        answer, how = right_place(row), flag or "mean"
        rivals = row.rival_log_probs
        before = row.log_probs_before, row.rival_log_probs_before
        if not rivals or not before[0] or not before[1]:
            skipped[NOT_COMPARED] += 1
            continue
        cases[f"{row.kind}/{row.case}"] = (
            places[row.kind],
            answer,
            chosen(answer, required_log_probs(row), rivals, how),
            chosen(answer, before[0], before[1], how),
        )
    single = bool(task) and name == "task_accuracy"
    right = {case: float(one[_ANSWER] == one[_CHOSEN]) for case, one in cases.items()}
    return statistic(
        metric_name(f"{name}/{task}" if task else name, Protocol.RANK, flag),
        cases,
        of,
        items=len(cases),
        skipped={reason: count for reason, count in skipped.items() if count},
        bootstrap=bootstrap,
        by_case=right if single else None,
    )


def right_place(row: Row) -> int:
    """Place of the right choice.

    Raises:
        MalformedRows (CG507): the row does not say.
    """
    place = tag_of(row, "answer")
    if place is None:
        raise MalformedRows(
            "a row of a task does not say at which place the right choice stands.",
            where=row.label,
            hint='Give it the tag "answer=<place>".',
        )
    return int(place)


def tag_of(row: Row, name: str) -> str | None:
    """Value of a tag; None without it."""
    found = (tag.partition("=") for tag in row.tags)
    return next((value for own, _, value in found if own == name), None)


Score = Callable[[Numbers, Numbers], Numbers]
"""Numbers of shape (resamples, items, columns) and weights of (resamples, items) to one number for
each resample."""


def over_tasks(values: Numbers, *, score: Score) -> Numbers:
    """Mean over tasks, whose numbers stand in the first column, of those that have a score."""
    tasks = values[..., _TASK]
    return known_mean(
        [score(values, (tasks == one).astype(np.float64)) for one in np.unique(tasks)]
    )


def known_mean(each: Sequence[Numbers]) -> Numbers:
    """Mean of those that are numbers, resample by resample; NaN where none is."""
    known = np.stack(each)
    count = (~np.isnan(known)).sum(axis=0)
    total = np.nansum(known, axis=0)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def _accuracy(values: Numbers, weights: Numbers, column: int = _CHOSEN) -> Numbers:
    return _share(weights * (values[..., _ANSWER] == values[..., column]), weights)


def _change(values: Numbers, weights: Numbers) -> Numbers:
    return _accuracy(values, weights) - _accuracy(values, weights, _CHOSEN_BEFORE)


def _retention(values: Numbers, weights: Numbers) -> Numbers:
    after, before = _accuracy(values, weights), _accuracy(values, weights, _CHOSEN_BEFORE)
    return np.divide(after, before, out=np.full(len(after), np.nan), where=before > 0)


def _f1(values: Numbers, weights: Numbers) -> Numbers:
    total = np.zeros(len(values))
    for right, answers, answered in _classes(values, weights):
        both = answers + answered
        f1 = np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)
        total += answers * f1
    return np.divide(
        total, weights.sum(axis=1), out=np.full(len(total), np.nan), where=weights.any(axis=1)
    )


def _correlation(values: Numbers, weights: Numbers) -> Numbers:
    """(c s - sum t_k p_k) / sqrt((s^2 - sum p_k^2) (s^2 - sum t_k^2)), Gorodkin 2004."""
    count = weights.sum(axis=1)
    right = np.zeros(len(values))
    product, answers_squared, answered_squared = right.copy(), right.copy(), right.copy()
    for correct, answers, answered in _classes(values, weights):
        right += correct
        product += answers * answered
        answers_squared += answers**2
        answered_squared += answered**2
    size = np.sqrt((count**2 - answered_squared) * (count**2 - answers_squared))
    found = np.divide(right * count - product, size, out=np.zeros_like(size), where=size > 0)
    return np.where(count > 0, found, np.nan)


def _classes(values: Numbers, weights: Numbers) -> list[tuple[Numbers, Numbers, Numbers]]:
    """Of each class: items chosen rightly, items that are of it, items chosen to be of it."""
    answer, choice = values[..., _ANSWER], values[..., _CHOSEN]
    found: list[tuple[Numbers, Numbers, Numbers]] = []
    for one in np.union1d(answer, choice):
        is_one, as_one = weights * (answer == one), weights * (choice == one)
        both = (is_one * (choice == one)).sum(axis=1)
        found.append((both, is_one.sum(axis=1), as_one.sum(axis=1)))
    return found


def _share(part: Numbers, weights: Numbers) -> Numbers:
    count = weights.sum(axis=1)
    return np.divide(part.sum(axis=1), count, out=np.full(len(count), np.nan), where=count > 0)


MEASURES: dict[str, Score] = {"accuracy": _accuracy, "f1": _f1, "correlation": _correlation}
"""How a task is scored."""
