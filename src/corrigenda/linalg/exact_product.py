"""Product of two thin factors that has the same bits whatever computes it, and in which order.

A matrix product adds up rounded terms, so its last bits depend on threads, device and library.
Here both factors are cut into integer slices short enough that every product of slices, and every
sum of such products, is exact in float64.

Letters: L left factor (m r) - R right factor (n r) - b bits of a slice.

Reference: Ozaki, Ogita, Oishi and Rump 2012, section 3.
"""

from __future__ import annotations

# Parts of torch have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

_SLICES = 3
_MANTISSA = 53
_EXPONENT_BITS, _EXPONENT_BIAS = 52, 1023
_MOST = 1000


def exact_product(L: Float[Tensor, "m r"], R: Float[Tensor, "n r"]) -> Float[Tensor, "m n"]:
    """Return L R^T in float64, the same to the bit on every device and with any blocking of rows.

    Its error is below 2^-51 of the largest term of an entry's row and column, for up to 100,000
    columns; of one column, the product is rounded once.

    Args:
        L: Left factor, on a device with float64.
        R: Right factor, on the same device.

    Example:
        >>> one = torch.tensor([[1.0, 2.0**-30]])
        >>> exact_product(one, one).item() == 1.0 + 2.0**-60
        True
    """
    rank = L.shape[1]
    if rank < 2:
        shape = len(L), len(R)
        return L.double() * R.double().T if rank else L.new_zeros(shape, dtype=torch.float64)
    b = (_MANTISSA - math.ceil(math.log2(_SLICES * rank))) // 2
    left_scale, left = _slices(L.double(), b)
    right_scale, right = _slices(R.double(), b)
    total = torch.zeros(len(L), len(R), dtype=torch.float64, device=L.device)
    step = 2.0**-b
    # Smallest products first; those below 2^-3b are left out.
    for order in reversed(range(_SLICES)):
        pairs = [
            (left[i], right[order - i])
            for i in range(order + 1)
            if i < len(left) and order - i < len(right)
        ]
        total *= step
        if pairs:
            lefts, rights = (torch.cat(side, dim=1) for side in zip(*pairs, strict=True))
            total += lefts @ rights.T
    return total.mul_(step * step).mul_(left_scale).mul_(right_scale.T)


def _slices(
    factor: Float[Tensor, "rows r"], b: int
) -> tuple[Float[Tensor, "rows 1"], list[Float[Tensor, "rows r"]]]:
    """Return a power of two for each row, and the row over it in integer slices of b bits."""
    largest = factor.abs().amax(1, keepdim=True)
    exponents = (largest.view(torch.int64) >> _EXPONENT_BITS) - _EXPONENT_BIAS + 1
    exponents = exponents.clamp(-_MOST, _MOST)
    rest = factor * _power_of_two(-exponents)
    slices: list[Tensor] = []
    for _ in range(_SLICES):
        rest = rest * 2.0**b
        whole = rest.round()
        slices.append(whole)
        rest = rest - whole
        if not bool(rest.any()):
            break
    return _power_of_two(exponents), slices


def _power_of_two(exponents: Int[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Return 2^e, exact: a library's power function need not be."""
    return ((exponents + _EXPONENT_BIAS) << _EXPONENT_BITS).view(torch.float64)
