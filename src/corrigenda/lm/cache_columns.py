"""Caches of keys and values made wider, narrower and taller, for batches that others join.

Columns are padded and cut on the left, where the attention mask hides them.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


def is_resizable(cache: object) -> bool:
    """Tell whether columns of a cache can be padded and cut: it holds keys and values only."""
    return type(cache) is DynamicCache and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )


def select_rows(cache: Cache, rows: Int[Tensor, " rows"]) -> None:
    """Keep some rows of a cache, whichever devices its layers are on."""
    for layer in cast("list[DynamicLayer]", cache.layers):
        layer.batch_select_indices(rows.to(getattr(layer, "device", rows.device)))


def resize(cache: DynamicCache, width: int) -> None:
    """Let a cache have a number of columns, padded or cut on the left.

    Args:
        cache: One that `is_resizable`.
        width: Number of columns, those that a sliding window has left behind included.
    """
    for layer in _filled(cache):
        stored = width
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = width
            stored = min(width, layer.sliding_window - 1)
        keys, values = _contents(layer)
        layer.keys, layer.values = _resized(keys, stored), _resized(values, stored)


def append_rows(cache: DynamicCache, other: DynamicCache) -> None:
    """Append the rows of another cache of the same model and the same number of columns."""
    for layer, more in zip(_filled(cache), _filled(other), strict=True):
        pairs = zip(_contents(layer), _contents(more), strict=True)
        layer.keys, layer.values = (torch.cat(pair) for pair in pairs)


def _filled(cache: DynamicCache) -> list[DynamicLayer]:
    """Return the layers that hold something: layers that share a cache leave theirs empty."""
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    return [layer for layer in layers if layer.get_seq_length() > 0]


def _contents(layer: DynamicLayer) -> tuple[Tensor, Tensor]:
    assert layer.keys is not None, "it is filled"
    assert layer.values is not None, "it is filled"
    return layer.keys, layer.values


def _resized(tensor: Tensor, width: int) -> Tensor:
    """Pad or cut on the left."""
    return pad(tensor, (0, 0, width - tensor.shape[-2], 0))
