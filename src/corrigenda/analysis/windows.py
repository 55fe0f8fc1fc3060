"""Windows of blocks whose outputs a causal trace restores together."""

from __future__ import annotations

import math


def default_window(num_layers: int) -> int:
    """Return the blocks of a window: in proportion to the 10 of 48 of the paper's GPT-2 XL.

    Example:
        >>> [default_window(n) for n in (2, 12, 28, 48)]
        [1, 2, 6, 10]
    """
    return max(1, round(10 * num_layers / 48))


def window_around(layer: int, width: int, num_layers: int) -> range:
    """Return the blocks `[layer - floor(w/2), layer + ceil(w/2))`, clipped to the model.

    Example:
        >>> window_around(5, 10, 48), window_around(2, 3, 4)
        (range(0, 10), range(1, 4))
    """
    return range(max(0, layer - width // 2), min(num_layers, layer + math.ceil(width / 2)))
