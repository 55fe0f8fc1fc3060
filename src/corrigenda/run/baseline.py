"""Answers of the unedited model: asked once, kept by the digest of its weights, shared by all.

Questions are asked in blocks, and a block is kept as a whole. So an answer never depends on what
was asked before or on where a run was interrupted: the same block gives the same file. Whole
distributions are not kept; they are taken anew at the beginning of a unit that compares them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from corrigenda.errors import CorrigendaError, WriteFailed
from corrigenda.files import cache_folder
from corrigenda.rows import Row, Stage
from corrigenda.run.plan import Block, digest_of
from corrigenda.run.prober import Answer, Question
from corrigenda.run.store import read_table, write_table

_FORMAT = 1


def kept(block: Block, model_digest: str, batch_tokens: int | None = None) -> list[Answer] | None:
    """The answers to a block, if they are kept; damaged ones are not.

    Args:
        block: The questions.
        model_digest: Digest of the model that was asked.
        batch_tokens: Most tokens in one batch when it was asked.
    """
    path = _path(block, model_digest, batch_tokens)
    if not path.is_file():
        return None
    try:
        rows = read_table(path, Row)
    except CorrigendaError:
        return None
    return [_answer(row) for row in rows] if len(rows) == len(block) else None


def keep(
    block: Block,
    answers: Sequence[Answer],
    model_digest: str,
    batch_tokens: int | None = None,
) -> None:
    """Keep the answers to a block; where that fails, they are asked again next time."""
    path = _path(block, model_digest, batch_tokens)
    rows = [_row(index, *pair) for index, pair in enumerate(zip(block, answers, strict=True))]
    with contextlib.suppress(OSError, WriteFailed):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, rows, Row)


def _path(block: Block, model_digest: str, batch_tokens: int | None) -> Path:
    name = digest_of((_FORMAT, batch_tokens, block))
    return cache_folder() / "before" / model_digest[:32] / f"{name}.parquet"


def _row(index: int, question: Question, answer: Answer) -> Row:
    return Row(
        case=str(index),
        role="before",
        protocol=question.protocol,
        stage=Stage.BEFORE,
        answer=answer.answer,
        token_ids=answer.token_ids,
        predicted=answer.predicted,
        log_probs=answer.log_probs,
        rival_log_probs=answer.rival_log_probs,
        skipped=answer.skipped,
    )


def _answer(row: Row) -> Answer:
    return Answer(
        answer=row.answer,
        token_ids=row.token_ids,
        predicted=row.predicted,
        log_probs=row.log_probs,
        rival_log_probs=row.rival_log_probs,
        skipped=row.skipped,
    )
