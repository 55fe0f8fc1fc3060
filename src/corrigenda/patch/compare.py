"""Sizes of a patch's changes, similarity of two patches, and their sum."""

from __future__ import annotations

# Parts of torch have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

import torch

from corrigenda.errors import NotExportable
from corrigenda.linalg.lowrank import LowRank
from corrigenda.patch.changes import Change, dense, norm, num_parameters
from corrigenda.patch.value import PatchValue
from corrigenda.patch.weights import WeightPatch

if TYPE_CHECKING:
    from corrigenda.patch.protocols import Patch


class SiteDescription(NamedTuple):
    """The change to one weight: `kind` of storage, Frobenius `norm`, `rank`, numbers `stored`.

    Of a patch that leaves the weights alone, one of its tensors, by its name, with its shape.
    """

    site: str
    kind: str
    norm: float
    rank: int | None
    stored: int


class SiteComparison(NamedTuple):
    """Two changes to one weight; a patch that leaves it alone counts as 0.

    Attributes:
        site: The weight's site.
        norm_a: Frobenius norm of the first change.
        norm_b: Frobenius norm of the second change.
        norm_difference: Frobenius norm of their difference.
        cosine: Cosine of the angle between them as vectors; None where one of them is 0.
    """

    site: str
    norm_a: float
    norm_b: float
    norm_difference: float
    cosine: float | None


def describe(patch: Patch) -> tuple[SiteDescription, ...]:
    """Describe every change of a patch, ordered by site; of others, their tensors."""
    if not isinstance(patch, WeightPatch):
        return tuple(
            SiteDescription(
                site=name,
                kind=" x ".join(map(str, tensor.shape)) or "number",
                norm=float(tensor.double().norm()),
                rank=None,
                stored=tensor.numel(),
            )
            for name, tensor in patch.tensors().items()
        )
    return tuple(
        SiteDescription(
            site=str(site),
            kind=type(change).__name__,
            norm=norm(change),
            rank=getattr(change, "rank", None),
            stored=num_parameters(change),
        )
        for site, change in patch.changes.items()
    )


def compare(a: Patch, b: Patch) -> tuple[SiteComparison, ...]:
    """Compare two weight patches site by site, in float64; low-rank pairs are never multiplied out.

    Raises:
        NotExportable (CG405): one of the patches changes no weights.
    """
    left, right = _require_weights(a).changes, _require_weights(b).changes
    result: list[SiteComparison] = []
    for site in [*left, *(site for site in right if site not in left)]:
        one, two = left.get(site), right.get(site)
        norm_a = norm(one) if one is not None else 0.0
        norm_b = norm(two) if two is not None else 0.0
        product, difference = 0.0, norm_a + norm_b
        if one is not None and two is not None:
            product, difference = _inner(one, two), _distance(one, two)
        result.append(
            SiteComparison(
                site=str(site),
                norm_a=norm_a,
                norm_b=norm_b,
                norm_difference=difference,
                cosine=product / (norm_a * norm_b) if norm_a and norm_b else None,
            )
        )
    return tuple(result)


def add_up(patches: Sequence[Patch]) -> PatchValue:
    """Compose patches into one that does what all do, in order; of weights alone, one of weights.

    Raises:
        NotExportable (CG405): one of them, of a plug-in, cannot be composed.
        WrongBase (CG401): they were made on different models.
        NotApplied (CG406): the same patch is in two of them.
    """
    left = list(map(_require_composable, patches))
    # Neighbours first, since each sum copies what it adds; composition is associative.
    while len(left) > 1:
        pairs = [left[place : place + 2] for place in range(0, len(left), 2)]
        left = [reduce(PatchValue.__add__, pair) for pair in pairs]
    return left[0]


def _require_composable(patch: Patch) -> PatchValue:
    if not isinstance(patch, PatchValue):
        raise NotExportable(
            f"a {type(patch).__name__} cannot be composed with other patches.",
            where=patch.header.method,
            hint="Its class must derive from `PatchValue`; apply the patches one after the other.",
        )
    return patch


def _require_weights(patch: Patch) -> WeightPatch:
    if not isinstance(patch, WeightPatch):
        raise NotExportable(
            f"a {type(patch).__name__} changes no weights.", where=patch.header.method
        )
    return patch


def _inner(one: Change, two: Change) -> float:
    """Return the inner product tr(A^T B); of factors, sum((L1^T L2) * (R1^T R2))."""
    if isinstance(one, LowRank) and isinstance(two, LowRank):
        left = one.left.double().T @ two.left.double()
        right = one.right.double().T @ two.right.double()
        return float((left * right).sum())
    return float((dense(one) * dense(two)).sum())


def _distance(one: Change, two: Change) -> float:
    """Return the Frobenius norm of A - B, from stacked factors where both have them."""
    if isinstance(one, LowRank) and isinstance(two, LowRank):
        left = torch.cat([one.left.double(), two.left.double()], dim=1)
        right = torch.cat([one.right.double(), -two.right.double()], dim=1)
        return float(LowRank(left, right).norm())
    return float((dense(one) - dense(two)).norm())
