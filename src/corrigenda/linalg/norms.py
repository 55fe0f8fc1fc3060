"""Norms of matrices that are too large to be copied in float64."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_ROWS_AT_ONCE = 512


def frobenius_norm(matrix: Float[Tensor, "rows columns"]) -> float:
    """Return the Frobenius norm; squares are summed in float64, 512 rows at a time.

    Example:
        >>> frobenius_norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        5.0
    """
    sums = [part.double().square().sum() for part in matrix.detach().split(_ROWS_AT_ONCE)]
    return float(torch.stack(sums).sum().sqrt())
