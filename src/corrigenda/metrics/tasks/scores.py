"""What the scores of other tasks share: reading their rows, means over tasks, F1, correlation.

Each item of a task is a row of role `task/<task>`. Scores are functions of one array of numbers,
one line for each item: the number of its task, the place of the right choice, and the places of the
choices made, by the edited model and by the unedited one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from corrigenda.errors import MalformedRows
from corrigenda.metrics.estimate import Numbers
from corrigenda.metrics.selection import tag_of
from corrigenda.rows import Row

FAMILY = "task"
"""Family of the roles."""

Score = Callable[[Numbers, Numbers], Numbers]
"""Numbers of shape (resamples, items, columns) and weights of (resamples, items) to one number for
each resample."""

TASK, ANSWER, CHOSEN, CHOSEN_BEFORE = range(4)
"""Columns: number of the task, place of the right choice, places of the choices made."""


class TaskLabel(NamedTuple):
    """How the metrics of one task, or of all together, are named.

    Attributes:
        end: End of the names.
        title: End of the titles.
        reads: Role or family of the rows.
    """

    end: str
    title: str
    reads: str


def label_task(task: str) -> TaskLabel:
    """Return how metrics of a task are named; without a name, those of the mean over tasks."""
    if not task:
        return TaskLabel("", "on other tasks", FAMILY)
    return TaskLabel(f"/{task}", f"on {task}", f"{FAMILY}/{task}")


def right_place(row: Row) -> int:
    """Return the place of the right choice.

    Raises:
        MalformedRows (CG507): the row has no such tag.
    """
    place = tag_of(row, "answer")
    if place is None:
        raise MalformedRows(
            "a row of a task does not give the place of the right choice.",
            where=row.label,
            hint='Give it the tag "answer=<place>".',
        )
    return int(place)


def mean_over_tasks(values: Numbers, *, score: Score) -> Numbers:
    """Return the mean over the tasks that have a score; the first column numbers the tasks."""
    tasks = values[..., TASK]
    return known_mean(
        [score(values, (tasks == one).astype(np.float64)) for one in np.unique(tasks)]
    )


def known_mean(each: Sequence[Numbers]) -> Numbers:
    """Return the mean of those that are numbers, resample by resample; NaN where none is."""
    known = np.stack(each)
    count = (~np.isnan(known)).sum(axis=0)
    total = np.nansum(known, axis=0)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def accuracy(values: Numbers, weights: Numbers, column: int = CHOSEN) -> Numbers:
    """Return the share of items whose choice is the right one."""
    right = weights * (values[..., ANSWER] == values[..., column])
    count = weights.sum(axis=1)
    return np.divide(right.sum(axis=1), count, out=np.full(len(count), np.nan), where=count > 0)


def weighted_f1(values: Numbers, weights: Numbers) -> Numbers:
    """Return the mean over classes of F1, weighted by their number of items."""
    total = np.zeros(len(values))
    for right, answers, answered in _count_classes(values, weights):
        both = answers + answered
        f1 = np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)
        total += answers * f1
    return np.divide(
        total, weights.sum(axis=1), out=np.full(len(total), np.nan), where=weights.any(axis=1)
    )


def correlation(values: Numbers, weights: Numbers) -> Numbers:
    """Return Matthews' correlation over all classes; 0 where it is undefined.

    (c s - sum t_k p_k) / sqrt((s^2 - sum p_k^2) (s^2 - sum t_k^2)), Gorodkin 2004.
    """
    count = weights.sum(axis=1)
    right = np.zeros(len(values))
    product, answers_squared, answered_squared = right.copy(), right.copy(), right.copy()
    for correct, answers, answered in _count_classes(values, weights):
        right += correct
        product += answers * answered
        answers_squared += answers**2
        answered_squared += answered**2
    size = np.sqrt((count**2 - answered_squared) * (count**2 - answers_squared))
    found = np.divide(right * count - product, size, out=np.zeros_like(size), where=size > 0)
    return np.where(count > 0, found, np.nan)


def _count_classes(values: Numbers, weights: Numbers) -> list[tuple[Numbers, Numbers, Numbers]]:
    """Of each class: items chosen rightly, items that are of it, items chosen to be of it."""
    answer, choice = values[..., ANSWER], values[..., CHOSEN]
    found: list[tuple[Numbers, Numbers, Numbers]] = []
    for one in np.union1d(answer, choice):
        is_one, as_one = weights * (answer == one), weights * (choice == one)
        both = (is_one * (choice == one)).sum(axis=1)
        found.append((both, is_one.sum(axis=1), as_one.sum(axis=1)))
    return found


MEASURES: dict[str, Score] = {
    "accuracy": accuracy,
    "f1": weighted_f1,
    "correlation": correlation,
}
"""How choices are scored."""
