"""Draws by a seed in which every kind has its share: of cases, and of items of tasks."""

from __future__ import annotations

import random
from collections.abc import Sequence

from corrigenda.cases import Case


def draw_cases(cases: Sequence[Case], count: int, keys: Sequence[str], seed: int) -> list[Case]:
    """Draw some of many cases, in their order; files are often grouped by kind.

    Args:
        cases: All cases.
        count: How many to draw; all where there are no more.
        keys: Keys of `Case.meta` whose values make a kind.
        seed: Seed of the draw.

    Example:
        >>> cases = [Case(id=str(n), facts=(), probes=(), meta={"hops": n // 8}) for n in range(16)]
        >>> [sum(case.meta["hops"] for case in draw_cases(cases, 4, ["hops"], s)) for s in range(3)]
        [2, 2, 2]
    """
    kinds = [repr([case.meta.get(key) for key in keys]) for case in cases]
    return [cases[place] for place in draw_places(kinds, count, seed)]


def draw_places(kinds: Sequence[str], count: int, seed: int) -> list[int]:
    """Draw places of a list, rising.

    Each kind is shuffled and drawn from at even distances of its size, from an offset of its own.
    So a kind of n among N has about n count / N of the draw, and all places are equally likely. A
    larger count draws the same places and more.

    Args:
        kinds: The kind at each place.
        count: How many to draw; all where there are no more.
        seed: Seed of the draw.
    """
    groups: dict[str, list[int]] = {}
    for place, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(place)
    ranks: list[tuple[float, int]] = []
    for kind, places in groups.items():
        draw = random.Random(f"draw/{seed}/{kind}")
        draw.shuffle(places)
        offset = draw.random()
        ranks += [((rank + offset) / len(places), place) for rank, place in enumerate(places)]
    return sorted(place for _, place in sorted(ranks)[:count])
