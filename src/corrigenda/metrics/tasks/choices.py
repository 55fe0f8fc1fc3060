"""Multiple choice by likelihood, before and after edits.

Each item is a row of role `task/<task>`, protocol `rank`: the right choice is expected, the others
are rivals in their order, and the tag `answer` is the place of the right one. The choice of a model
is the likeliest, per token; the right one must be above every other, so a tie is wrong.

Reference: unified-model-editing (Gupta et al. 2024) for weighted F1 and MCC over label likelihoods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from corrigenda.cases import Protocol
from corrigenda.metrics.estimate import (
    BOOTSTRAP,
    Bootstrap,
    Estimate,
    Numbers,
    first_mean,
    statistic,
)
from corrigenda.metrics.metric import DIFFERENCE, POSITIVE, SHARE, Metric, define
from corrigenda.metrics.selection import NOT_COMPARED, probability, required_log_probs, select
from corrigenda.metrics.success import metric_name
from corrigenda.metrics.tasks.scores import (
    ANSWER,
    CHOSEN,
    CHOSEN_BEFORE,
    FAMILY,
    MEASURES,
    accuracy,
    label_task,
    mean_over_tasks,
    right_place,
)
from corrigenda.rows import Row


def choice_score(
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
    of = partial(mean_over_tasks, score=MEASURES[measure])
    flag = None if normalization == "mean" else normalization
    return _estimate(f"task_{measure}", rows, task, of, flag, bootstrap)


def choice_change(
    rows: Sequence[Row], task: str = "", *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Accuracy after the edits minus that of the unedited model, on the same items."""
    of = partial(mean_over_tasks, score=_change)
    return _estimate("task_change", rows, task, of, None, bootstrap)


def choice_retention(
    rows: Sequence[Row], task: str = "", *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Accuracy after the edits over that of the unedited model; the mean over tasks without one.

    A task that the unedited model never gets right has none.
    """
    of = partial(mean_over_tasks, score=_retention)
    return _estimate("task_retention", rows, task, of, None, bootstrap)


def chosen_place(
    answer: int, own: Sequence[float], rivals: Sequence[Sequence[float]], normalization: str
) -> int:
    """Return the place of the choice that a model makes.

    Args:
        answer: Place of the right choice.
        own: Log-probabilities of its tokens.
        rivals: The same of each other choice, in order.
        normalization: "mean" or "sum".

    Example:
        >>> chosen_place(1, [-1.0], [[-2.0], [-3.0]], "mean")
        1
        >>> chosen_place(1, [-1.0], [[-2.0], [-1.0]], "mean")
        2
    """
    others = [probability(one, normalization=normalization) for one in rivals]
    best = max(range(len(others)), key=others.__getitem__)
    if probability(own, normalization=normalization) > others[best]:
        return answer
    return best if best < answer else best + 1


def names_of_tasks(rows: Sequence[Row]) -> list[str]:
    """Return the names of the tasks whose items were asked."""
    return sorted({row.kind for row in rows if row.family == FAMILY})


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
        answer, normalization = right_place(row), flag or "mean"
        rivals = row.rival_log_probs
        before = row.log_probs_before, row.rival_log_probs_before
        if not rivals or not before[0] or not before[1]:
            skipped[NOT_COMPARED] += 1
            continue
        cases[f"{row.kind}/{row.case}"] = (
            places[row.kind],
            answer,
            chosen_place(answer, required_log_probs(row), rivals, normalization),
            chosen_place(answer, before[0], before[1], normalization),
        )
    single = bool(task) and name == "task_accuracy"
    right = {case: float(one[ANSWER] == one[CHOSEN]) for case, one in cases.items()}
    # The accuracy of one task is a share; a mean over tasks is not.
    return statistic(
        metric_name(f"{name}/{task}" if task else name, Protocol.RANK, flag),
        {case: (value,) for case, value in right.items()} if single else cases,
        first_mean if single else of,
        share=single,
        items=len(cases),
        skipped={reason: count for reason, count in skipped.items() if count},
        bootstrap=bootstrap,
        by_case=right if single else None,
    )


def _change(values: Numbers, weights: Numbers) -> Numbers:
    return accuracy(values, weights) - accuracy(values, weights, CHOSEN_BEFORE)


def _retention(values: Numbers, weights: Numbers) -> Numbers:
    after, before = accuracy(values, weights), accuracy(values, weights, CHOSEN_BEFORE)
    return np.divide(after, before, out=np.full(len(after), np.nan), where=before > 0)


def metrics_of(task: str) -> tuple[Metric, ...]:
    """Return the metrics of one task; without a name, those of the mean over tasks."""
    end, title, reads = label_task(task)
    return (
        *(
            define(
                f"task_{measure}{end}@rank",
                f"{measure} {title}",
                choice_score,
                task,
                reads=reads,
                span=DIFFERENCE if measure == "correlation" else SHARE,
                options={"measure": measure},
            )
            for measure in MEASURES
        ),
        define(
            f"task_accuracy{end}@rank:sum",
            f"accuracy {title}, whole choices compared",
            choice_score,
            task,
            reads=reads,
            options={"normalization": "sum"},
        ),
        define(
            f"task_change{end}@rank",
            f"accuracy {title} less that before",
            choice_change,
            task,
            reads=reads,
            span=DIFFERENCE,
        ),
        define(
            f"task_retention{end}@rank",
            f"accuracy {title} over that before",
            choice_retention,
            task,
            reads=reads,
            span=POSITIVE,
        ),
    )


METRICS = metrics_of("")
