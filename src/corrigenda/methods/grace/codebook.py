"""GRACE's codebook: keys with balls around them, and the rules that add, expand and split balls.

A patch records what its edit did: the entry it added, or the entry it took over, and the radius
that an earlier entry got. The codebook is computed from the records of all active patches in order,
so reverting an edit also undoes what it did to the balls of other edits. A record that took over an
entry which is no longer active becomes an entry of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrigenda.engines.shared_memory import entry_id
from corrigenda.linalg.nearest import NearestSearch, NearestVectors

ADDED, SPLIT, TAKEN_OVER = 0, 1, 2
"""Act of a record: it added a ball, added one that halves an earlier ball, or took one over."""

ACT_NAMES = ("added", "split", "expanded")

_GAP = 1e-5


class CodebookRecords(NamedTuple):
    """Records of edits, one row each.

    Attributes:
        keys: Inputs of the layer at the prompts' last tokens.
        values: Vectors that replace the layer's output.
        radii: Of the record's own ball; after a take-over, of the ball it needs without its entry.
        acts: `ADDED`, `SPLIT` or `TAKEN_OVER`.
        ids: Number of each record, see `entry_id`.
        roots: Number of the entry that was split or taken over; 0 for none.
        root_radii: Radius that this entry got; 0 for none.
        targets: Tokens of the answers, one after another.
        lengths: How many of them each record has.
        facts: Which fact of its patch a record belongs to.
    """

    keys: Float[Tensor, "n d_in"]
    values: Float[Tensor, "n d_out"]
    radii: Float[Tensor, " n"]
    acts: Int[Tensor, " n"]
    ids: Int[Tensor, " n"]
    roots: Int[Tensor, " n"]
    root_radii: Float[Tensor, " n"]
    targets: Int[Tensor, " tokens"]
    lengths: Int[Tensor, " n"]
    facts: Int[Tensor, " n"]

    @classmethod
    def concatenate(cls, parts: Sequence[Mapping[str, Tensor]]) -> CodebookRecords:
        """Return the records of several patches, in order; parts without records are left out."""
        full = [part for part in parts if part]
        return cls(*(torch.cat([part[name] for part in full]) for name in cls._fields))

    def of_facts(self, facts: Sequence[int]) -> CodebookRecords | None:
        """Return the records of some facts, numbered by their places; None where there are none."""
        kept = torch.isin(self.facts, torch.tensor(facts, dtype=torch.long))
        if not bool(kept.any()):
            return None
        rows = CodebookRecords(*(part[kept] for part in self._replace(targets=self.lengths)))
        return rows._replace(
            targets=self.targets[kept.repeat_interleave(self.lengths)],
            facts=torch.tensor([facts.index(fact) for fact in rows.facts.tolist()]),
        )


@dataclass(frozen=True, eq=False)
class Codebook:
    """Entries of the codebook, computed from records.

    Attributes:
        records: All records.
        places: Record of each entry.
        used: Record that gives an entry its value and target: its own, or the last that took it.
        radii: Of the entries, float64.
    """

    records: CodebookRecords
    places: Int[Tensor, " entries"]
    used: Int[Tensor, " entries"]
    radii: Float[Tensor, " entries"]

    @classmethod
    def of(cls, records: CodebookRecords) -> Codebook:
        """Return the codebook after all records, applied in order."""
        radii = records.radii.clone()
        used = torch.arange(len(radii))
        own = records.acts != TAKEN_OVER
        entry: dict[int, int] = {}
        changing = (records.acts != ADDED).nonzero().squeeze(1).tolist()
        if changing:
            ids = records.ids.tolist()
            for row in own.nonzero().squeeze(1).tolist():
                entry.setdefault(ids[row], row)
            for row in changing:
                root = entry.get(int(records.roots[row]))
                if records.acts[row] == SPLIT:
                    if root is not None:
                        radii[root] = records.root_radii[row]
                elif root is None:
                    own[row] = True
                    entry.setdefault(ids[row], row)
                else:
                    radii[root] = max(radii[root], records.root_radii[row])
                    used[root] = row
        places = own.nonzero().squeeze(1)
        return cls(records, places, used[places], radii[places])

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def keys(self) -> Float[Tensor, "entries d_in"]:
        """Return the keys of the entries."""
        if len(self.places) == len(self.records.keys):
            return self.records.keys
        return self.records.keys[self.places]

    def values(self, entries: Int[Tensor, " some"]) -> Float[Tensor, "some d_out"]:
        """Return the values of some entries; float32, on the CPU."""
        return self.records.values[self.used[entries]]

    def target(self, entry: int) -> tuple[int, ...]:
        """Return the tokens of an entry's answer."""
        return self.answer(int(self.used[entry]))

    def answer(self, row: int) -> tuple[int, ...]:
        """Return the tokens of a record's answer."""
        end = int(self._ends[row])
        return tuple(self.records.targets[end - int(self.records.lengths[row]) : end].tolist())

    def hits(self, found: NearestVectors) -> Int[Tensor, " queries"]:
        """Return the entry in whose ball each query lies, -1 for none."""
        inside = found.distances <= self.radii[found.indices]
        return torch.where(inside, found.indices, -1)

    @cached_property
    def _ends(self) -> Int[Tensor, " n"]:
        return self.records.lengths.cumsum(0)


class FactPlacement(NamedTuple):
    """Where one fact goes in the codebook.

    Attributes:
        act: `ADDED`, `SPLIT` or `TAKEN_OVER`; None where nothing has to be done.
        radius: Of the fact's own ball.
        root: Number of the entry it splits or takes over, 0 for none.
        root_radius: Radius this entry gets.
        continues: Entry of the codebook whose value is trained further, or None.
        follows: Earlier fact of the batch whose value is trained further, or None.
        id: The record's number.
        distance: To the nearest key; infinite where there is none.
    """

    act: int | None
    radius: float = 0.0
    root: int = 0
    root_radius: float = 0.0
    continues: int | None = None
    follows: int | None = None
    id: int = 0
    distance: float = torch.inf


@dataclass
class _Ball:
    id: int
    radius: float
    target: tuple[int, ...]
    entry: int | None
    fact: int | None


def place_facts(
    book: Codebook | None,
    keys: Float[Tensor, "n d_in"],
    targets: Sequence[tuple[int, ...]],
    right: Sequence[bool],
    *,
    radius: float,
    noise: Sequence[float],
) -> list[FactPlacement]:
    """Decide where facts go, one after another, and how the balls they meet change.

    A fact that the model answers already is left alone. A ball that would not touch the nearest one
    is added; otherwise the nearest ball expands to hold the key if it has the same target, or is
    split if it has another. A key that equals the nearest one, up to rounding, takes over its
    entry.

    Args:
        book: The codebook that is active, if any.
        keys: Of the facts.
        targets: Their answers' tokens, compared exactly.
        right: Whether the model answers with the target already.
        radius: epsilon of a new ball.
        noise: How far each key may lie from itself when read again.

    Reference: Hartvigsen et al. 2023, algorithm 1. A ball that expands gets the noise on top.
    """
    found = NearestSearch(keys[:0] if book is None else book.keys).search(keys)
    changed: dict[int, _Ball] = {}
    new: list[_Ball] = []
    new_keys = keys[:0].double()
    placements: list[FactPlacement] = []
    for fact, target in enumerate(targets):
        nearest, distance = None, float(found.distances[fact])
        if book is not None:
            entry = int(found.indices[fact])
            if entry not in changed:
                number = int(book.records.ids[book.places[entry]])
                ball = _Ball(number, float(book.radii[entry]), book.target(entry), entry, None)
                changed[entry] = ball
            nearest = changed[entry]
        if new:
            apart = (new_keys - keys[fact].double()).norm(dim=1)
            if float(apart.min()) < distance:
                nearest, distance = new[int(apart.argmin())], float(apart.min())
        one = _place_fact(nearest, distance, target, right[fact], radius, noise[fact])
        one = one._replace(id=entry_id(keys[fact], target), distance=distance)
        placements.append(one)
        if one.act is None:
            continue
        if nearest is not None and one.root:
            nearest.radius = one.root_radius
        if one.act == TAKEN_OVER:
            assert nearest is not None, "there is an entry to take over"
            nearest.target, nearest.entry, nearest.fact = target, None, fact
        else:
            new.append(_Ball(one.id, one.radius, target, None, fact))
            new_keys = torch.cat([new_keys, keys[fact, None].double()])
    return placements


def _place_fact(
    nearest: _Ball | None,
    distance: float,
    target: tuple[int, ...],
    right: bool,
    radius: float,
    noise: float,
) -> FactPlacement:
    inside = nearest is not None and distance <= nearest.radius
    if right and not inside:
        return FactPlacement(None)
    if nearest is None or distance > nearest.radius + radius:
        return FactPlacement(ADDED, radius)
    same = target == nearest.target
    if same or distance <= noise:
        grown = nearest.radius if inside else distance + noise
        trained_from = (nearest.entry, nearest.fact) if same else (None, None)
        return FactPlacement(TAKEN_OVER, radius, nearest.id, grown, *trained_from)
    return FactPlacement(SPLIT, distance / 2, nearest.id, max(0.0, distance / 2 - _GAP))


def out_of_reach(book: Codebook) -> list[int]:
    """Return the records that took over an entry and no longer lie in a ball with their target."""
    taken = (book.records.acts == TAKEN_OVER).nonzero().squeeze(1)
    hits = book.hits(NearestSearch(book.keys).search(book.records.keys[taken]))
    return [
        row
        for row, hit in zip(taken.tolist(), hits.tolist(), strict=True)
        if hit < 0 or book.target(hit) != book.answer(row)
    ]
