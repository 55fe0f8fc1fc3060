"""Generated answers to items of other tasks, before and after edits.

Each item is a row of role `task/<task>`, protocol `greedy`, with the tag `kind`: which records the
task is made of, and so how an answer is judged (see `judging`). Where the answer is one of several
choices the tag `answer` is its place; the others are rivals in their order. An answer that cannot
be read is wrong.

Metrics that begin with `legacy_` judge as published programs do. They read rows in a published
wording only (tag `wording=published`).

Reference: unified-model-editing (Gupta et al. 2024) for weighted F1 and MCC of generated labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from corrigenda.metrics.metric import DIFFERENCE, POSITIVE, Metric, define
from corrigenda.metrics.selection import NOT_COMPARED, required_answer, select
from corrigenda.metrics.success import metric_name
from corrigenda.metrics.tasks.judging import has_choices, judge_for, read_place
from corrigenda.metrics.tasks.scores import (
    FAMILY,
    MEASURES,
    known_mean,
    label_task,
    mean_over_tasks,
    right_place,
    tag_of,
)
from corrigenda.rows import Row

PUBLISHED = "wording=published"
"""Tag of rows in a published wording."""

NOT_PUBLISHED = "not asked in a published wording"
NO_CHOICES = "an answer without choices"

# Columns of numbers of each row: of credits two numbers after and two before.
_AFTER, _BEFORE, _PART = 1, 3, -1


def answer_score(
    rows: Sequence[Row],
    task: str = "",
    *,
    measure: str = "score",
    legacy: bool = False,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Score of the edited model on a task, over all items of all units of work together.

    Args:
        rows: Of one run.
        task: Name of the task; without one, the mean over tasks.
        measure: "score", as in `judging`; of answers with choices also "f1" and
            "correlation", as `choices.choice_score`, an answer that cannot be read being of a class
            of its own.
        legacy: Judge as the published programs do, to compare with published numbers.
        bootstrap: How to find the interval.

    Raises:
        MissingExtra (CG504): rouge-score is not installed, and summaries are judged.
    """
    name = f"{'legacy_' if legacy else ''}task_{measure}"
    if measure == "score":
        of = partial(mean_over_tasks, score=_ratio)
        return _estimate(name, rows, task, of, _read_credits, legacy, bootstrap)
    of = partial(mean_over_tasks, score=MEASURES[measure])
    return _estimate(name, rows, task, of, _read_places, legacy, bootstrap)


def answer_change(
    rows: Sequence[Row], task: str = "", *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Score after the edits minus that of the unedited model, on the same items."""
    of = partial(mean_over_tasks, score=_change)
    return _estimate("task_change", rows, task, of, _read_credits, False, bootstrap)


def answer_retention(
    rows: Sequence[Row], task: str = "", *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Score after the edits over that of the unedited model; the mean over tasks without one.

    A task that the unedited model never gets right has none.
    """
    of = partial(mean_over_tasks, score=_retention)
    return _estimate("task_retention", rows, task, of, _read_credits, False, bootstrap)


_Read = Callable[[Sequence[Row], bool], list[tuple[float, ...]]]
"""Numbers of each row of one task in one unit of work, in their order."""


def _read_credits(rows: Sequence[Row], legacy: bool) -> list[tuple[float, ...]]:
    after, before = (judge_for(rows[0], legacy=legacy) for _ in range(2))
    return [
        (*after(own, row), *before(earlier, row))
        for row, (own, earlier) in zip(rows, map(_texts_of, rows), strict=True)
    ]


def _read_places(rows: Sequence[Row], legacy: bool) -> list[tuple[float, ...]]:
    return [
        (right_place(row), *(read_place(text, row, legacy=legacy) for text in _texts_of(row)))
        for row in rows
    ]


def _texts_of(row: Row) -> tuple[str, str]:
    """The answer, and that of the unedited model."""
    assert row.answer_before is not None
    return required_answer(row), row.answer_before


def _estimate(
    name: str,
    rows: Sequence[Row],
    task: str,
    of: Callable[[Numbers], Numbers],
    read: _Read,
    legacy: bool,
    bootstrap: Bootstrap,
) -> Estimate:
    role = f"{FAMILY}/{task}" if task else FAMILY
    selected, skipped = select(rows, role, protocol=Protocol.GREEDY)
    found: list[Row] = []
    for row in selected:
        if row.answer_before is None:
            skipped[NOT_COMPARED] += 1
        elif legacy and PUBLISHED not in row.tags:
            skipped[NOT_PUBLISHED] += 1
        elif read is _read_places and not has_choices(row):
            skipped[NO_CHOICES] += 1
        else:
            found.append(row)
    names = _number_names(row.kind for row in found)
    parts = _number_names(tag_of(row, "about") or "" for row in found)
    cases: dict[str, tuple[float, ...]] = {}
    for own in _group_by_unit(found):
        for row, one in zip(own, read(own, legacy), strict=True):
            part = parts[tag_of(row, "about") or ""] if legacy else 0
            cases[f"{row.kind}/{row.case}"] = (names[row.kind], *one, part)
    single = bool(task) and name == "task_score"
    alone = single and all(one[_AFTER + 1] == 1 for one in cases.values())
    share = {case: (one[_AFTER],) for case, one in cases.items()} if alone else None
    return statistic(
        metric_name(f"{name}/{task}" if task else name, Protocol.GREEDY),
        share or cases,
        first_mean if share else of,
        share=bool(share),
        items=len(cases),
        skipped={reason: count for reason, count in skipped.items() if count},
        bootstrap=bootstrap,
        by_case={case: one[_AFTER] for case, one in cases.items()} if alone else None,
    )


def _number_names(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(sorted(set(names)))}


def _group_by_unit(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows of one task in one unit of work, in the order of its items."""
    found: dict[tuple[str, str], list[tuple[int, Row]]] = {}
    for row in rows:
        unit, _, number = row.case.rpartition(" ")
        found.setdefault((row.kind, unit), []).append((int(number) if number.isdigit() else 0, row))
    for own in found.values():
        yield [row for _, row in sorted(own, key=lambda one: one[0])]


def _ratio(values: Numbers, weights: Numbers, column: int = _AFTER) -> Numbers:
    """Mean over parts of the ratio of sums; parts with nothing possible have none."""
    parts = values[..., _PART]
    each: list[Numbers] = []
    for one in np.unique(parts):
        own = weights * (parts == one)
        counted = (own * values[..., column]).sum(axis=1)
        possible = (own * values[..., column + 1]).sum(axis=1)
        empty = np.full(len(possible), np.nan)
        each.append(np.divide(counted, possible, out=empty, where=possible > 0))
    return known_mean(each)


def _change(values: Numbers, weights: Numbers) -> Numbers:
    return _ratio(values, weights) - _ratio(values, weights, _BEFORE)


def _retention(values: Numbers, weights: Numbers) -> Numbers:
    after, before = _ratio(values, weights), _ratio(values, weights, _BEFORE)
    return np.divide(after, before, out=np.full(len(after), np.nan), where=before > 0)


def metrics_of(task: str) -> tuple[Metric, ...]:
    """Return the metrics of one task; without a name, those of the mean over tasks."""
    end, title, reads = label_task(task)
    found: list[Metric] = []
    for legacy in (False, True):
        for measure in ("score", "f1", "correlation"):
            # The published search for spans counts some texts several times.
            most = None if legacy and measure == "score" else 1.0
            found.append(
                define(
                    f"{'legacy_' if legacy else ''}task_{measure}{end}@greedy",
                    f"{measure} of generated answers {title}"
                    + (", as published" if legacy else ""),
                    answer_score,
                    task,
                    reads=reads,
                    span=DIFFERENCE if measure == "correlation" else (0.0, most),
                    legacy=legacy,
                    options={"measure": measure, "legacy": legacy},
                )
            )
    return (
        *found,
        define(
            f"task_change{end}@greedy",
            f"score of generated answers {title} less that before",
            answer_change,
            task,
            reads=reads,
            span=DIFFERENCE,
        ),
        define(
            f"task_retention{end}@greedy",
            f"score of generated answers {title} over that before",
            answer_retention,
            task,
            reads=reads,
            span=POSITIVE,
        ),
    )


METRICS = metrics_of("")
