"""Norm clipping: bounds the length of a change, or of each of its rows or columns."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, JsonValue, model_validator
from torch import Tensor

from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch.changes import Change, Dense, Rows, norm, scale
from corrigenda.transforms.spectra import compute_spectral_norm
from corrigenda.transforms.transform import Transform, TransformedChange, read_weight


class ClipNorm(Transform):
    """Scale down what is longer than a bound; what is shorter stays as it is, to the bit.

    The bound is `relative` times the norm of the weight (of its row or column), or `absolute`.
    Rows are output units, columns input units. Directions, form and rank stay.

    See the card, `clip_norm.md`.
    """

    name: ClassVar[str] = "clip-norm"

    relative: float | None = Field(
        default=None, gt=0, description="Bound as a share of the norm of the weight."
    )
    absolute: float | None = Field(default=None, gt=0, description="Bound as a number.")
    of: Literal["matrix", "rows", "columns"] = Field(
        default="matrix", description="What is measured and scaled."
    )
    norm: Literal["frobenius", "spectral"] = Field(
        default="frobenius", description="Norm of a matrix; of rows and columns it is the length."
    )

    @model_validator(mode="after")
    def _require_one_bound(self) -> ClipNorm:
        if (self.relative is None) == (self.absolute is None):
            raise ValueError("give either `relative` or `absolute`")
        return self

    def transform_change(
        self,
        site: Site,
        change: Change,
        lm: LanguageModel,
        keys: Float[Tensor, "d_in n"] | None,
    ) -> TransformedChange:
        """Clip one change."""
        weight = read_weight(lm, site) if self.relative is not None else None
        lengths, bounds = self._measure_lengths(change), self._compute_bounds(change, weight)
        over = lengths > bounds
        factors = torch.where(over, bounds / lengths.clamp_min(1e-300), torch.ones_like(lengths))
        report: dict[str, JsonValue] = {
            "clipped": int(over.sum()),
            "of": len(lengths),
            "longest": float(lengths.max()),
            "smallest_factor": float(factors.min()),
        }
        if not bool(over.any()):
            return TransformedChange(change, report)
        return TransformedChange(_scale(change, factors, self.of), report)

    def _measure_lengths(self, change: Change) -> Float[Tensor, " k"]:
        """Return the lengths that are compared with the bound, float64."""
        if self.of == "matrix":
            size = norm(change) if self.norm == "frobenius" else _measure_spectral_norm(change)
            return torch.tensor([size], dtype=torch.float64)
        by_row = self.of == "rows"
        match change:
            case LowRank(left=left, right=right):
                own, other = (left, right) if by_row else (right, left)
                core = torch.linalg.qr(other.double(), mode="r").R
                return (own.double() @ core.T).norm(dim=1)
            case Dense(delta=delta):
                return delta.double().norm(dim=1 if by_row else 0)
            case Rows(index=index, values=values, d_out=d_out):
                if not by_row:
                    return values.double().norm(dim=0)
                lengths = torch.zeros(d_out, dtype=torch.float64)
                return lengths.index_copy(0, index, values.double().norm(dim=1))

    def _compute_bounds(
        self, change: Change, weight: Float[Tensor, "d_out d_in"] | None
    ) -> Float[Tensor, " k"]:
        """Return the largest length of each, float64."""
        count = {"matrix": 1, "rows": change.shape[0], "columns": change.shape[1]}[self.of]
        if weight is None:
            assert self.absolute is not None, "one of the two bounds is given"
            return torch.full((count,), self.absolute, dtype=torch.float64)
        assert self.relative is not None, "one of the two bounds is given"
        if self.of != "matrix":
            return self.relative * weight.norm(dim=1 if self.of == "rows" else 0)
        size = float(weight.norm()) if self.norm == "frobenius" else compute_spectral_norm(weight)
        return torch.tensor([self.relative * size], dtype=torch.float64)


def _measure_spectral_norm(change: Change) -> float:
    match change:
        case LowRank():
            return float(change.singular_values().max()) if change.rank else 0.0
        case Rows(values=full) | Dense(delta=full):
            return compute_spectral_norm(full)


def _scale(change: Change, factors: Float[Tensor, " k"], of: str) -> Change:
    """Return the change with its matrix, rows or columns scaled, in the same form."""
    if of == "matrix":
        return scale(change, float(factors))
    match change, of:
        case LowRank(left=left, right=right), "rows":
            return LowRank(left * factors[:, None].to(left.dtype), right)
        case LowRank(left=left, right=right), _:
            return LowRank(left, right * factors[:, None].to(right.dtype))
        case Rows(index=index, values=values, d_out=d_out), "rows":
            return Rows(index, values * factors[index, None].to(values.dtype), d_out)
        case Rows(index=index, values=values, d_out=d_out), _:
            return Rows(index, values * factors.to(values.dtype), d_out)
        case Dense(delta=delta), "rows":
            return Dense(delta * factors[:, None].to(delta.dtype))
        case Dense(delta=delta), _:
            return Dense(delta * factors.to(delta.dtype))
    raise AssertionError(f"no rows or columns: {of}")
