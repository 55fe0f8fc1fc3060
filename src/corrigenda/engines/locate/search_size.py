"""Memory and work of a target search, and the sizes of its parts by the free memory."""

from __future__ import annotations

from corrigenda.lm.footprint import (
    FLOAT,
    USUAL_READS,
    USUAL_TOKENS,
    cache_bytes,
    graph_bytes,
    graph_tokens,
    head_bytes,
    head_flops,
    head_rows,
    pass_flops,
    vocabulary_of,
)
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.tail import memory_budget

HEAD_ROWS = {"cpu": 256, "cuda": 4096}
"""Positions whose logits are computed at once, at most, by kind of device."""

_BUCKET_TOKENS = {"cpu": 512, "cuda": 16384}
# From the subject's last token to the target's end, and earlier positions for each of them.
_USUAL_TAIL = 4
_EARLIER = USUAL_TOKENS // _USUAL_TAIL


def search_memory(lm: LanguageModel, layer: int, num_facts: int, rows: int) -> int:
    """Estimate the bytes that a search at a layer takes, for facts of usual length.

    Args:
        lm: The model.
        layer: Block at which the delta enters.
        num_facts: How many facts are searched together.
        rows: Rows of each.
    """
    stored = num_facts * rows * USUAL_TOKENS * token_bytes(lm, layer)
    stored += num_facts * FLOAT * vocabulary_of(lm)
    above = lm.num_layers - layer - 1
    tokens = min(num_facts * rows * _USUAL_TAIL, bucket_tokens(lm, layer))
    reads = min(num_facts * rows * USUAL_READS, head_rows(lm, HEAD_ROWS))
    graph = graph_bytes(lm, above, tokens, tokens * _EARLIER) + head_bytes(lm, reads)
    return min(stored, memory_budget(lm)) + graph


def search_flops(lm: LanguageModel, layer: int, rows: int, steps: int) -> float:
    """Estimate the operations of a search at a layer that takes all its steps, over all rows.

    Each step is a forward pass and one for the gradient, of the later blocks and the head.
    """
    step = pass_flops(lm, rows * _USUAL_TAIL, layer + 1) + head_flops(lm, rows * USUAL_READS)
    return pass_flops(lm, rows * USUAL_TOKENS) + 2 * steps * step


def bucket_tokens(lm: LanguageModel, layer: int) -> int:
    """Return how many positions of a search at a layer run together, by the free memory."""
    above = lm.num_layers - layer - 1
    return graph_tokens(lm, above, _BUCKET_TOKENS, earlier=_EARLIER)


def token_bytes(lm: LanguageModel, layer: int) -> int:
    """Count the bytes of keys and values of one earlier position above a layer."""
    return cache_bytes(lm, 1, lm.num_layers - layer)
