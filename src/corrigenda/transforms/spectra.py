"""Singular values of weights and of changes, without multiplying factors out."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.linalg.lowrank import LowRank
from corrigenda.patch.changes import Change, Dense, Rows


def compute_spectral_norm(matrix: Float[Tensor, "rows columns"]) -> float:
    """Return the largest singular value, from the smaller Gram matrix; float64."""
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    return float(torch.linalg.eigvalsh(wide @ wide.T)[-1].clamp_min(0).sqrt())


def decompose(
    change: Change,
) -> tuple[Float[Tensor, "d_out k"], Float[Tensor, " k"], Float[Tensor, "d_in k"]]:
    """Return singular vectors and values of a change (of a row change, of its rows); float64."""
    match change:
        case LowRank(left=left, right=right):
            left_frame, left_core = torch.linalg.qr(left.double())
            right_frame, right_core = torch.linalg.qr(right.double())
            u, values, vh = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
            return left_frame @ u, values, right_frame @ vh.T
        case Rows(values=full) | Dense(delta=full):
            u, values, vh = torch.linalg.svd(full.double(), full_matrices=False)
            return u, values, vh.T
