"""Rows of ordinary text, drawn by seed: examples of what an edit must leave alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.errors import EmptyCorpus
from corrigenda.lm.kv_cache import batches, pad_id
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Tokens
from corrigenda.progress import Progress
from corrigenda.statistics.corpus import (
    OWN_TEXT,
    Corpus,
    Source,
    complete_corpus,
    read_documents,
    write_own_text,
)

_DOCUMENTS_TO_DRAW_FROM = 20
_SHORTEST = 2


def draw_rows(
    lm: LanguageModel,
    corpus: Corpus | Source | None,
    *,
    count: int,
    length: int,
    seed: int,
    progress: Progress | None = None,
) -> list[list[int]]:
    """Draw texts of a corpus as rows of token ids, one text a row, each cut at `length`.

    Args:
        lm: The model, for its tokenizer.
        corpus: The text; None as in `corrigenda.statistics.corpus.complete_corpus`.
        count: Rows wanted; fewer come back where the corpus has fewer texts.
        length: Most tokens of a row.
        seed: Of the draw among the first texts of the corpus.
        progress: Called while the model writes text.

    Raises:
        EmptyCorpus (CG602): no text has two tokens.
    """
    wanted = complete_corpus(lm, corpus)
    source = wanted.source
    assert source is not None, "completed"
    if source == OWN_TEXT:
        tokens = count * length
        source = write_own_text(lm, tokens, seed=wanted.seed, progress=progress, keep=True)
    texts = list(islice(read_documents(source), _DOCUMENTS_TO_DRAW_FROM * count))
    random.Random(seed).shuffle(texts)
    rows: list[list[int]] = []
    for text in texts:
        ids = lm.tokenizer(text, verbose=False).input_ids[:length]
        if len(ids) >= _SHORTEST:
            rows.append(ids)
        if len(rows) == count:
            break
    if not rows:
        raise EmptyCorpus(
            "the text holds no row of at least two tokens.",
            hint="Give a file, a list of strings, or datasets:NAME.",
        )
    return rows


def tap_tokens(
    lm: LanguageModel, rows: Sequence[Sequence[int]], point: Point
) -> list[Float[Tensor, "pos d"]]:
    """Return the tensor at a point for every token of each row, at least float32."""
    found: dict[int, Tensor] = {}
    for batch in batches(lm, [len(row) for row in rows], None):
        tokens = Tokens.pad([rows[index] for index in batch], pad_id(lm)).to(lm.device)
        states = lm.tap(tokens, [point])[point]
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        for place, index in enumerate(batch):
            found[index] = states[place, : len(rows[index])].clone()
    return [found[index] for index in range(len(rows))]
