"""A matrix held as two thin factors, so that its rank stays exact and its memory small."""

from __future__ import annotations

# Parts of torch have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """Matrix `left @ right.T`, of shape (d_out, d_in), never formed unless asked for.

    Two values are equal when both factors agree bit for bit.

    Attributes:
        left: Float[Tensor, "d_out r"], one column for each direction of the output.
        right: Float[Tensor, "d_in r"], what each of them reads from the input.

    Example:
        >>> one = torch.ones(2, 1, dtype=torch.float64)
        >>> (LowRank(one, one) + LowRank(one, one)).to_dense()[0, 0].item()
        2.0
    """

    left: Float[Tensor, "d_out r"]
    right: Float[Tensor, "d_in r"]

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[1]:
            raise ValueError(
                f"factors must be (d_out, r) and (d_in, r), got {tuple(self.left.shape)} "
                f"and {tuple(self.right.shape)}"
            )

    @classmethod
    def zeros(cls, d_out: int, d_in: int) -> LowRank:
        """Return the zero matrix, with no columns at all; float64."""
        return cls(
            torch.zeros(d_out, 0, dtype=torch.float64), torch.zeros(d_in, 0, dtype=torch.float64)
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (d_out, d_in) of the matrix."""
        return self.left.shape[0], self.right.shape[0]

    @property
    def rank(self) -> int:
        """Number of columns of the factors: an upper bound of the rank of the matrix."""
        return self.left.shape[1]

    def to_dense(self) -> Float[Tensor, "d_out d_in"]:
        """Return the full matrix, in the dtype of the factors."""
        return self.left @ self.right.T

    def __matmul__(self, keys: Float[Tensor, "d_in n"]) -> Float[Tensor, "d_out n"]:
        """Return what the matrix adds at these keys (one a column), without forming it."""
        return self.left @ (self.right.T @ keys)

    def __add__(self, other: LowRank) -> LowRank:
        """Return the sum, with both sets of columns side by side; associative to the bit."""
        if self.shape != other.shape:
            raise ValueError(f"cannot add {other.shape} to {self.shape}")
        dtype = torch.promote_types(self.left.dtype, other.left.dtype)
        return LowRank(
            torch.cat([self.left.to(dtype), other.left.to(dtype)], dim=1),
            torch.cat([self.right.to(dtype), other.right.to(dtype)], dim=1),
        )

    def __neg__(self) -> LowRank:
        """Return the matrix with the opposite sign."""
        return LowRank(-self.left, self.right)

    def times(self, factor: float) -> LowRank:
        """Return the matrix times a number."""
        return LowRank(self.left * factor, self.right)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, LowRank)
            and self.left.dtype == other.left.dtype
            and self.right.dtype == other.right.dtype
            and torch.equal(self.left, other.left)
            and torch.equal(self.right, other.right)
        )

    __hash__ = None  # type: ignore[assignment]  # holds tensors, compared by content

    def singular_values(self) -> Float[Tensor, " k"]:
        """Return at most min(rank, d_out, d_in) singular values, largest first; float64.

        Computed from the small core of two QR decompositions, so that parts that cancel do cancel.
        """
        return torch.linalg.svdvals(self._factor()[1])

    def norm(self) -> float:
        """Return the Frobenius norm, accurate also where columns nearly cancel."""
        return float(torch.linalg.matrix_norm(self._factor()[1])) if self.rank else 0.0

    def compress(self, tolerance: float | None = None) -> LowRank:
        """Return the same matrix with as few columns as possible; float64.

        Args:
            tolerance: Singular values up to this share of the largest are dropped. By default only
                those that rounding alone can explain.

        Returns:
            Factors with orthogonal columns, those of `right` of unit length, largest first.
        """
        left, core, right = self._factor()
        u, s, vh = torch.linalg.svd(core, full_matrices=False)
        if tolerance is None:
            tolerance = max(self.shape) * torch.finfo(self.left.dtype).eps
        keep = s > tolerance * s[:1].sum()
        return LowRank((left @ u[:, keep]) * s[keep], right @ vh[keep].T)

    def _factor(self) -> tuple[Tensor, Tensor, Tensor]:
        left, left_core = torch.linalg.qr(self.left.double())
        right, right_core = torch.linalg.qr(self.right.double())
        return left, left_core @ right_core.T, right
