"""Selection of the rows a metric reads: one run, one protocol, each answer once."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, NoReturn

from corrigenda.cases import Against, Protocol
from corrigenda.errors import MalformedRows, MixedRows
from corrigenda.rows import Measurement, Record, Row, Stage

NOT_COMPARED = "no answer of the unedited model"
"""Reason of a skip: the row lacks the fields that end in `_before`."""


class Selected(NamedTuple):
    """Rows with an answer, and how many had none.

    Attributes:
        rows: What a metric reads.
        skipped: Number of rows left out, by reason.
    """

    rows: list[Row]
    skipped: Counter[str]


def select(
    rows: Iterable[Row],
    role: str,
    *,
    protocol: Protocol,
    stage: Stage = Stage.AFTER,
    against: Against | None = None,
    rounds: int | None = None,
) -> Selected:
    """Return the answers of one role and protocol.

    Args:
        rows: Of one run.
        role: A role, or a family for all its kinds.
        protocol: How the answers were taken.
        stage: Which model answered.
        against: What the answers are is_compared with; None takes all.
        rounds: Rounds of the case done; None takes all.

    Raises:
        MixedRows (CG506): rows of several runs, or two answers to one probe.
    """
    found = [
        row
        for row in rows
        if (row.role == role or row.role.startswith(f"{role}/"))
        and row.protocol == protocol
        and row.stage == stage
        and (against is None or row.against == against)
        and (rounds is None or row.rounds == rounds)
    ]
    require_one_answer_each(found)
    skipped = Counter(row.skipped for row in found if row.skipped)
    return Selected([row for row in found if not row.skipped], skipped)


def require_one_answer_each(rows: Sequence[Row]) -> None:
    """Refuse rows that must not be averaged.

    Raises:
        MixedRows (CG506): rows of several runs, or two answers to one probe.
    """
    require_one_run(rows)
    seen: dict[tuple[object, ...], Row] = {}
    for row in rows:
        key = (row.case, row.role, row.probe, row.protocol, row.stage, row.rounds)
        first = seen.setdefault(key, row)
        if first is not row:
            when = f"after {first.edits} and after {row.edits} edits"
            raise MixedRows(
                f"two answers to one probe{f', {when}' if first.edits != row.edits else ''}.",
                where=row.label,
                hint="Choose one number of edits with `at`, or use a metric of sequences.",
            )


def require_one_run(records: Sequence[Record]) -> None:
    """Refuse records of several runs.

    Raises:
        MixedRows (CG506): they come from several runs.
    """
    runs = sorted({record.run for record in records})
    if len(runs) > 1:
        raise MixedRows(
            f"records of {len(runs)} runs are not averaged: {', '.join(runs[:3])}.",
            hint="Give the records of one run at a time.",
        )


def at(rows: Iterable[Row], edits: int) -> list[Row]:
    """Return the rows of one moment of a sequence, and those of the unedited model."""
    return [row for row in rows if row.edits == edits or row.stage == Stage.BEFORE]


def with_tag(rows: Iterable[Row], tag: str) -> list[Row]:
    """Return the rows with a tag, such as "hops=3".

    Example:
        >>> row = Row(case="1", role="reliability", protocol=Protocol.GREEDY, tags=["hops=3"])
        >>> with_tag([row], "hops=3") == [row], with_tag([row], "hops=2")
        (True, [])
    """
    return [row for row in rows if tag in row.tags]


def tag_of(row: Row, name: str) -> str | None:
    """Return the value of a tag; None without it."""
    found = (tag.partition("=") for tag in row.tags)
    return next((value for own, _, value in found if own == name), None)


def as_before(rows: Iterable[Row]) -> list[Row]:
    """Return rows of the unedited model, from the `_before` fields of those of the edited one.

    With them any metric can be shown for the model before the edit, on the same questions.
    """
    found: dict[tuple[object, ...], Row] = {}
    for row in rows:
        if row.stage == Stage.AFTER:
            key = (row.run, row.case, row.role, row.probe, row.protocol)
            found.setdefault(key, _before(row))
    return list(found.values())


def _before(row: Row) -> Row:
    return dataclasses.replace(
        row,
        stage=Stage.BEFORE,
        rounds=0,
        edits=0,
        answer=row.answer_before,
        predicted=row.predicted_before,
        log_probs=row.log_probs_before,
        rival_log_probs=row.rival_log_probs_before,
        divergence=None,
        divergence_reversed=None,
        ended=None,
        verdict=row.verdict_before,
        verdict_before=None,
        model=row.model_before,
        model_before="",
        skipped=row.skipped or ("" if is_compared(row) else NOT_COMPARED),
    )


def is_compared(row: Row) -> bool:
    """Whether a row carries an answer of the unedited model."""
    fields = (row.answer_before, row.predicted_before, row.log_probs_before)
    return any(one is not None for one in fields)


def measurements(
    records: Iterable[Measurement], name: str, *, stage: Stage = Stage.AFTER
) -> tuple[list[Measurement], Counter[str]]:
    """Return the measurements of one name, and how many had no value, by reason.

    Raises:
        MixedRows (CG506): they come from several runs.
    """
    found = [one for one in records if one.name == name and one.stage == stage]
    require_one_run(found)
    skipped = Counter(one.skipped for one in found if one.skipped)
    return [one for one in found if not one.skipped], skipped


def required_ids(row: Row, name: str) -> list[int]:
    """Return token ids of a row that a metric needs.

    Raises:
        MalformedRows (CG507): the row has an answer, but not these.
    """
    values: list[int] | None = getattr(row, name)
    return values if values is not None else _refuse(row, name)


def required_log_probs(row: Row, name: str = "log_probs") -> list[float]:
    """Return log-probabilities of a row that a metric needs; at least one.

    Raises:
        MalformedRows (CG507): the row has an answer, but not these.
    """
    values: list[float] | None = getattr(row, name)
    return values if values else _refuse(row, name)


def required_answer(row: Row) -> str:
    """Return the text the model generated.

    Raises:
        MalformedRows (CG507): the row has none, and no reason for it.
    """
    return row.answer if row.answer is not None else _refuse(row, "answer")


def probability(log_probs: Sequence[float], *, normalization: str = "mean") -> float:
    """Return the geometric mean of the probabilities of tokens, or their product with "sum".

    P~ = exp(mean log p): what the papers write P[o] and their programs compute.

    Example:
        >>> round(probability([math.log(0.5), math.log(0.2)]), 5)
        0.31623
    """
    total = math.fsum(log_probs)
    return math.exp(total / len(log_probs) if normalization == "mean" else total)


def _refuse(row: Row, name: str) -> NoReturn:
    raise MalformedRows(
        f"a row without `{name}` cannot be scored.",
        where=row.label,
        hint=f"Record `{name}` under this protocol, or say in `skipped` why there is none.",
    )
