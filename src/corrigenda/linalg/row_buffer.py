"""Rows of a growing tensor, in memory with room for more."""

from __future__ import annotations

# Parts of torch have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
import torch
from jaxtyping import Shaped
from torch import Tensor

# Room for further rows: a share of those there, and at least so many.
_SHARE, _LEAST = 4, 16


class RowBuffer:
    """Rows to which others are appended, at a cost that does not depend on how many there are.

    What `rows` gave before stays valid while rows are appended, not once some are removed.

    Example:
        >>> buffer = RowBuffer()
        >>> for number in range(3):
        ...     buffer.append(torch.full((1, 2), float(number)))
        >>> buffer.remove(0, 1)
        >>> buffer.rows.tolist()
        [[1.0, 1.0], [2.0, 2.0]]
    """

    def __init__(self) -> None:
        """Begin with no rows; the first ones appended decide shape, dtype and device."""
        self._memory: Tensor | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Shaped[Tensor, "n ..."]:
        """All rows, as a view.

        Raises:
            AssertionError: none were ever appended.
        """
        assert self._memory is not None, "rows were appended"
        return self._memory[: self._count]

    @torch.no_grad()
    def append(self, rows: Shaped[Tensor, "n ..."]) -> None:
        """Put rows after the others."""
        # A pass may be the first to need them, and they outlive it.
        with torch.inference_mode(False):
            end = self._count + len(rows)
            memory = self._memory
            if memory is None or end > len(memory):
                room = end if memory is None else end + end // _SHARE + _LEAST
                larger = rows.new_empty(room, *rows.shape[1:])
                if memory is not None:
                    larger[: self._count] = memory[: self._count]
                self._memory = memory = larger
            # Not through the version counter: views that a graph holds have not changed.
            memory.data[self._count : end] = rows
            self._count = end

    @torch.no_grad()
    def remove(self, begin: int, end: int) -> None:
        """Take rows out; later ones move up."""
        assert 0 <= begin <= end <= self._count, "the rows are there"
        if begin < end and self._memory is not None:
            with torch.inference_mode(False):
                left = self._count - (end - begin)
                if left > begin:
                    self._memory[begin:left] = self._memory[end : self._count].clone()
                self._count = left
