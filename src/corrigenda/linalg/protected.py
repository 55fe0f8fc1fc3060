"""Keys of earlier edits, stored so that a solve's cost does not grow with their number."""

from __future__ import annotations

# Parts of torch have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.errors import IllConditioned

# Letters: B keys of a batch (size n) - B_p keys of earlier edits (size p), both in coordinates
#          where a change costs weight * ||dW||^2 (whitened, or projected)
#          T lower factor of weight I + B_p^T B_p (p p) - F of weight I + B_p B_p^T (size size)

_MOST_COLUMNS = 0.25
_SMALLEST_BLOCK = 64


@dataclass(frozen=True, eq=False)
class Protected:
    """Keys of earlier edits in the form that least squares needs; never changed in place.

    Up to a quarter as many keys as coordinates, it holds them as columns, with the factor T of the
    small system. Beyond that it holds the factor F of the large one and no columns. Both are exact
    and are brought up to date by the new keys alone, so that neither time nor memory grows with the
    number of edits for good.

    Attributes:
        weight: Price of a change in these coordinates, above 0.
        lower: T or F, float64.
        columns: B_p, float64; None where `lower` is F.
        count: p, the number of keys so far.

    Example:
        >>> one = torch.eye(8, dtype=torch.float64)
        >>> kept = Protected.empty(8, 1.0).with_keys(one[:, :1])
        >>> kept.solve(2 * one[:, :2]).diagonal().round(decimals=3).tolist()  # 2 / 6 and 2 / 5
        [0.333, 0.4]
    """

    weight: float
    lower: Tensor
    columns: Float[Tensor, "size p"] | None
    count: int

    @classmethod
    def empty(cls, size: int, weight: float, device: torch.device | str = "cpu") -> Protected:
        """Return a value without keys."""
        nothing = torch.zeros(size, 0, dtype=torch.float64, device=device)
        return cls(weight, nothing[:0], nothing, 0)

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return (self.lower if self.columns is None else self.columns).shape[0]

    def solve(self, keys: Float[Tensor, "size n"]) -> Float[Tensor, "size n"]:
        """Return (weight I + B_p B_p^T + B B^T)^-1 B, in O(n size^2).

        Raises:
            IllConditioned (CG203): the system has no Cholesky factor.
        """
        B = keys.to(self.lower)
        n = B.shape[1]
        if self.columns is None or self.count + n > self.size:
            F = self._drop_columns().lower
            if n > self.size:
                return torch.cholesky_solve(B, _add_columns(F, B))
            W = torch.linalg.solve_triangular(F, B, upper=False)
            small = torch.cholesky_solve(_make_identity(n, W), _factor(W.T @ W, 1.0))
            return torch.linalg.solve_triangular(F.T, W @ small, upper=True)
        X, S = self._solve_border(B)
        last = torch.cholesky_solve(_make_identity(n, B), S)
        first = torch.linalg.solve_triangular(self.lower.T, X @ last, upper=True)
        return B @ last - self.columns @ first

    def with_keys(self, keys: Float[Tensor, "size n"]) -> Protected:
        """Return a value with these keys added.

        Raises:
            IllConditioned (CG203): the system has no Cholesky factor.
        """
        B = keys.to(self.lower)
        count = self.count + B.shape[1]
        if self.columns is None or count > _MOST_COLUMNS * self.size:
            return Protected(self.weight, _add_columns(self._drop_columns().lower, B), None, count)
        X, S = self._solve_border(B)
        above = torch.cat([self.lower, torch.zeros_like(X)], dim=1)
        lower = torch.cat([above, torch.cat([X.T, S], dim=1)])
        return Protected(self.weight, lower, torch.cat([self.columns, B], dim=1), count)

    def with_weight(self, weight: float) -> Protected:
        """Return the same keys under another weight; factored anew if it differs."""
        if weight == self.weight:
            return self
        if self.columns is not None:
            return Protected.empty(self.size, weight, self.lower.device).with_keys(self.columns)
        system = self.lower @ self.lower.T
        lower = _factor(system, weight - self.weight)
        return Protected(weight, lower, None, self.count)

    def tensors(self) -> dict[str, Tensor]:
        """Return all fields, by the same names in both forms, for `from_tensors`; CPU."""
        columns = self.lower[:, :0] if self.columns is None else self.columns
        return {
            "weight": torch.tensor(self.weight, dtype=torch.float64),
            "count": torch.tensor(self.count, dtype=torch.int64),
            "lower": self.lower.cpu(),
            "columns": columns.cpu(),
        }

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu"
    ) -> Protected:
        """Restore a value from `tensors`, to the bit."""
        columns, count = tensors["columns"], int(tensors["count"])
        return cls(
            float(tensors["weight"]),
            tensors["lower"].to(device),
            columns.to(device) if columns.shape[1] == count else None,
            count,
        )

    def _solve_border(self, B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows that new keys add to T: X^T, and S, the factor of what is left."""
        assert self.columns is not None
        X = torch.linalg.solve_triangular(self.lower, self.columns.T @ B, upper=False)
        return X, _factor(B.T @ B - X.T @ X, self.weight)

    def _drop_columns(self) -> Protected:
        """Return the same keys without columns."""
        if self.columns is None:
            return self
        lower = _factor(self.columns @ self.columns.T, self.weight)
        return Protected(self.weight, lower, None, self.count)


def _make_identity(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _factor(system: Tensor, weight: float) -> Tensor:
    """Return the lower factor of system + weight I; `system` is overwritten."""
    system.diagonal().add_(weight)
    lower, info = torch.linalg.cholesky_ex(system)
    if int(info):
        raise IllConditioned(
            f"the system of {system.shape[0]} keys has no Cholesky factor with weight {weight:g}.",
            hint="The weight is lost to rounding against the keys; choose a larger one.",
        )
    return lower


def _add_columns(lower: Tensor, columns: Tensor) -> Tensor:
    """Return the lower factor of F F^T + B B^T by rotations, block by block: O(n size^2)."""
    size, n = columns.shape
    if n > size / 2:
        return _factor(lower @ lower.T + columns @ columns.T, 0.0)
    lower, rest = lower.clone(), columns.T.clone()
    block = max(_SMALLEST_BLOCK, n)
    for begin in range(0, size if n else 0, block):
        end = min(begin + block, size)
        stacked = torch.cat([lower[begin:, begin:end].T, rest[:, begin:]])
        width = end - begin
        rotation, _ = torch.linalg.qr(stacked[:, :width], mode="complete")
        turned = rotation.T @ stacked
        turned[:width] *= turned.diagonal()[:width].sign()[:, None]
        lower[begin:, begin:end] = turned[:width].triu().T
        rest[:, begin:] = turned[width:]
    return lower
