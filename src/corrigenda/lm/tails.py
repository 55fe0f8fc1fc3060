"""The cached tail of every block of a model, from two passes in place of one a block."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens, state, value, write
from corrigenda.lm.tail import Tail


@torch.no_grad()
def tails_by_layer(lm: LanguageModel, tokens: Tokens, starts: Int[Tensor, " batch"]) -> list[Tail]:
    """Build what `Tail.build(lm, tokens, layer, starts, role="value")` gives, for every layer.

    All of them share the keys and values of earlier positions; each has its own states.

    Args:
        lm: The model as it is now; later changes of it must not touch it while these are used.
        tokens: The batch, padded on the right.
        starts: The position in each row at which a delta enters.

    Raises:
        UnknownSite (CG303): a block is a mixture of experts, which has no one down projection.
        ValueError: see `Tail.build`.
    """
    norm = lm.family.mlp_norm
    layers = range(lm.num_layers)
    first = Tail.build(lm, tokens, 0, starts, role="value")
    tokens, starts = tokens.to(lm.device), starts.to(lm.device)
    width = int((tokens.lengths.to(lm.device) - starts).max())
    window = starts[:, None] + torch.arange(width, device=lm.device)
    # Columns behind the last token of a row are masked in the tail, so any column will do.
    window = window.clamp_max(tokens.ids.shape[1] - 1)
    points = [point for layer in layers for point in (value(Site(layer)), state(layer))]
    points += [] if norm is None else [write(Site(layer)) for layer in layers]
    seen = lm.tap(tokens, points, positions=window)
    tails = []
    for layer, block in enumerate(lm.blocks):
        hidden = base = seen[state(layer)]
        if norm is not None:
            base = hidden - seen[write(Site(layer))]
        module = None if norm is None else block.get_submodule(norm)
        entry = seen[value(Site(layer))]
        tails.append(first.later(layer, entry=entry, base=base, hidden=hidden, norm=module))
    return tails
