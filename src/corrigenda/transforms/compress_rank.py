"""Rank compression: the strongest directions of a change only, ready for a LoRA adapter."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch.changes import Change, Rows
from corrigenda.transforms.spectra import decompose
from corrigenda.transforms.transform import Transform, TransformedChange


class CompressRank(Transform):
    """Keep the strongest singular directions of each change, as factors.

    With  dW = U diag(s) V^T  and s falling, the new change is the sum of the first k directions,
    which is the closest of its rank in the Frobenius norm. k is the smallest number whose share of
    the squared norm,  sum_{i <= k} s_i^2 / sum_i s_i^2,  reaches `energy`, and at most `rank`.

    What is left out is left out everywhere, at the facts' keys too: the header gives for each fact
    how far what is written there has moved (`residual`).

    Reference: Eckart and Young (1936). See the card, `compress_rank.md`.
    """

    name: ClassVar[str] = "compress"

    rank: int | None = Field(default=None, ge=1, description="Directions to keep, at most.")
    energy: float = Field(
        default=0.99, gt=0, le=1, description="Share of the squared norm that is enough."
    )

    def transform_change(
        self,
        site: Site,
        change: Change,
        lm: LanguageModel,
        keys: Float[Tensor, "d_in n"] | None,
    ) -> TransformedChange:
        """Compress one change."""
        left, values, right = decompose(change)
        shares = values.square().cumsum(0) / values.square().sum()
        # Rounding may leave the last share just below 1.
        enough = min(int((shares < self.energy).sum()) + 1, len(values))
        kept = enough if self.rank is None else min(enough, self.rank)
        report = {"rank": kept, "energy": float(shares[kept - 1])}
        thin = left[:, :kept] * values[:kept]
        if isinstance(change, Rows):
            full = torch.zeros(change.d_out, kept, dtype=thin.dtype)
            thin = full.index_copy(0, change.index, thin)
        return TransformedChange(LowRank(thin, right[:, :kept]), report)
