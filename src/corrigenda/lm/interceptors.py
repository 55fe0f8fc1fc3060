"""The list of objects that rewrite the prompts of one model, or answer in its place.

What they do to a question is in `corrigenda.lm.interception`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TypeVar

Kind = TypeVar("Kind")


class Interceptors:
    """Objects that rewrite prompts or answer, in the order in which they became active.

    Attributes:
        suspended: Whether the model is asked directly at the moment.
    """

    def __init__(self) -> None:
        """Create an empty list of interceptors."""
        self._active: list[object] = []
        self.suspended = False

    @contextmanager
    def activate(self, interceptor: object) -> Generator[None]:
        """Let an interceptor act on the model's prompts, until left."""
        try:
            self._active.append(interceptor)
            yield
        finally:
            # By identity: equal patches may be active twice.
            places = [i for i, one in enumerate(self._active) if one is interceptor]
            for place in places[:1]:
                del self._active[place]

    @contextmanager
    def suspend(self) -> Generator[None]:
        """Ask the model directly, until left."""
        before, self.suspended = self.suspended, True
        try:
            yield
        finally:
            self.suspended = before

    def of_kind(self, kind: type[Kind]) -> tuple[Kind, ...]:
        """Return the active ones of a kind, first to last; none while they are suspended."""
        return () if self.suspended else tuple(x for x in self._active if isinstance(x, kind))
