"""RECT: keep the entries that change most for their size, leave large weights alone."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field, JsonValue
from torch import Tensor

from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch.changes import Change, Dense, Rows, dense
from corrigenda.transforms.transform import Transform, TransformedChange

GUARD = 1e-8
"""Added to every |W|, so that a weight of zero has a finite relative change."""


class KeepLargest(Transform):
    """Keep the share of entries with the largest relative change |dW| / (|W| + 1e-8).

    W is the weight in front of the change. The share is counted within each matrix; of equal
    changes those of lower rows, then lower columns, are kept. What is kept is not changed. The
    result is sparse and of full rank; only `keep=1` leaves factors as they are, and changes by row
    stay so.

    Reference: RECT (Gu et al. 2024), section 5. See the card, `keep_largest.md`.
    """

    name: ClassVar[str] = "rect"

    keep: float = Field(default=0.4, ge=0, le=1, description="Share of entries that is kept.")

    def transform_change(
        self,
        site: Site,
        change: Change,
        lm: LanguageModel,
        keys: Float[Tensor, "d_in n"] | None,
    ) -> TransformedChange:
        """Mask one change."""
        weight = lm.values(site).detach()
        count = round(self.keep * weight.numel())
        guarded = int((weight.abs() < GUARD).sum())
        report: dict[str, JsonValue] = {
            "entries": weight.numel(),
            "kept": count,
            "guarded": guarded,
        }
        if count == weight.numel():
            return TransformedChange(change, report)
        # Rows that do not change have relative change 0 and are the first to go.
        index = change.index if isinstance(change, Rows) else slice(None)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        delta = _read_entries(change, dtype)
        relative = delta.abs() / (weight[index].cpu().to(delta.dtype).abs() + GUARD)
        kept = torch.where(mark_largest(relative, count), delta, torch.zeros_like(delta))
        report["kept"] = min(count, int((delta != 0).sum()))
        if not bool(kept.any()):
            return TransformedChange(None, report)
        if isinstance(change, Rows):
            return TransformedChange(Rows(change.index, kept, change.d_out), report)
        return TransformedChange(Dense(kept), report)


def mark_largest(values: Float[Tensor, "rows columns"], count: int) -> Bool[Tensor, "rows columns"]:
    """Mark exactly the `count` largest entries; of equal ones the first. All, if there are fewer.

    By order statistics, since quantile functions are limited to 2^24 elements.

    Example:
        >>> mark_largest(torch.tensor([[1.0, 3.0], [3.0, 2.0]]), 1).tolist()
        [[False, True], [False, False]]
    """
    flat = values.flatten()
    if count <= 0 or count >= len(flat):
        return torch.full_like(values, count > 0, dtype=torch.bool)
    threshold = flat.kthvalue(len(flat) - count + 1).values
    chosen = flat > threshold
    ties = (flat == threshold).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen.view_as(values)


def _read_entries(change: Change, dtype: torch.dtype) -> Tensor:
    """Return the numbers that may change: the rows' own, or the whole matrix."""
    match change:
        case Rows(values=values):
            return values
        case Dense(delta=delta):
            return delta
        case _:
            return dense(change).to(dtype)
