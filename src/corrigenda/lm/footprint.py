"""How much memory passes with gradients take, estimated from a model's shapes."""

from __future__ import annotations

from corrigenda.lm.model import LanguageModel

USUAL_TOKENS = 24
"""Tokens of a fact of usual length: a short context, its prompt and target."""

FLOAT = 4
"""Bytes of a float32 number."""

# Numbers kept for the backward pass of a block, per token: inputs of its norms, projections and
# sums in units of d_model, and inputs and outputs of the non-linearity in units of d_inner.
_OF_MODEL, _OF_INNER = 16, 4
# Logits, their log-probabilities and the gradient of both.
_OF_LOGITS = 3


def graph_bytes(lm: LanguageModel, blocks: int, tokens: int) -> int:
    """Return the bytes that the blocks keep for one backward pass over so many tokens."""
    per_token = _OF_MODEL * lm.d_model + _OF_INNER * lm.d_inner
    return blocks * tokens * per_token * lm.dtype.itemsize


def head_bytes(lm: LanguageModel, rows: int) -> int:
    """Return the bytes that a loss over the vocabulary takes at so many positions."""
    return _OF_LOGITS * FLOAT * rows * int(lm.model.config.get_text_config().vocab_size)
