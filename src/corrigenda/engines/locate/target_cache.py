"""Targets that were searched already: many facts together, so that edits of single ones find them.

The loss of a fact holds no other fact, so facts that are edited one by one can be searched as one
batch: the weights of the later blocks are then read once for all facts and not once for each. The
results are equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.engines.locate.records import SearchRow, SearchTrace, Targets

Search: TypeAlias = Callable[[Sequence[SearchRow], Sequence[str]], Targets]
"""Searches the targets of the facts of some rows, by their names."""


class TargetCache:
    """Targets of facts, each under all that its search depends on; it lives as long as its user.

    Attributes:
        hits: How often a fact was asked for that was here.
    """

    def __init__(self) -> None:
        """Create an empty cache."""
        self.hits = 0
        self._found: dict[
            Hashable, tuple[Float[Tensor, " d_entry"], Float[Tensor, " d_entry"], SearchTrace]
        ] = {}

    def __len__(self) -> int:
        return len(self._found)

    def find(
        self,
        origin: Hashable,
        rows: Sequence[SearchRow],
        names: Sequence[str],
        search: Search,
    ) -> Targets:
        """Return the targets of all facts; those that are not here are searched, together.

        Args:
            origin: Model, block and settings: what the targets depend on besides the rows.
            rows: As for `find_targets`.
            names: As for `find_targets`.
            search: Called once, with the rows and names of the facts that are not here.
        """
        of_fact: list[list[SearchRow]] = [[] for _ in names]
        for row in rows:
            of_fact[row.fact].append(row._replace(fact=0))
        keys = [(origin, tuple(own)) for own in of_fact]
        missing = list(
            {key: index for index, key in enumerate(keys) if key not in self._found}.values()
        )
        self.hits += sum(key in self._found for key in keys)
        if missing:
            wanted = [
                row._replace(fact=place)
                for place, index in enumerate(missing)
                for row in of_fact[index]
            ]
            found = search(wanted, [names[index] for index in missing])
            for place, index in enumerate(missing):
                self._found[keys[index]] = (
                    found.anchors[place],
                    found.deltas[place],
                    found.traces[place],
                )
        anchors, deltas, traces = zip(*(self._found[key] for key in keys), strict=True)
        return Targets(torch.stack(anchors), torch.stack(deltas), list(traces))


_CURRENT: ContextVar[TargetCache | None] = ContextVar("target cache", default=None)


@contextmanager
def keep_targets() -> Generator[TargetCache]:
    """Search no fact twice on one model until left; inside another such block, use its cache.

    It serves models without active patches, whose weights and dtype tell all that they compute.
    """
    cache = _CURRENT.get()
    if cache is None:
        cache = TargetCache()
    token = _CURRENT.set(cache)
    try:
        yield cache
    finally:
        _CURRENT.reset(token)


def current_targets() -> TargetCache | None:
    """Return the cache in use; None outside `keep_targets`."""
    return _CURRENT.get()
