"""How long-running functions report where they are; whoever shows a bar hands one in."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Called now and then with what is being done and how much of it is done.

    A function that has no bar to show passes None; nothing is printed by this library itself.
    """

    def __call__(self, stage: str, done: int, total: int, /) -> object:
        """Report that `done` of `total` units of `stage` are finished."""
        ...
