"""Answers of the unedited model: asked once, cached by its digest, shared by all runs.

Queries are asked in blocks, and a block is cached as a whole. So an answer never depends on what
was asked before or on where a run was interrupted: the same block gives the same file. Whole
distributions are not cached; they are taken anew at the beginning of a unit that compares them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from corrigenda.errors import CorrigendaError, CorruptFile
from corrigenda.files import cache_folder, is_cached, write_cached
from corrigenda.rows import Row, Stage
from corrigenda.run.plan import QueryBlock, hash_content
from corrigenda.run.queries import Answer, Query
from corrigenda.run.store import read_table, write_table

_FORMAT = 1


def read_answers(
    block: QueryBlock, model_digest: str, batch_tokens: int | None = None
) -> list[Answer] | None:
    """Return the cached answers to a block; None without any or, with a warning, damaged ones.

    Args:
        block: The queries.
        model_digest: Digest of the model that was asked.
        batch_tokens: Most tokens in one batch when it was asked.
    """
    path = _path(block, model_digest, batch_tokens)
    if not is_cached(path):
        return None
    try:
        rows = read_table(path, Row)
        if len(rows) != len(block):
            raise CorruptFile(f"{path} has {len(rows)} answers for {len(block)} queries.")
    except CorrigendaError as error:
        warnings.warn(f"{error.message} It is written again.", stacklevel=2)
        return None
    return [_make_answer(row) for row in rows]


def write_answers(
    block: QueryBlock,
    answers: Sequence[Answer],
    model_digest: str,
    batch_tokens: int | None = None,
) -> None:
    """Cache the answers to a block; where that fails, they are asked again next time."""
    path = _path(block, model_digest, batch_tokens)
    rows = [_make_row(index, *pair) for index, pair in enumerate(zip(block, answers, strict=True))]
    write_cached(path, lambda file: write_table(file, rows, Row))


def _path(block: QueryBlock, model_digest: str, batch_tokens: int | None) -> Path:
    name = hash_content((_FORMAT, batch_tokens, tuple(map(tuple, block))))
    return cache_folder() / "before" / model_digest[:32] / f"{name}.parquet"


def _make_row(index: int, query: Query, answer: Answer) -> Row:
    return Row(
        case=str(index),
        role="before",
        protocol=query.protocol,
        stage=Stage.BEFORE,
        answer=answer.answer,
        token_ids=answer.token_ids,
        predicted=answer.predicted,
        log_probs=answer.log_probs,
        rival_log_probs=answer.rival_log_probs,
        ended=answer.ended,
        skipped=answer.skipped,
    )


def _make_answer(row: Row) -> Answer:
    return Answer(
        answer=row.answer,
        token_ids=row.token_ids,
        predicted=row.predicted,
        log_probs=row.log_probs,
        rival_log_probs=row.rival_log_probs,
        ended=row.ended,
        skipped=row.skipped,
    )
