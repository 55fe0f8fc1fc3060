"""What tells of a solve how well it does: agreement of keys, equal keys, written fractions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.linalg.cholesky import Cholesky

_SAME_KEY = 0.999


def key_agreements(
    keys: Float[Tensor, "n d_in"], clean: Float[Tensor, "n d_in"], factor: Cholesky | None
) -> list[float]:
    """Return each fact's `(u . k_clean) / (u . k)`, `u = C^-1 k`: 1 where both keys agree."""
    if factor is None:
        direction = keys.double()
    else:
        direction = factor.solve(keys.double().T.to(factor.lower.device)).T.to(keys.device)
    own = (direction * keys.double()).sum(dim=1)
    return ((direction * clean.double()).sum(dim=1) / own).tolist()


def same_key_pairs(keys: Float[Tensor, "n d_in"]) -> list[tuple[int, int]]:
    """Return pairs of facts whose keys are nearly parallel (cosine above 0.999)."""
    unit = torch.nn.functional.normalize(keys.double(), dim=1)
    close = torch.triu(unit @ unit.T > _SAME_KEY, diagonal=1)
    return [(int(i), int(j)) for i, j in close.nonzero().tolist()]


def written_fractions(
    written: Float[Tensor, "d_out n"], wanted: Float[Tensor, "d_out n"]
) -> list[float]:
    """Return the share of each wanted vector that is written, along its own direction."""
    norms = wanted.square().sum(dim=0)
    share = (written * wanted).sum(dim=0) / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return torch.where(norms > 0, share, torch.ones_like(share)).tolist()
