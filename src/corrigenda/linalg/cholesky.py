"""One factor of a second moment, computed once and used for every edit of a layer."""

from __future__ import annotations

# Parts of torch have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.errors import IllConditioned, NonFinite

# Letters: C second moment of keys (d_in d_in) - L its lower Cholesky factor, C = L L^T

_FIRST_JITTER = 1e-10
_LAST_JITTER = 1e-5


@dataclass(frozen=True, eq=False)
class Cholesky:
    """Lower Cholesky factor of a symmetric positive definite matrix, float64.

    Attributes:
        lower: L, with C + jitter * I = L L^T.
        jitter: What had to be added to the diagonal, in the units of C; 0 for a healthy matrix.
    """

    lower: Float[Tensor, "d_in d_in"]
    jitter: float = 0.0

    @classmethod
    def of(cls, matrix: Float[Tensor, "d_in d_in"], *, where: str = "") -> Cholesky:
        """Factor a matrix in float64; it is made symmetric first.

        Where rounding has made it slightly indefinite, 1e-10 of the mean of its diagonal is added,
        ten times more on each failure up to 1e-5, and recorded in `jitter`.

        Args:
            matrix: C, symmetric positive definite up to rounding.
            where: What the matrix belongs to, for messages.

        Raises:
            NonFinite (CG201): C holds infinities or NaN.
            IllConditioned (CG203): C has no factor even so.

        Example:
            >>> Cholesky.of(4 * torch.eye(2)).lower[0, 0].item()
            2.0
        """
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"a second moment is square, got {tuple(matrix.shape)}")
        matrix = float64(matrix)
        if not bool(torch.isfinite(matrix).all()):
            raise NonFinite(
                "the second moment holds infinities or NaN.",
                where=where,
                hint="Fit again in float32 or bfloat16; float16 activations can overflow.",
            )
        matrix = (matrix + matrix.T).div_(2)
        mean = float(matrix.diagonal().mean()) if matrix.numel() else 1.0
        share = 0.0
        while share <= _LAST_JITTER and mean > 0:
            shifted = matrix
            if share:
                shifted = matrix.clone()
                shifted.diagonal().add_(share * mean)
            lower, info = torch.linalg.cholesky_ex(shifted)
            if int(info) == 0:
                return cls(lower, share * mean)
            share = share * 10 if share else _FIRST_JITTER
        raise IllConditioned(
            f"the second moment ({len(matrix)} x {len(matrix)}) is not positive definite, not even "
            f"with {_LAST_JITTER:g} of its mean diagonal added.",
            where=where,
            hint="Fit on more text, or ask for shrinkage (for example 0.01).",
        )

    @property
    def size(self) -> int:
        """Size d_in of the matrix."""
        return self.lower.shape[0]

    def whiten(self, columns: Float[Tensor, "d_in n"]) -> Float[Tensor, "d_in n"]:
        """Return L^-1 B, coordinates in which C is the identity."""
        return torch.linalg.solve_triangular(self.lower, columns, upper=False)

    def unwhiten(self, columns: Float[Tensor, "d_in n"]) -> Float[Tensor, "d_in n"]:
        """Return L^-T B; after `whiten` this completes C^-1 B."""
        return torch.linalg.solve_triangular(self.lower.T, columns, upper=True)

    def solve(self, columns: Float[Tensor, "d_in n"]) -> Float[Tensor, "d_in n"]:
        """Return C^-1 B by two triangular solves."""
        return self.unwhiten(self.whiten(columns))

    def matrix(self) -> Float[Tensor, "d_in d_in"]:
        """Return C itself, with the jitter."""
        return self.lower @ self.lower.T


def float64(tensor: Tensor) -> Tensor:
    """Return the tensor in float64, detached; on the CPU if its device has no float64."""
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).to(torch.float64)
