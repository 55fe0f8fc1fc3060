"""Least squares that merges the value changes of thousands of tokens, and its gradient.

Of keys U and wanted output changes D, one row a token, the merged change of the weight is S^T with
S = (U^T U + damping I)^-1 U^T D = U^T (U U^T + damping I)^-1 D. The second form is solved while
there are fewer tokens than inputs. Beyond that only the sums U^T U and U^T D are stored, so that
memory does not grow with the number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.engines.weight_shift import smaller_form
from corrigenda.linalg.cholesky import Cholesky
from corrigenda.linalg.lowrank import LowRank
from corrigenda.patch import Dense


class MergeGradients(NamedTuple):
    """Gradients of a loss at the inputs of a merge.

    Attributes:
        values: With respect to D.
        log_damping: With respect to the logarithm of the damping.
    """

    values: Float[Tensor, "tokens d_out"]
    log_damping: float


@dataclass(frozen=True, eq=False)
class MergedTokens:
    """Least-squares solution for the tokens of one weight; float64.

    Attributes:
        keys: U.
        damping: Above 0, in squared units of the keys.
        factor: Of U U^T + damping I where `dual`, else of U^T U + damping I.
        dual: Whether there are fewer tokens than inputs.
        solution: X = (U U^T + damping I)^-1 D where `dual`, else S.
    """

    keys: Float[Tensor, "tokens d_in"]
    damping: float
    factor: Cholesky
    dual: bool
    solution: Tensor

    @classmethod
    def of(
        cls,
        keys: Float[Tensor, "tokens d_in"],
        values: Float[Tensor, "tokens d_out"],
        damping: float,
        *,
        where: str = "",
    ) -> MergedTokens:
        """Minimise ||U S - D||^2 + damping ||S||^2.

        Raises:
            NonFinite (CG201): keys or values are infinite or NaN.
            IllConditioned (CG203): the system has no Cholesky factor.
        """
        keys, values = keys.double(), values.double()
        dual = keys.shape[0] < keys.shape[1]
        factor = _factorise(keys @ keys.T if dual else keys.T @ keys, damping, where)
        return cls(keys, damping, factor, dual, factor.solve(values if dual else keys.T @ values))

    def shift(self) -> Float[Tensor, "d_out d_in"]:
        """Return S^T, the change of the weight."""
        return self.solution.T @ self.keys if self.dual else self.solution.T

    def change(self) -> LowRank | Dense:
        """Return S^T in its smaller exact form; its rank is at most the number of tokens."""
        return smaller_form(self.solution.T, self.keys.T) if self.dual else Dense(self.solution.T)

    def backward(self, gradient: Float[Tensor, "d_out d_in"]) -> MergeGradients:
        """Take the gradient at the change back to values and damping.

        With H the gradient with respect to S and Q = (U^T U + damping I)^-1 H, these are U Q and
        -damping <Q, S>. Where `dual`, U Q = (U U^T + damping I)^-1 U H and <Q, S> = <U Q, X>.

        Reference: MALMEN (Tan et al. 2024), section 4.3.
        """
        back = gradient.T.to(self.keys)
        if self.dual:
            values = self.factor.solve(self.keys @ back)
            inner = (values * self.solution).sum()
        else:
            inverse = self.factor.solve(back)
            values, inner = self.keys @ inverse, (inverse * self.solution).sum()
        return MergeGradients(values, -self.damping * float(inner))


class TokenSum:
    """Accumulator of the tokens of one weight; memory is bounded by the size of the weight."""

    def __init__(self) -> None:
        """Create an empty accumulator."""
        self.count = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._moment: Tensor | None = None
        self._product: Tensor | None = None

    def add(
        self, keys: Float[Tensor, "tokens d_in"], values: Float[Tensor, "tokens d_out"]
    ) -> None:
        """Add tokens; once there are as many as inputs, only sums are stored."""
        self._keys.append(keys.double())
        self._values.append(values.double())
        self.count += len(keys)
        if self._moment is not None or self.count >= keys.shape[1]:
            stacked, wanted = torch.cat(self._keys), torch.cat(self._values)
            moment, product = stacked.T @ stacked, stacked.T @ wanted
            self._moment = moment if self._moment is None else self._moment + moment
            self._product = product if self._product is None else self._product + product
            self._keys, self._values = [], []

    def change(self, damping: float, *, where: str = "") -> LowRank | Dense:
        """Return the merged change of the weight.

        Raises:
            NonFinite (CG201): keys or values are infinite or NaN.
            IllConditioned (CG203): the system has no Cholesky factor.
        """
        if self._moment is None or self._product is None:
            keys, values = torch.cat(self._keys), torch.cat(self._values)
            return MergedTokens.of(keys, values, damping, where=where).change()
        return Dense(_factorise(self._moment, damping, where).solve(self._product).T)


def _factorise(matrix: Float[Tensor, "n n"], damping: float, where: str) -> Cholesky:
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return Cholesky.of(matrix + damping * identity, where=where)
