"""The closed-form updates of locate-then-edit methods, in float64 and as factors.

Every solver works in whitened coordinates, B = L^-1 K, where the second moment is the identity: the
Gram matrix G = B^T B = K^T C^-1 K is symmetric by construction and only n x n systems depend on the
facts. With more facts than coordinates the same updates come from d_in x d_in systems.
"""

from __future__ import annotations

# Parts of torch have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.errors import BadConfig, DependentKeys, IllConditioned, NonFinite
from corrigenda.linalg.cholesky import Cholesky, float64
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.project import NullSpace
from corrigenda.linalg.protected import Protected

# Letters: K keys (d_in n) - R residuals (d_out n) - C second moment of keys (d_in d_in) = L L^T
#          B = L^-1 K whitened keys - G = K^T C^-1 K Gram matrix (n n) - P projector (d_in d_in)
#          k, r one key and its residual - u = C^-1 k direction

Moment = Cholesky | Tensor | None
"""A factor (reused, best), a second moment (factored here), or None for the identity."""

_MAX_CONDITION = 1e10
_EPSILON = torch.finfo(torch.float64).eps


class GramReport(NamedTuple):
    """Condition of a set of keys: how near they are to being dependent.

    Attributes:
        condition: Condition number of D^-1/2 G D^-1/2 with D = diag G; 1 for orthogonal keys.
        closest: The two most parallel keys (columns); (0, 0) for a single key.
        cosine: Their cosine in the metric C^-1.
    """

    condition: float
    closest: tuple[int, int]
    cosine: float


def rank_one(
    key: Float[Tensor, " d_in"],
    residual: Float[Tensor, " d_out"],
    moment: Moment,
    *,
    at: Float[Tensor, " d_in"] | None = None,
) -> LowRank:
    """Smallest change, in the metric of old keys, that adds a vector at one key.

    Minimises  tr(dW C dW^T)  subject to  dW k = r; the answer is  r u^T / (u^T k)  with u = C^-1 k.

    Args:
        key: k, which sets the direction u.
        residual: r = v - W k, in the units of the layer's output.
        moment: C or its factor; None for the identity.
        at: The key at which the residual is added, if not `key`. Original ROME takes the direction
            from the averaged key and the denominator from the key of the bare prompt; see
            `key_agreement`.

    Returns:
        Factors of rank 1, float64, with dW at = r.

    Raises:
        NonFinite (CG201): an argument holds infinities or NaN.
        DependentKeys (CG202): u^T k vanishes, so that no finite change exists.
        IllConditioned (CG203): C has no Cholesky factor.

    Example:
        >>> k, r = torch.tensor([2.0, 0.0]), torch.tensor([1.0])
        >>> rank_one(k, r, None).to_dense().tolist()
        [[0.5, 0.0]]

    Reference: ROME (Meng et al. 2022), eq. 2; symmetric keys: R-ROME (Gupta et al. 2024).
    """
    k, r = float64(key), float64(residual)
    a = k if at is None else float64(at)
    _require_finite(key=k, residual=r, at=a)
    u = _solve_direction(_factor(moment), k)
    denominator = torch.dot(u, a)
    if bool(denominator.abs() <= _EPSILON * u.norm() * a.norm()):
        raise DependentKeys(
            "the key has no component along the direction of the update.",
            hint="The key is zero, or the averaged key and the prompt's own key are orthogonal; "
            "use the averaged key in both places (R-ROME).",
        )
    return LowRank(r[:, None] / denominator, u[:, None])


def key_agreement(key: Float[Tensor, " d_in"], at: Float[Tensor, " d_in"], moment: Moment) -> float:
    """Return (u^T at) / (u^T k), u = C^-1 k: 1 if both keys act alike, near 0 a broken edit.

    Original ROME divides by u^T at; below about 0.1 its change becomes so large that one edit ruins
    the model.

    Reference: R-ROME (Gupta et al. 2024), section 3.
    """
    k, a = float64(key), float64(at)
    u = _solve_direction(_factor(moment), k)
    return float(torch.dot(u, a) / torch.dot(u, k))


def gram_condition(keys: Float[Tensor, "d_in n"], moment: Moment) -> GramReport:
    """Return the condition number of the keys' normalised Gram matrix and the closest pair.

    It is infinite where a key is zero, keys are dependent up to rounding, or n > d_in.
    """
    _require_finite(keys=keys)
    return _NormalisedKeys.of(_whiten(_factor(moment), float64(keys))).report()


def equality(
    keys: Float[Tensor, "d_in n"],
    residuals: Float[Tensor, "d_out n"],
    moment: Moment,
    *,
    max_condition: float = _MAX_CONDITION,
) -> LowRank:
    """Smallest change, in the metric of old keys, that adds exactly these vectors at these keys.

    Minimises  tr(dW C dW^T)  subject to  dW K = R; the answer is  R G^-1 K^T C^-1  with
    G = K^T C^-1 K. For one key it is `rank_one`. Scaling C changes nothing.

    Args:
        keys: K, one column per fact, linearly independent.
        residuals: R = V - W K, in the units of the layer's output.
        moment: C or its factor; None for the identity.
        max_condition: Largest accepted condition number of the normalised Gram matrix.

    Returns:
        Factors of rank min(n, d_out), float64; up to n = d_out, `left` is R and `right` is
        C^-1 K G^-1.

    Raises:
        NonFinite (CG201): an argument holds infinities or NaN.
        DependentKeys (CG202): the keys are linearly dependent (a duplicate, or n > d_in).
        IllConditioned (CG203): nearly dependent beyond `max_condition`, or C has no factor.

    Example:
        >>> one = torch.eye(2, dtype=torch.float64)
        >>> torch.allclose(equality(one, one, one).to_dense(), one)
        True

    Reference: EMMET (Gupta et al. 2024), eq. 7.   See also: `ridge`.
    """
    K, R = _check_columns(keys, residuals)
    factor = _factor(moment)
    B = _whiten(factor, K)
    return _thin(R, _unwhiten(factor, _solve_dual(B, max_condition)))


def ridge(
    keys: Float[Tensor, "d_in n"],
    residuals: Float[Tensor, "d_out n"],
    moment: Moment,
    *,
    weight: float,
    protected: Float[Tensor, "d_in n_protected"] | Protected | None = None,
) -> LowRank:
    """Least-squares update that pays for disturbing old keys.

    Minimises  ||dW K - R||^2 + weight * tr(dW C dW^T) + ||dW K_p||^2  over dW; the answer is
    R K^T (weight C + K K^T + K_p K_p^T)^-1.

    Args:
        keys: K, one column per fact.
        residuals: R = V - W K, in the units of the layer's output.
        moment: C or its factor; None for the identity.
        weight: lambda >= 0. Large keeps old behaviour; with 0 this is `equality`.
        protected: K_p, keys of earlier edits that should keep their outputs (sequential MEMIT); or,
            with `weight` as its weight, `Protected` whitened keys, which cost no more when they are
            many.

    Returns:
        Factors of rank <= min(n, d_in, d_out), float64; while n is the least, `left` is R.

    Raises:
        NonFinite (CG201): an argument holds infinities or NaN.
        DependentKeys (CG202): weight 0 and dependent keys.
        IllConditioned (CG203): the system has no Cholesky factor.
        BadConfig (CG502): negative weight.

    Example:
        >>> one = torch.eye(2, dtype=torch.float64)
        >>> torch.allclose(ridge(one, one, one, weight=1.0).to_dense(), one / 2)
        True

    Reference: MEMIT (Meng et al. 2023), eq. 14; equal to EMMET with ridge gamma = weight by
    K^T (weight C + K K^T)^-1 = (weight I + G)^-1 K^T C^-1.   See also: `null_space_ridge`.
    """
    K, R = _check_columns(keys, residuals)
    n = K.shape[1]
    _require_weight(weight)
    factor = _factor(moment)
    if weight == 0.0:
        assert not isinstance(protected, Protected), "a `Protected` has a weight above 0"
        whitened = _whiten(factor, _append_protected(K, protected))
        return _thin(R, _unwhiten(factor, _solve_dual(whitened, _MAX_CONDITION)[:, :n]))
    B = _whiten(factor, K)
    if not isinstance(protected, Protected):
        protected = _protect(B, weight, _whiten(factor, _append_protected(K[:, :0], protected)))
    assert protected.weight == weight, "protected at another weight; see `Protected.with_weight`"
    return _thin(R, _unwhiten(factor, protected.solve(B)))


def null_space_ridge(
    keys: Float[Tensor, "d_in n"],
    residuals: Float[Tensor, "d_out n"],
    projector: NullSpace,
    *,
    protected: Float[Tensor, "d_in n_protected"] | Protected | None = None,
    weight: float = 1.0,
) -> LowRank:
    """Ridge update confined to the directions that old keys hardly use.

    Minimises  ||dW K - R||^2 + weight ||dW||^2 + ||dW K_p||^2  over dW with dW = dW P; the answer
    is  R K^T P ((K K^T + K_p K_p^T) P + weight I)^-1.

    Args:
        keys: K, one column per fact.
        residuals: R = V - W K, in the units of the layer's output.
        projector: P, from `null_space`.
        protected: K_p, keys of earlier edits that should keep their outputs; or, with `weight` as
            its weight, `Protected` keys in the projector's coordinates.
        weight: L2 > 0, in squared units of the keys (1 in the paper, 10 in the authors' code).

    Returns:
        Factors of rank <= min(n, d_in, d_out), float64, with dW P = dW.

    Raises:
        NonFinite (CG201): an argument holds infinities or NaN.
        IllConditioned (CG203): the system has no Cholesky factor.
        BadConfig (CG502): weight not above 0.

    Example:
        >>> free = NullSpace(torch.tensor([[1.0], [0.0]], dtype=torch.float64))
        >>> one = torch.eye(2, dtype=torch.float64)
        >>> null_space_ridge(one, one, free, weight=1.0).to_dense().round(decimals=6).tolist()
        [[0.5, 0.0], [0.0, 0.0]]

    Reference: AlphaEdit (Fang et al. 2025), eq. 14; here in symmetric form and float64.
    """
    K, R = _check_columns(keys, residuals)
    _require_weight(weight)
    if weight == 0.0:
        raise BadConfig("the weight of a null-space update must be above 0.")
    Y = projector.coordinates(K.to(projector.basis))
    if not isinstance(protected, Protected):
        old = projector.coordinates(_append_protected(K[:, :0], protected).to(projector.basis))
        protected = _protect(Y, weight, old)
    assert protected.weight == weight, "protected at another weight; see `Protected.with_weight`"
    return _thin(R, projector.lift(protected.solve(Y)))


class _NormalisedKeys(NamedTuple):
    """Keys scaled to unit length, as Q T with Q orthonormal (d_in n) and T triangular (n n)."""

    columns: Tensor
    lengths: Tensor
    orthonormal: Tensor
    triangular: Tensor

    @classmethod
    def of(cls, B: Tensor) -> _NormalisedKeys:
        lengths = B.norm(dim=0)
        columns = B / lengths.clamp(min=torch.finfo(torch.float64).tiny)
        return cls(columns, lengths, *torch.linalg.qr(columns))

    @property
    def spread(self) -> float:
        """Smallest over largest singular value: 1 for orthogonal keys, 0 for dependent ones."""
        d_in, n = self.columns.shape
        if n == 0:
            return 1.0
        if n > d_in:
            return 0.0
        values = torch.linalg.svdvals(self.triangular)
        share = float(values[-1] / values[0]) if values[0] > 0 else 0.0
        return share if share > max(d_in, n) * _EPSILON else 0.0

    @property
    def condition(self) -> float:
        spread = self.spread
        return spread**-2 if spread else float("inf")

    def report(self) -> GramReport:
        n, condition = self.columns.shape[1], self.condition
        if n < 2:
            return GramReport(condition, (0, 0), 1.0)
        cosines = (self.columns.T @ self.columns).fill_diagonal_(0.0)
        pair = int(cosines.abs().argmax())
        first, second = sorted((pair // n, pair % n))
        return GramReport(condition, (first, second), float(cosines[first, second]))


def _solve_dual(B: Tensor, max_condition: float) -> Tensor:
    """Return B G^-1 by QR, whose error grows with the square root of G's condition only."""
    d_in, n = B.shape
    if n > d_in:
        raise DependentKeys(
            f"{n} keys cannot be independent in {d_in} dimensions.",
            hint="Use fewer facts, or a ridge (MEMIT, or EMMET with a ridge above 0).",
        )
    normalised = _NormalisedKeys.of(B)
    if normalised.condition > max_condition:
        report = normalised.report()
        i, j = report.closest
        dependent = report.condition == float("inf")
        raise (DependentKeys if dependent else IllConditioned)(
            "the keys are linearly dependent."
            if dependent
            else f"the keys are nearly dependent (condition number {report.condition:.2g}, "
            f"at most {max_condition:.2g} is accepted).",
            where=f"closest: keys {i} and {j}, cosine {report.cosine:.6f}" if n > 1 else "",
            hint="Remove facts that share a subject, or use a ridge (MEMIT, or EMMET with a ridge "
            "above 0).",
        )
    inverse = torch.linalg.solve_triangular(
        normalised.triangular.T, torch.diag(1 / normalised.lengths), upper=False
    )
    return normalised.orthonormal @ inverse


def _protect(B: Tensor, weight: float, old: Tensor) -> Protected:
    """Return keys of earlier edits as columns, on the device of the new ones."""
    return Protected.empty(B.shape[0], weight, B.device).with_keys(old)


def _thin(residuals: Tensor, right: Tensor) -> LowRank:
    """Return R right^T with no more columns than the matrix has rows or columns."""
    R = residuals.to(right.device)
    (d_out, n), d_in = R.shape, right.shape[0]
    if n <= min(d_out, d_in):
        return LowRank(R, right)
    if d_out <= d_in:
        return LowRank(torch.eye(d_out, dtype=R.dtype, device=R.device), right @ R.T)
    return LowRank(R @ right.T, torch.eye(d_in, dtype=R.dtype, device=R.device))


def _check_columns(keys: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
    if keys.ndim != 2 or residuals.ndim != 2 or keys.shape[1] != residuals.shape[1]:
        raise ValueError(
            f"keys (d_in, n) and residuals (d_out, n) must match, got {tuple(keys.shape)} "
            f"and {tuple(residuals.shape)}"
        )
    _require_finite(key=keys, residual=residuals)
    return float64(keys), float64(residuals)


def _append_protected(K: Tensor, protected: Tensor | None) -> Tensor:
    if protected is None:
        return K
    _require_finite(**{"protected key": protected})
    return torch.cat([K, float64(protected).to(K.device)], dim=1)


def _require_finite(**named: Tensor) -> None:
    for name, tensor in named.items():
        if not bool(torch.isfinite(tensor).all()):
            bad = ~torch.isfinite(tensor)
            columns = bad.any(dim=0).nonzero().flatten().tolist() if tensor.ndim > 1 else []
            raise NonFinite(
                f"a {name} holds infinities or NaN.",
                where=f"columns {', '.join(map(str, columns[:8]))}" if columns else "",
                hint="The model may have overflowed (float16) or be damaged by earlier edits.",
            )


def _require_weight(weight: float) -> None:
    if not weight >= 0.0 or weight == float("inf"):
        raise BadConfig(f"a weight must be finite and at least 0, got {weight}.")


def _factor(moment: Moment) -> Cholesky | None:
    return Cholesky.of(moment) if isinstance(moment, Tensor) else moment


def _whiten(factor: Cholesky | None, columns: Tensor) -> Tensor:
    return columns if factor is None else factor.whiten(columns.to(factor.lower.device))


def _unwhiten(factor: Cholesky | None, columns: Tensor) -> Tensor:
    return columns if factor is None else factor.unwhiten(columns)


def _solve_direction(factor: Cholesky | None, k: Tensor) -> Tensor:
    """Return C^-1 k, on the device of the key."""
    if factor is None:
        return k
    return factor.solve(k[:, None].to(factor.lower.device))[:, 0].to(k.device)
