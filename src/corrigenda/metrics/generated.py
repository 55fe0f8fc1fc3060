"""General abilities: answers that a model writes to items of other tasks, before and after edits.

Each item is a row of role `task/<task>`, protocol `greedy`, with the tag `kind`: which records the
task is made of, and so how an answer is judged (see `corrigenda.metrics.judging`). Where the answer
is one of several choices the tag `answer` says at which place it stands; the others are rivals in
their order. An answer that cannot be read is wrong.

Metrics that begin with `legacy_` judge as published programs do. They read rows in a published
wording only (tag `wording=published`).

Reference: unified-model-editing (Gupta et al. 2024) for weighted F1 and MCC of generated labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from corrigenda.cases import Protocol
from corrigenda.metrics.estimate import BOOTSTRAP, Bootstrap, Estimate, Numbers, statistic
from corrigenda.metrics.judging import has_choices, judge, place
from corrigenda.metrics.selection import NOT_COMPARED, required_answer, select
from corrigenda.metrics.success import metric_name
from corrigenda.metrics.tasks import FAMILY, MEASURES, known_mean, over_tasks, right_place, tag_of
from corrigenda.rows import Row

PUBLISHED = "wording=published"
"""Tag of rows in a published wording."""

NOT_PUBLISHED = "not asked in a published wording"
NO_CHOICES = "an answer without choices"

# Columns of what each row says: of shares two numbers after and two before.
_AFTER, _BEFORE, _PART = 1, 3, -1


def generated_score(
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
        measure: "score", as `judging` says; of answers with choices also "f1" and
            "correlation", as `tasks.task_score`, an answer that cannot be read being of a class of
            its own.
        legacy: Judge as the published programs do, to compare with published numbers.
        bootstrap: How to find the interval.

    Raises:
        MissingExtra (CG504): rouge-score is not installed, and summaries are judged.
    """
    name = f"{'legacy_' if legacy else ''}task_{measure}"
    if measure == "score":
        of = partial(over_tasks, score=_ratio)
        return _estimate(name, rows, task, of, _shares, legacy, bootstrap)
    of = partial(over_tasks, score=MEASURES[measure])
    return _estimate(name, rows, task, of, _places, legacy, bootstrap)


def generated_change(
    rows: Sequence[Row], task: str = "", *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Score after the edits minus that of the unedited model, on the same items."""
    of = partial(over_tasks, score=_change)
    return _estimate("task_change", rows, task, of, _shares, False, bootstrap)


def generated_retention(
    rows: Sequence[Row], task: str = "", *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Score after the edits over that of the unedited model; the mean over tasks without one.

    A task that the unedited model never gets right has none.
    """
    of = partial(over_tasks, score=_retention)
    return _estimate("task_retention", rows, task, of, _shares, False, bootstrap)


_Values = Callable[[Sequence[Row], bool], list[tuple[float, ...]]]
"""Numbers of each row of one task in one unit of work, in their order."""


def _shares(rows: Sequence[Row], legacy: bool) -> list[tuple[float, ...]]:
    after, before = judge(rows[0], legacy=legacy), judge(rows[0], legacy=legacy)
    return [
        (*after(own, row), *before(earlier, row))
        for row, (own, earlier) in zip(rows, map(_texts, rows), strict=True)
    ]


def _places(rows: Sequence[Row], legacy: bool) -> list[tuple[float, ...]]:
    return [
        (right_place(row), *(place(text, row, legacy=legacy) for text in _texts(row)))
        for row in rows
    ]


def _texts(row: Row) -> tuple[str, str]:
    """The answer, and that of the unedited model."""
    assert row.answer_before is not None
    return required_answer(row), row.answer_before


def _estimate(
    name: str,
    rows: Sequence[Row],
    task: str,
    of: Callable[[Numbers], Numbers],
    values: _Values,
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
        elif values is _places and not has_choices(row):
            skipped[NO_CHOICES] += 1
        else:
            found.append(row)
    names = _numbered(row.kind for row in found)
    parts = _numbered(tag_of(row, "about") or "" for row in found)
    cases: dict[str, tuple[float, ...]] = {}
    for own in _evaluations(found):
        for row, one in zip(own, values(own, legacy), strict=True):
            part = parts[tag_of(row, "about") or ""] if legacy else 0
            cases[f"{row.kind}/{row.case}"] = (names[row.kind], *one, part)
    single = bool(task) and name == "task_score"
    alone = single and all(one[_AFTER + 1] == 1 for one in cases.values())
    return statistic(
        metric_name(f"{name}/{task}" if task else name, Protocol.GREEDY),
        cases,
        of,
        items=len(cases),
        skipped={reason: count for reason, count in skipped.items() if count},
        bootstrap=bootstrap,
        by_case={case: one[_AFTER] for case, one in cases.items()} if alone else None,
    )


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(sorted(set(names)))}


def _evaluations(rows: Sequence[Row]) -> Iterator[list[Row]]:
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
