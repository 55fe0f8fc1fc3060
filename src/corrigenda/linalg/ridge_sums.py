"""One ridge regression over all records of a stream, from which any of them can be taken out."""

from __future__ import annotations

# Parts of torch have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.errors import IllConditioned
from corrigenda.linalg.protected import Protected

# Letters: B keys of a batch (size n), in coordinates where a change costs weight * ||dW||^2
#          R wanted outputs of a batch, without those of the unedited weight (d_out n)
#          M system weight I + sum B B^T (size size) - D change in these coordinates (d_out size)
#          X = M^-1 B and S = I - B^T X for the B that are taken out

_CHECKED_ROWS = 16


@dataclass(frozen=True, eq=False)
class RidgeSums:
    """Sums of a ridge regression, whose solution is `cross (weight I + gram)^-1`; a value.

    The sums are taken in the order in which batches are added, so that the same batches give the
    same bits. Columns are taken out by `without_columns`, in O(size^2) each, up to rounding; for
    the exact answer the sums are taken anew without them.

    Attributes:
        weight: Price of a change in these coordinates, above 0.
        gram: Sum of B B^T, float64.
        cross: Sum of R B^T, float64.
        gone: B of the columns that are taken out of these sums.
        gone_outputs: Their R.
        count: Number of columns that were added.
        whole: The same sums with nothing taken out; None where nothing is.

    Example:
        >>> one = torch.eye(2, dtype=torch.float64)
        >>> both = RidgeSums.empty(2, 2, 1.0).with_columns(one, 4 * one)
        >>> left = both.without_columns(one[:, :1], 4 * one[:, :1]).solution
        >>> torch.allclose(left, torch.tensor([[0, 0], [0, 2]], dtype=left.dtype))
        True
    """

    weight: float
    gram: Float[Tensor, "size size"]
    cross: Float[Tensor, "d_out size"]
    gone: Float[Tensor, "size j"]
    gone_outputs: Float[Tensor, "d_out j"]
    count: int = 0
    whole: RidgeSums | None = None

    @classmethod
    def empty(
        cls, size: int, d_out: int, weight: float, device: torch.device | str = "cpu"
    ) -> RidgeSums:
        """Return the sums of no batch."""
        zeros = torch.zeros(size + d_out, size, dtype=torch.float64, device=device)
        gram, cross = zeros[:size].clone(), zeros[size:].clone()
        return cls(weight, gram, cross, gram[:, :0], cross[:, :0])

    def with_columns(
        self, keys: Float[Tensor, "size n"], outputs: Float[Tensor, "d_out n"]
    ) -> RidgeSums:
        """Return the sums with a batch added; nothing may have been taken out of them."""
        assert self.whole is None, "sums are taken anew before they grow"
        B, R = keys.to(self.gram), outputs.to(self.gram)
        count = self.count + B.shape[1]
        return replace(self, gram=self.gram + B @ B.T, cross=self.cross + R @ B.T, count=count)

    def without_columns(
        self, keys: Float[Tensor, "size j"], outputs: Float[Tensor, "d_out j"]
    ) -> RidgeSums:
        """Return the sums with columns of earlier batches taken out."""
        return replace(
            self,
            gone=torch.cat([self.gone, keys.to(self.gram)], dim=1),
            gone_outputs=torch.cat([self.gone_outputs, outputs.to(self.gram)], dim=1),
            whole=self.whole or self,
        )

    @cached_property
    def lower(self) -> Float[Tensor, "size size"]:
        """Lower factor of weight I + gram, with nothing taken out.

        Raises:
            IllConditioned (CG203): there is none.
        """
        if self.whole is not None:
            return self.whole.lower
        system = self.gram.clone()
        system.diagonal().add_(self.weight)
        lower, info = torch.linalg.cholesky_ex(system)
        if int(info):
            raise IllConditioned(
                f"the system of all keys has no Cholesky factor with weight {self.weight:g}.",
                hint="The weight is lost to rounding against the keys; choose a larger one.",
            )
        return lower

    @cached_property
    def solution(self) -> Float[Tensor, "d_out size"]:
        """The change D, in these coordinates.

        Raises:
            IllConditioned (CG203): the system has no Cholesky factor, or none is left of it.
        """
        if self.whole is None:
            return torch.cholesky_solve(self.cross.T, self.lower).T.contiguous()
        before = self.whole.solution
        X, S = self._gone_factors
        missing = self.gone_outputs - before @ self.gone
        return before - torch.cholesky_solve(missing.T, S).T @ X.T

    def protect(self) -> Protected:
        """Return the keys of all batches in the form in which a solve protects them."""
        assert self.whole is None, "sums are taken anew before they grow"
        return Protected(self.weight, self.lower, None, self.count)

    def rounding_errors(self) -> Float[Tensor, "rows size"]:
        """Return by how much 16 rows of `solution`, evenly spread, miss the regression.

        It is what one step of refinement would correct: exact up to the square of rounding.
        """
        rows = torch.linspace(0, len(self.cross) - 1, _CHECKED_ROWS, dtype=torch.float64)
        rows = rows.round().long().unique().to(self.cross.device)
        D = self.solution[rows]
        product = D @ self.gram + self.weight * D - (D @ self.gone) @ self.gone.T
        wanted = self.cross[rows] - self.gone_outputs[rows] @ self.gone.T
        error = torch.cholesky_solve((product - wanted).T, self.lower)
        if self.whole is not None:
            X, S = self._gone_factors
            error = error + X @ torch.cholesky_solve(self.gone.T @ error, S)
        return error.T

    @cached_property
    def _gone_factors(self) -> tuple[Tensor, Tensor]:
        """Return X and the factor of S of the columns that are taken out."""
        X = torch.cholesky_solve(self.gone, self.lower)
        left = -self.gone.T @ X
        left.diagonal().add_(1.0)
        S, info = torch.linalg.cholesky_ex((left + left.T) / 2)
        if int(info):
            raise IllConditioned(
                "taking these columns out by down-dating leaves no system.",
                hint="Take the sums anew instead.",
            )
        return X, S
