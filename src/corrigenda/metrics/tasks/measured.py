"""Scores on other tasks that another program gave (lm-eval), before and after edits.

They are measurements named `task/<task>`, one for each item, taken before (`edits=0`, stage BEFORE)
and after some number of edits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from corrigenda.metrics.estimate import (
    BOOTSTRAP,
    AnswerValue,
    Bootstrap,
    Estimate,
    difference,
    mean,
    over_cases,
    ratio_of_sums,
    statistic,
)
from corrigenda.metrics.metric import HIGHER, LOWER, PERCENT, POSITIVE, Metric, define
from corrigenda.metrics.selection import measurements
from corrigenda.metrics.tasks.scores import FAMILY
from corrigenda.rows import Measurement, Stage

_LOWER_IS_BETTER = ("perplexity", "bits_per_byte", "brier_score")


def task_score(
    records: Sequence[Measurement],
    task: str,
    *,
    edits: int,
    stage: Stage | None = None,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Score on a task after some edits; an answer that cannot be read counts as wrong.

    Args:
        records: Of one run; of `task/<task>`, one for each item, `values` its score.
        task: Name of the task.
        edits: Edits of the sequence in force; 0 for the unedited model, and outside a sequence.
        stage: Which model; by default the unedited one where `edits` is 0.
        bootstrap: How to find the interval.
    """
    stage = stage or (Stage.AFTER if edits else Stage.BEFORE)
    found, skipped = measurements(records, f"{FAMILY}/{task}", stage=stage)
    items = [AnswerValue(one.case, mean(one.values)) for one in found if one.edits == edits]
    share = not task.endswith(_LOWER_IS_BETTER)
    return over_cases(f"{FAMILY}/{task}", items, skipped=skipped, bootstrap=bootstrap, share=share)


def task_change(
    records: Sequence[Measurement],
    task: str,
    *,
    edits: int,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Score after some edits minus that of the unedited model, on the same items."""
    after = task_score(records, task, edits=edits, bootstrap=bootstrap)
    before = task_score(records, task, edits=0, bootstrap=bootstrap)
    return difference(f"task_change/{task}", after, before)


def task_retention(
    records: Sequence[Measurement],
    task: str,
    *,
    edits: int,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Score after some edits over that of the unedited model; NaN where that is 0."""
    after = task_score(records, task, edits=edits).by_case
    before = task_score(records, task, edits=0).by_case
    return _ratio(task, after, before, bootstrap)


def last_task_score(
    records: Sequence[Measurement], task: str, *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Score on a task after the last edit of a sequence, or after the edits of each unit."""
    edits = max((one.edits for one in records if one.name == f"{FAMILY}/{task}"), default=0)
    return task_score(records, task, edits=edits, stage=Stage.AFTER, bootstrap=bootstrap)


def last_task_change(
    records: Sequence[Measurement], task: str, *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """`last_task_score` less the score of the unedited model, on the same items."""
    after = last_task_score(records, task, bootstrap=bootstrap)
    before = task_score(records, task, edits=0, stage=Stage.BEFORE, bootstrap=bootstrap)
    return difference(f"task_change/{task}", after, before)


def last_task_retention(
    records: Sequence[Measurement], task: str, *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """`last_task_score` over the score of the unedited model; NaN where that is 0."""
    after = last_task_score(records, task).by_case
    before = task_score(records, task, edits=0, stage=Stage.BEFORE).by_case
    return _ratio(task, after, before, bootstrap)


def mean_task_retention(
    records: Sequence[Measurement], *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Mean over tasks of the last retention; tasks the unedited model cannot do are left out.

    The interval resamples tasks.
    """
    found = {task: last_task_retention(records, task) for task in names_of_tasks(records)}
    known = {task: one for task, one in found.items() if not math.isnan(one.value)}
    return over_cases(
        "task_retention",
        [AnswerValue(task, one.value) for task, one in known.items()],
        skipped={"task never done before": len(found) - len(known)} if known != found else {},
        bootstrap=bootstrap,
        answers=sum(one.items for one in known.values()),
        share=False,
    )


def names_of_tasks(records: Sequence[Measurement]) -> list[str]:
    """Return the names of the tasks that were measured."""
    return sorted({one.kind for one in records if one.name.startswith(f"{FAMILY}/")})


def _ratio(
    task: str, after: Mapping[str, float], before: Mapping[str, float], bootstrap: Bootstrap
) -> Estimate:
    common = sorted(set(after) & set(before))
    alone = len(set(after) ^ set(before))
    return statistic(
        f"task_retention/{task}",
        {case: (after[case], before[case]) for case in common},
        ratio_of_sums,
        items=len(common),
        skipped={"item without its counterpart": alone} if alone else {},
        bootstrap=bootstrap,
    )


def metrics_of(task: str) -> tuple[Metric, ...]:
    """Return the metrics of one task that was measured."""
    lower = task.endswith(_LOWER_IS_BETTER)
    scale = 1.0 if lower else PERCENT
    return tuple(
        define(
            f"{what}/{task}",
            f"{title} on {task}",
            function,
            task,
            reads=f"{FAMILY}/{task}",
            better=LOWER if lower else HIGHER,
            span=(None, None),
            scale=PERCENT if what == "task_retention" else scale,
        )
        for what, title, function in (
            ("task", "score", last_task_score),
            ("task_change", "change", last_task_change),
            ("task_retention", "retention", last_task_retention),
        )
    )


METRICS = (
    define(
        "task_retention",
        "share of the harness's scores on other tasks that is kept",
        mean_task_retention,
        reads=FAMILY,
        span=POSITIVE,
    ),
)
