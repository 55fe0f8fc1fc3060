"""Projection onto the directions that old keys hardly use."""

from __future__ import annotations

# Parts of torch have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.errors import BadConfig, NonFinite
from corrigenda.linalg.cholesky import float64

# Letters: C second moment of keys (d_in d_in) - P projector (d_in d_in) - e eigenvalues of C
#          U free eigenvectors (d_in r), P = U U^T - V the others, P = I - V V^T


@dataclass(frozen=True, eq=False)
class NullSpace:
    """Orthogonal projector P on the key side, held as the smaller of its two bases.

    A change with dW = dW P leaks little into old keys: tr(dW C dW^T) <= threshold * ||dW||^2. It is
    a bound, not invariance: C of real text has full rank.

    Attributes:
        basis: U (d_in rank), or V (d_in d_in - rank) where `complement`; orthonormal, float64.
        complement: Whether `basis` spans what is removed instead of the free directions.
        threshold: Largest eigenvalue of C among the free directions, or the threshold asked for.
        energy: Share of tr(C) that the free directions hold.
    """

    basis: Float[Tensor, "d_in k"]
    complement: bool = False
    threshold: float = 0.0
    energy: float = 0.0

    def tensors(self) -> dict[str, Tensor]:
        """Return all fields by name, for `from_tensors`; CPU."""
        return {
            "basis": self.basis.cpu(),
            "complement": torch.tensor(self.complement),
            "threshold": torch.tensor(self.threshold, dtype=torch.float64),
            "energy": torch.tensor(self.energy, dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> NullSpace:
        """Restore a projector from `tensors`, to the bit."""
        return cls(
            tensors["basis"],
            bool(tensors["complement"]),
            float(tensors["threshold"]),
            float(tensors["energy"]),
        )

    @property
    def width(self) -> int:
        """Width d_in of the keys."""
        return self.basis.shape[0]

    @property
    def rank(self) -> int:
        """Number of free directions."""
        return self.width - self.basis.shape[1] if self.complement else self.basis.shape[1]

    def project(self, keys: Float[Tensor, "d_in n"]) -> Float[Tensor, "d_in n"]:
        """Return P K."""
        inside = self.basis @ (self.basis.T @ keys)
        return keys - inside if self.complement else inside

    def coordinates(self, keys: Float[Tensor, "d_in n"]) -> Float[Tensor, "size n"]:
        """Return keys in the free directions: U^T K, or P K where U is not stored."""
        return self.project(keys) if self.complement else self.basis.T @ keys

    def lift(self, coordinates: Float[Tensor, "size n"]) -> Float[Tensor, "d_in n"]:
        """Return the vectors that `coordinates` belong to; the inverse of `coordinates`."""
        return self.project(coordinates) if self.complement else self.basis @ coordinates

    def to_dense(self) -> Float[Tensor, "d_in d_in"]:
        """Return P itself."""
        return self.project(torch.eye(self.width, dtype=self.basis.dtype, device=self.basis.device))


def null_space(
    moment: Float[Tensor, "d_in d_in"], *, threshold: float | None = None, energy: float = 0.02
) -> NullSpace:
    """Return the projector on the eigenvectors of C with the smallest eigenvalues.

    Args:
        moment: C, the mean (not the sum) of k k^T.
        threshold: Keep eigenvalues below this absolute number, as the authors' code does (0.02).
            It depends on the scale of C; without it the choice is by `energy`.
        energy: Keep as many directions as together hold at most this share of tr(C).

    Returns:
        The projector; float64, on the device of the moment.

    Raises:
        NonFinite (CG201): C holds infinities or NaN.
        BadConfig (CG502): no direction would be left.

    Example:
        >>> null_space(torch.diag(torch.tensor([1.0, 0.001])), energy=0.02).rank
        1

    Reference: AlphaEdit (Fang et al. 2025), section 3.2; the choice by energy is
    what its authors advise.
    """
    matrix = float64(moment)
    if not bool(torch.isfinite(matrix).all()):
        raise NonFinite("the second moment holds infinities or NaN.")
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    total = values.clamp(min=0).sum()
    shares = values.clamp(min=0).cumsum(0) / total
    if threshold is not None:
        rank = int((values < threshold).sum())
    else:
        rank = int((shares <= energy).sum())
    if rank == 0:
        chosen = f"threshold {threshold:g}" if threshold is not None else f"energy {energy:g}"
        raise BadConfig(
            f"{chosen} leaves no direction of the {len(values)} free.",
            hint=f"The smallest eigenvalue is {float(values[0]):.3g} and holds "
            f"{float(shares[0]):.3g} of the trace; choose a larger value.",
        )
    complement = rank > len(values) / 2
    return NullSpace(
        vectors[:, rank:].clone() if complement else vectors[:, :rank].clone(),
        complement,
        float(values[rank - 1]) if threshold is None else threshold,
        float(shares[rank - 1]),
    )
