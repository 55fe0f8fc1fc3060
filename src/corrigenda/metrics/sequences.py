"""Sequences of edits: immediate success, retention, forgetting, drift.

A matrix holds the success of edit i after t edits. The diagonal is immediate success, the last row
is what is retained: different metrics, which programs report under one name.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from corrigenda.cases import Protocol
from corrigenda.errors import MalformedRows
from corrigenda.metrics.estimate import (
    BOOTSTRAP,
    AnswerValue,
    Bootstrap,
    Estimate,
    Numbers,
    over_cases,
)
from corrigenda.metrics.metric import HIGHER, LOWER, Metric, define
from corrigenda.metrics.selection import at, measurements
from corrigenda.metrics.success import MEASURES, metric_name, success
from corrigenda.rows import Measurement, Row, Stage

CHECKPOINTS = (1, 10, 100, 500, 1000)
"""Numbers of edits at which the field shows curves."""


class SuccessMatrix(NamedTuple):
    """Success of each edit at each moment it was asked.

    Attributes:
        moments: Numbers of edits in force, t, rising.
        positions: Places of the edits in the sequence, i, rising.
        cases: Case of each place.
        values: Success of edit `positions[column]` after `moments[line]` edits; NaN where it was
            not asked.
        protocol: How the answers were taken, and the measure where one was named.
        checkpoints: Moments at which all edits so far were asked, and not only the newest.
        answers: Most answers that one value comes from.
    """

    moments: tuple[int, ...]
    positions: tuple[int, ...]
    cases: tuple[str, ...]
    values: Numbers
    protocol: str
    checkpoints: tuple[int, ...]
    answers: int = 1


class Drift(NamedTuple):
    """Distance of an edited weight from the unedited one.

    Attributes:
        per_parameter: ||W_t - W_0||_F over the number of parameters.
        relative: ||W_t - W_0||_F over ||W_0||_F.
    """

    per_parameter: float
    relative: float


def success_matrix(
    rows: Sequence[Row],
    role: str = "reliability",
    *,
    protocol: Protocol,
    measure: str | None = None,
) -> SuccessMatrix:
    """Return the matrix A[t][i] of a sequence.

    Args:
        rows: Of one run, with `position` and `edits`.
        role: Role of the questions.
        protocol: How the answers were taken.
        measure: Name of a measure of the protocol (see `success`).

    Raises:
        MalformedRows (CG507): a row has no place in a sequence, or was asked before its edit.
    """
    own = [
        row
        for row in rows
        if row.stage == Stage.AFTER
        and row.protocol == protocol
        and (row.role == role or row.role.startswith(f"{role}/"))
    ]
    places: dict[str, int] = {}
    for row in own:
        if not 1 <= row.position <= row.edits:
            raise MalformedRows(
                f"edit {row.position} cannot have been asked after {row.edits} edits.",
                where=row.label,
                hint="Rows of a sequence carry `position` from 1, and `edits` at least that.",
            )
        places[row.case] = row.position
    conditions = [row for row in rows if row.role == "condition"]
    moments = sorted({row.edits for row in own})
    cases = sorted(places, key=lambda case: (places[case], case))
    values = np.full((len(moments), len(cases)), np.nan)
    column = {case: index for index, case in enumerate(cases)}
    answers = Counter((row.case, row.edits) for row in own)
    for line, moment in enumerate(moments):
        asked = [*at(own, moment), *conditions]
        found = success(asked, role, protocol=protocol, measure=measure).by_case
        for case, value in found.items():
            values[line, column[case]] = value
    asked_by = metric_name("", protocol, measure).removeprefix("@")
    return SuccessMatrix(
        tuple(moments),
        tuple(places[case] for case in cases),
        tuple(cases),
        values,
        asked_by,
        find_checkpoints(own),
        max(answers.values(), default=1),
    )


def find_checkpoints(rows: Sequence[Row]) -> tuple[int, ...]:
    """Return the moments at which all edits so far were asked, and not only the newest.

    Between two checkpoints of a sequence only its newest edit is asked; a mean over the answers of
    such a moment is of another population than one at a checkpoint.

    Args:
        rows: Answers to probes of one role, of one run; those without a place in a sequence, such
            as of texts, are asked at checkpoints alone.
    """
    places = {row.case: row.position for row in rows if row.position}
    asked: dict[int, set[str]] = {}
    found: set[int] = set()
    for row in rows:
        if row.position:
            asked.setdefault(row.edits, set()).add(row.case)
        elif row.stage == Stage.AFTER:
            found.add(row.edits)
    of_all = Counter(places.values())
    for moment, cases in asked.items():
        now = Counter(places[case] for case in cases)
        # Of several sequences only some may be as long as this moment.
        newest = max(now)
        whole = all(
            now[place] >= min(of_all[place], now[newest]) for place in of_all if place < newest
        )
        if whole:
            found.add(moment)
    return tuple(sorted(found))


def immediate(matrix: SuccessMatrix, *, bootstrap: Bootstrap = BOOTSTRAP) -> Estimate:
    """Mean of A[i][i]: success of each edit right after it, before the next."""
    items = [one for one, _ in _list_immediate(matrix)]
    return _mean_of_known("immediate_success", matrix, items, bootstrap)


def retention(matrix: SuccessMatrix, *, bootstrap: Bootstrap = BOOTSTRAP) -> Estimate:
    """Mean of A[N][i]: success of each edit after the last."""
    items = [
        AnswerValue(case, float(value))
        for case, value in zip(matrix.cases, matrix.values[-1:].ravel(), strict=False)
    ]
    return _mean_of_known("retention", matrix, items, bootstrap)


def forgetting(matrix: SuccessMatrix, *, bootstrap: Bootstrap = BOOTSTRAP) -> Estimate:
    """Mean over i < N of max over t of A[t][i] minus A[N][i]; lower is better."""
    items: list[AnswerValue] = []
    for column, position in enumerate(matrix.positions if matrix.moments else ()):
        known = matrix.values[:, column]
        if position < matrix.moments[-1] and not np.isnan(known[-1]):
            items.append(AnswerValue(matrix.cases[column], float(np.nanmax(known) - known[-1])))
    return _mean_of_known("forgetting", matrix, items, bootstrap)


def curve(matrix: SuccessMatrix, *, bootstrap: Bootstrap = BOOTSTRAP) -> dict[int, Estimate]:
    """Return the mean over the edits made so far of A[t][i], at each checkpoint t.

    At other moments only the newest edit was asked; see `immediate_curve`.
    """
    found: dict[int, Estimate] = {}
    for moment in matrix.checkpoints:
        line = matrix.moments.index(moment)
        items = [
            AnswerValue(case, float(value))
            for case, value in zip(matrix.cases, matrix.values[line], strict=True)
        ]
        found[moment] = _mean_of_known(f"success_after_{moment}", matrix, items, bootstrap)
    return found


def immediate_curve(
    matrix: SuccessMatrix, *, bootstrap: Bootstrap = BOOTSTRAP
) -> dict[int, Estimate]:
    """Return the mean over the edits made so far of A[i][i], at each checkpoint t.

    The distance to `curve` is what later edits took away.
    """
    found: dict[int, Estimate] = {}
    for moment in matrix.checkpoints:
        items = [one for one, position in _list_immediate(matrix) if position <= moment]
        if items:
            name = f"immediate_success_until_{moment}"
            found[moment] = _mean_of_known(name, matrix, items, bootstrap)
    return found


_SUMMARIES: Mapping[str, Callable[..., Estimate]] = {
    "immediate_success": immediate,
    "retention": retention,
    "forgetting": forgetting,
}


def summary(
    rows: Sequence[Row],
    what: str,
    *,
    protocol: Protocol,
    measure: str | None = None,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Return one number of a sequence from its rows.

    Args:
        rows: Of one run, all moments.
        what: "immediate_success", "retention" or "forgetting".
        protocol: How the answers were taken.
        measure: Name of a measure of the protocol (see `success`).
        bootstrap: How to find the interval.
    """
    own = [row for row in rows if row.position]
    others = [row for row in rows if row.role == "condition"]
    matrix = success_matrix([*own, *others], protocol=protocol, measure=measure)
    return _SUMMARIES[what](matrix, bootstrap=bootstrap)


def half_life(matrix: SuccessMatrix) -> int | None:
    """Return the first t whose mean over i <= t of A[t][i] is below half of immediate success.

    None if it stays above. Moments that were not asked cannot be found.
    """
    limit = 0.5 * immediate(matrix).value
    return next((t for t, found in curve(matrix).items() if found.value < limit), None)


def disabling_edit(
    perplexities: Mapping[int, float] | None = None,
    scores: Mapping[int, float] | None = None,
    *,
    jump: float = 10.0,
    fall: float = 0.5,
) -> int | None:
    """Return the first t whose step from the moment before breaks the model; None without one.

    A rule of this library: perplexity grows `jump` times or more, or a score on another task loses
    the share `fall` or more.

    Args:
        perplexities: ME-PPL, or its ratio to the unedited model, by number of edits.
        scores: Score on a downstream task by number of edits.
        jump: Least factor.
        fall: Least share.

    Example:
        >>> disabling_edit({0: 50.0, 1: 60.0, 2: 900.0})
        2
    """
    broken = [
        *_breaking_steps(perplexities or {}, lambda old, new: new >= jump * old),
        *_breaking_steps(scores or {}, lambda old, new: old > 0 and new <= (1 - fall) * old),
    ]
    return min(broken, default=None)


def weight_drift(original: ArrayLike, edited: ArrayLike) -> Drift:
    """Return the distance of one weight from where it was.

    Example:
        >>> round(weight_drift([[1, 1], [1, 1]], [[1.1, 1.1], [1.1, 1.1]]).per_parameter, 6)
        0.05
    """
    start: NDArray[np.float64] = np.asarray(original, dtype=np.float64)
    moved = float(np.linalg.norm(np.asarray(edited, dtype=np.float64) - start))
    size = float(np.linalg.norm(start))
    return Drift(moved / start.size, moved / size if size else math.inf)


def mean_drift(
    records: Sequence[Measurement], layer: str, *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Relative drift of a layer, from measurements `drift/<layer>`; lower is better.

    Their `values` are ||W_t - W_0||_F, ||W_0||_F and the number of parameters.
    """
    found, skipped = measurements(records, f"drift/{layer}")
    items = [AnswerValue(one.case, one.values[0] / one.values[1]) for one in found]
    return over_cases(f"drift/{layer}", items, skipped=skipped, bootstrap=bootstrap, share=False)


def _list_immediate(matrix: SuccessMatrix) -> Iterator[tuple[AnswerValue, int]]:
    """Yield A[i][i] of each edit that was asked right after it, with its place."""
    for column, position in enumerate(matrix.positions):
        if position in matrix.moments:
            value = float(matrix.values[matrix.moments.index(position), column])
            yield AnswerValue(matrix.cases[column], value), position


def _breaking_steps(
    series: Mapping[int, float], breaks: Callable[[float, float], bool]
) -> list[int]:
    moments = sorted(series)
    return [
        now for before, now in itertools.pairwise(moments) if breaks(series[before], series[now])
    ]


def _mean_of_known(
    name: str, matrix: SuccessMatrix, items: Sequence[AnswerValue], bootstrap: Bootstrap
) -> Estimate:
    known = [one for one in items if not math.isnan(one.value)]
    missing = len(items) - len(known)
    skipped = {"not asked at this moment": missing} if missing else {}
    return over_cases(
        f"{name}@{matrix.protocol}",
        known,
        skipped=skipped,
        bootstrap=bootstrap,
        answers=len(known) * matrix.answers,
    )


_TITLES = {
    "immediate_success": "success of each edit right after it",
    "retention": "success of each edit after the last",
    "forgetting": "success lost since its best",
}

METRICS: tuple[Metric, ...] = tuple(
    define(
        metric_name(name, protocol),
        title,
        summary,
        name,
        reads="reliability",
        better=LOWER if name == "forgetting" else HIGHER,
        sequence=True,
        options={"protocol": protocol},
    )
    for name, title in _TITLES.items()
    for protocol in MEASURES
)
