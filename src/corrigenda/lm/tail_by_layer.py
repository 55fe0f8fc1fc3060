"""The cached tail of every block of a model, from two passes in place of one a block."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Tokens, state
from corrigenda.lm.tail import Tail


@torch.no_grad()
def tails_by_layer(lm: LanguageModel, tokens: Tokens, starts: Int[Tensor, " batch"]) -> list[Tail]:
    """Build `Tail.build(lm, tokens, layer, starts, role="state")` for every layer.

    All of them share the keys and values of earlier positions; each has its own states.

    Args:
        lm: The model as it is now; later changes of it must not touch it while these are used.
        tokens: The batch, padded on the right.
        starts: The position in each row at which a delta enters.

    Raises:
        ValueError: see `Tail.build`.
    """
    first = Tail.build(lm, tokens, 0, starts, role="state")
    tokens, starts = tokens.to(lm.device), starts.to(lm.device)
    width = int((tokens.lengths - starts).max())
    window = starts[:, None] + torch.arange(width, device=lm.device)
    # Columns after the last token of a row are masked in the tail, so any column will do.
    window = window.clamp_max(tokens.ids.shape[1] - 1)
    points = [state(layer) for layer in range(lm.num_layers)]
    states = lm.tap(tokens, points, positions=window)
    return [first.later(layer, states[point]) for layer, point in enumerate(points)]
