"""Forward passes that end early, and hooks that must have been called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NoReturn

from torch import Tensor

from corrigenda.errors import CompiledModel
from corrigenda.lm.sites import Point


class _Stopped(Exception):
    """Raised where the rest of a pass is not needed."""


class PassStop:
    """Ends a forward pass early: `with stop:` is left where `stop()` is called inside.

    Example:
        >>> with PassStop() as stop:
        ...     stop()
        ...     raise AssertionError("never reached")
    """

    def __call__(self) -> NoReturn:
        """End the pass."""
        raise _Stopped(self)

    def __enter__(self) -> PassStop:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return isinstance(error, _Stopped) and error.args[0] is self


class WatchedMap:
    """A function on a tensor of the pass that records whether it was called.

    Attributes:
        point: Where it is placed.
        fired: Whether it was called.
    """

    def __init__(self, point: Point, function: Callable[[Tensor], Tensor]) -> None:
        """Wrap a function."""
        self.point, self._function = point, function
        self.fired = False

    def __call__(self, tensor: Tensor) -> Tensor:
        """Call the function."""
        self.fired = True
        return self._function(tensor)


def require_fired(missed: Sequence[Point]) -> None:
    """Refuse a pass that did not call hooks that were placed in the model.

    Raises:
        CompiledModel (CG308): there is such a hook.
    """
    if missed:
        raise CompiledModel(
            "the model ran without calling hooks placed in it.",
            where=", ".join(f"{point.site} {point.role}" for point in missed[:3]),
            hint="Its code is compiled or replaced (fused kernels): load the model without that.",
        )
