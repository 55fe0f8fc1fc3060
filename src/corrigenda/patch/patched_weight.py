"""A weight under change: its pristine value, and the sum of the changes that are active on it.

The sum is one of integers: every change is rounded to a multiple of a small power of two, and
integers have the same sum in any order. So a change is added and taken out again by itself, at a
cost that does not depend on how many others are active, and the weight depends on nothing but which
changes are active.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrigenda.errors import NonFinite
from corrigenda.linalg.exact_product import exact_product
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.sites import Site
from corrigenda.patch.changes import Change, Dense, Rows, change_from, tensors_of

_FRACTION_BITS = 50
_SUM_BITS = 62
_LEVEL_BITS = 12
_LEAST_EXPONENT = -900
_NUMBERS_AT_ONCE = 1 << 22


class ExactSum:
    """Sum of changes of one weight, the same to the bit in any order of adding and taking out.

    A change is rounded to multiples of 2^-50 of the power of two above the largest entry of the
    weight. While the changes add up to more than 4,096 times that, the unit is as much larger as is
    needed; it follows from which changes are in the sum. A sum of two or more changes is kept (8
    bytes an entry), one of a single change is not.
    """

    def __init__(self, weight: Float[Tensor, "d_out d_in"]) -> None:
        """Begin with no changes of a weight."""
        self._weight = weight
        largest = float(weight.abs().max()) if weight.numel() else 0.0
        exponent = math.frexp(largest)[1] if math.isfinite(largest) else 0
        self._exponent = max(exponent, _LEAST_EXPONENT) - _FRACTION_BITS
        self._terms: dict[Hashable, Change] = {}
        self._bounds: dict[Hashable, int] = {}
        self._bound = 0
        self._digits: Int[Tensor, "d_out d_in"] | None = None
        self._kept_level = 0

    def __len__(self) -> int:
        return len(self._terms)

    def add(self, name: Hashable, change: Change) -> None:
        """Put a change into the sum.

        Args:
            name: By which it is taken out.
            change: The change.

        Raises:
            NonFinite (CG201): a product of its factors is infinite.
        """
        bound = largest_entry(change)
        if not math.isfinite(bound):
            raise NonFinite("a change of a weight exceeds the range of float64.")
        self._terms[name] = change
        numerator, denominator = bound.as_integer_ratio()
        shift = self._exponent
        numerator <<= max(0, -shift)
        self._bounds[name] = -(-numerator // (denominator << max(0, shift)))
        self._bound += self._bounds[name]
        self._follow(change, 1)

    def discard(self, name: Hashable) -> None:
        """Take a change out of the sum, if it is there."""
        change = self._terms.pop(name, None)
        if change is not None:
            self._bound -= self._bounds.pop(name)
            self._follow(change, -1)

    @torch.no_grad()
    def rounded(self) -> Float[Tensor, "d_out d_in"]:
        """Return the weight with the sum added, rounded once to its dtype."""
        weight, new = self._weight, torch.empty_like(self._weight)
        parts = None if self._digits is not None else self._placed_terms()
        unit = self._unit
        for rows in self._blocks():
            if parts is None:
                assert self._digits is not None, "a sum of several changes is kept"
                digits = self._digits[rows]
            else:
                digits = self._integers(parts, rows)
            total = digits.double().mul_(unit)
            total += weight[rows].to(total.device).double()
            new[rows] = total.to(weight.dtype).to(weight.device)
        return new

    @property
    def _level(self) -> int:
        return max(0, -(-(self._bound.bit_length() - _SUM_BITS) // _LEVEL_BITS))

    @property
    def _unit(self) -> float:
        return math.ldexp(1.0, self._exponent + _LEVEL_BITS * self._level)

    @property
    def _place(self) -> torch.device:
        """Where sums are formed: on the device of the weight, if it has float64."""
        device = self._weight.device
        return torch.device("cpu") if device.type == "mps" else device

    @torch.no_grad()
    def _follow(self, change: Change, sign: int) -> None:
        """Bring the kept sum up to date after one change was put in or taken out."""
        if len(self) < 2:
            self._digits = None
            return
        digits, self._digits = self._digits, None
        changes = [change]
        if digits is None or self._kept_level != self._level:
            digits = torch.zeros(self._weight.shape, dtype=torch.int64, device=self._place)
            changes, sign = list(self._terms.values()), 1
        for one in changes:
            parts = [_move(one, self._place)]
            for rows in self._blocks():
                digits[rows].add_(self._integers(parts, rows), alpha=sign)
        self._digits, self._kept_level = digits, self._level

    def _placed_terms(self) -> list[Change]:
        return [_move(change, self._place) for change in self._terms.values()]

    def _integers(self, changes: list[Change], rows: slice) -> Int[Tensor, "rows d_in"]:
        """Return the sum of changes in some rows of the weight, in units."""
        width = self._weight.shape[1]
        total = torch.zeros(rows.stop - rows.start, width, dtype=torch.int64, device=self._place)
        for change in changes:
            entries = _entries(change, rows)
            # Multiplying by a power of two is exact; so is a float64 that is whole.
            total += entries.mul_(1.0 / self._unit).round_().long()
        return total

    def _blocks(self) -> list[slice]:
        count, width = self._weight.shape
        step = max(1, _NUMBERS_AT_ONCE // max(1, width))
        return [slice(begin, min(begin + step, count)) for begin in range(0, count, step)]


@dataclass(eq=False)
class PatchedWeight:
    """A weight under change: the storage of one site, or of several that share it.

    Attributes:
        site: The site through which it is written.
        pristine: Its value without any patch.
        sites: All sites that share the storage.
        before: Version counter of its storage before the first patch; None where it has none.
        written: Fingerprint of what patches last wrote into it; None before.
        version: Version counter after that.
        sum: The changes that are active.
    """

    site: Site
    pristine: Float[Tensor, "d_out d_in"]
    sites: set[Site] = field(default_factory=set[Site])
    before: int | None = None
    written: Tensor | None = None
    version: int | None = None
    sum: ExactSum = field(init=False)

    def __post_init__(self) -> None:
        self.sum = ExactSum(self.pristine)

    def current(self) -> Float[Tensor, "d_out d_in"]:
        """Return what the active changes make of the weight: the pristine one where there are none.

        Raises:
            NonFinite (CG201): it exceeds the range of the weight's dtype.
        """
        if not len(self.sum):
            return self.pristine
        new = self.sum.rounded()
        if not bool(torch.isfinite(new).all()):
            raise NonFinite(
                f"the patched weight exceeds the range of {new.dtype}.",
                where=f"site {self.site}",
                hint="The change is too large for this model; load it in float32 or bfloat16.",
            )
        return new


def largest_entry(change: Change) -> float:
    """Return a bound of the size of every entry, the same on every processor.

    For factors it is the sum over columns of the largest entries' products.
    """
    match change:
        case LowRank(left=left, right=right):
            sizes = left.double().abs().amax(0) * right.double().abs().amax(0)
            return math.fsum(map(float, sizes))
        case Dense(delta=delta):
            return float(delta.double().abs().max())
        case Rows(values=values):
            return float(values.double().abs().max())


def _move(change: Change, device: torch.device) -> Change:
    if device.type == "cpu":
        return change
    return change_from({name: tensor.to(device) for name, tensor in tensors_of(change).items()})


def _entries(change: Change, rows: slice) -> Float[Tensor, "rows d_in"]:
    """Return some rows of a change as a new float64 matrix."""
    match change:
        case LowRank(left=left, right=right):
            return exact_product(left[rows], right)
        case Dense(delta=delta):
            return delta[rows].to(torch.float64, copy=True)
        case Rows(index=index, values=values):
            inside = (index >= rows.start) & (index < rows.stop)
            shape = rows.stop - rows.start, values.shape[1]
            entries = torch.zeros(shape, dtype=torch.float64, device=values.device)
            entries[index[inside] - rows.start] = values[inside].double()
            return entries
