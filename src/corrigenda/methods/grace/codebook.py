"""GRACE's codebook: keys with balls around them, and the rules that add, expand and split balls.

A patch records what its edit did: the entry it added, or the entry it took over, and the radius
that an earlier entry got. The codebook is computed from the records of all active patches in order,
so reverting an edit also undoes what it did to the balls of other edits. A record that took over an
entry which is no longer active becomes an entry of its own.
"""

from __future__ import annotations

import bisect
import itertools
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
_ACTS = ("acts", "ids", "roots", "radii", "root_radii")


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
    """Entries of the codebook, computed from the records of patches, in order.

    Records stay where they are; adding those of one more patch costs what they are, apart from a
    few numbers for each earlier record.

    Attributes:
        parts: Tensors of the patches, each with the fields of `CodebookRecords` by name.
        begins: First record of each, all records counted, and their number at the end.
        acts: Of all records.
        places: Record of each entry.
        used: Record that gives each record's entry its value and target: the last that took it.
        radii_of_records: Of each record's entry, float64.
        numbers: First record of each entry by its number; None until a record asks for one.
        open_numbers: Numbers of entries that records asked for in vain, or stand in for.
    """

    parts: tuple[Mapping[str, Tensor], ...]
    begins: tuple[int, ...]
    acts: Int[Tensor, " n"]
    places: Int[Tensor, " entries"]
    used: Int[Tensor, " n"]
    radii_of_records: Float[Tensor, " n"]
    numbers: Mapping[int, int] | None = None
    open_numbers: frozenset[int] = frozenset()

    @classmethod
    def of(cls, *parts: Mapping[str, Tensor]) -> Codebook:
        """Return the codebook after all records, applied in order."""
        none = torch.zeros(0, dtype=torch.long)
        return cls((), (0,), none, none, none, none.double())._after(parts)

    def extend(self, part: Mapping[str, Tensor]) -> Codebook:
        """Return the codebook after the records of one more patch; this one stays as it is."""
        if not self.open_numbers.isdisjoint(part["ids"].tolist()):
            return Codebook.of(*self.parts, part)
        return self._after([part])

    def _after(self, parts: Sequence[Mapping[str, Tensor]]) -> Codebook:
        """Return the codebook after further records, none of whose numbers are open."""
        begin = self.begins[-1]
        columns = {name: torch.cat([part[name] for part in parts]) for name in _ACTS}
        acts, ids, roots = (columns[name] for name in ("acts", "ids", "roots"))
        end = begin + len(acts)
        radii = torch.cat([self.radii_of_records, columns["radii"].double()])
        used = torch.cat([self.used, torch.arange(begin, end)])
        own = acts != TAKEN_OVER
        changing = (acts != ADDED).nonzero().squeeze(1).tolist()
        numbers, still_open = self.numbers, set(self.open_numbers)
        if changing or numbers is not None:
            numbers = dict(self._number_entries() if numbers is None else numbers)
            for row in own.nonzero().squeeze(1).tolist():
                numbers.setdefault(int(ids[row]), begin + row)
        for row in changing:
            assert numbers is not None, "some record asks for an entry"
            root = numbers.get(int(roots[row]))
            if root is None:
                still_open.add(int(roots[row]))
            if acts[row] == SPLIT:
                if root is not None:
                    radii[root] = columns["root_radii"][row]
            elif root is None:
                own[row] = True
                still_open.add(int(ids[row]))
                numbers.setdefault(int(ids[row]), begin + row)
            else:
                radii[root] = max(radii[root], columns["root_radii"][row])
                used[root] = begin + row
        ends = itertools.accumulate((len(part["acts"]) for part in parts), initial=begin)
        return Codebook(
            (*self.parts, *parts),
            (*self.begins[:-1], *ends),
            torch.cat([self.acts, acts]),
            torch.cat([self.places, begin + own.nonzero().squeeze(1)]),
            used,
            radii,
            numbers,
            frozenset(still_open),
        )

    def __len__(self) -> int:
        return len(self.places)

    @property
    def radii(self) -> Float[Tensor, " entries"]:
        """Return the radii of the entries."""
        return self.radii_of_records[self.places]

    @property
    def keys(self) -> Float[Tensor, "entries d_in"]:
        """Return the keys of the entries."""
        return self.keys_from(0)

    def keys_from(self, first: int) -> Float[Tensor, "some d_in"]:
        """Return the keys of the entries from one on."""
        return self.rows("keys", self.places[first:])

    def rows(self, name: str, records: Int[Tensor, " some"]) -> Float[Tensor, "some d"]:
        """Return a tensor of some records, in their order; float32, on the CPU."""
        if not len(records):
            return self.parts[0][name][:0]
        owners = torch.bucketize(records, self._begins, right=True) - 1
        own, counts = owners.unique_consecutive(return_counts=True)
        picked = [
            self.parts[owner][name][some - self.begins[owner]]
            for owner, some in zip(own.tolist(), records.split(counts.tolist()), strict=True)
        ]
        return picked[0] if len(picked) == 1 else torch.cat(picked)

    def values(self, entries: Int[Tensor, " some"]) -> Float[Tensor, "some d_out"]:
        """Return the values of some entries; float32, on the CPU."""
        return self.rows("values", self.used[self.places[entries]])

    def number(self, entry: int) -> int:
        """Return the number of an entry."""
        owner, row = self._find(int(self.places[entry]))
        return int(owner["ids"][row])

    def target(self, entry: int) -> tuple[int, ...]:
        """Return the tokens of an entry's answer."""
        return self.answer(int(self.used[self.places[entry]]))

    def answer(self, record: int) -> tuple[int, ...]:
        """Return the tokens of a record's answer."""
        owner, row = self._find(record)
        end = int(owner["lengths"][: row + 1].sum())
        return tuple(owner["targets"][end - int(owner["lengths"][row]) : end].tolist())

    def hits(self, found: NearestVectors) -> Int[Tensor, " queries"]:
        """Return the entry in whose ball each query lies, -1 for none."""
        inside = found.distances <= self.radii_of_records[self.places[found.indices]]
        return torch.where(inside, found.indices, -1)

    def _find(self, record: int) -> tuple[Mapping[str, Tensor], int]:
        owner = bisect.bisect_right(self.begins, record) - 1
        return self.parts[owner], record - self.begins[owner]

    @cached_property
    def _begins(self) -> Int[Tensor, " parts"]:
        return torch.tensor(self.begins)

    def _number_entries(self) -> dict[int, int]:
        ids = [number for part in self.parts for number in part["ids"].tolist()]
        found: dict[int, int] = {}
        for record in self.places.tolist():
            found.setdefault(ids[record], record)
        return found


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
    search: NearestSearch | None = None,
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
        search: Search among the keys of the codebook, if there is one already.

    Reference: Hartvigsen et al. 2023, algorithm 1. A ball that expands gets the noise on top.
    """
    search = search or NearestSearch(keys[:0] if book is None else book.keys)
    found = search.search(keys)
    changed: dict[int, _Ball] = {}
    new: list[_Ball] = []
    new_keys = keys[:0].double()
    placements: list[FactPlacement] = []
    for fact, target in enumerate(targets):
        nearest, distance = None, float(found.distances[fact])
        if book is not None:
            entry = int(found.indices[fact])
            if entry not in changed:
                radius_now = float(book.radii_of_records[book.places[entry]])
                ball = _Ball(book.number(entry), radius_now, book.target(entry), entry, None)
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


def out_of_reach(book: Codebook, search: NearestSearch | None = None) -> list[int]:
    """Return the records that took over an entry and no longer lie in a ball with their target."""
    taken = (book.acts == TAKEN_OVER).nonzero().squeeze(1)
    if not len(taken):
        return []
    hits = book.hits((search or NearestSearch(book.keys)).search(book.rows("keys", taken)))
    return [
        row
        for row, hit in zip(taken.tolist(), hits.tolist(), strict=True)
        if hit < 0 or book.target(hit) != book.answer(row)
    ]
