"""One batch of a stream: its facts, and the records from which its change is computed again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from corrigenda.engines.closed_form import KeyRecords, SeparablePatch
from corrigenda.facts import Fact
from corrigenda.lm.sites import Site
from corrigenda.patch import Header, Patch
from corrigenda.patch.module import module_class
from corrigenda.state import State

TRUE_ALREADY = "true already"
"""Status of a fact that the model gave before its batch, so that nothing was written for it."""

_RECORDS, _CARRIED, _STORED = "records/", "carried/", "stored/"


@dataclass(frozen=True, eq=False)
class StreamBatch:
    """Facts that were edited at once, with their records; never changed.

    Attributes:
        first: Place of its first fact in the stream, from 0.
        facts: The facts as they were given, with subjects that were found.
        statuses: One for each: as in the notes of a patch, or `TRUE_ALREADY`.
        records: Keys and residuals by site, for a method with a closed form. The owners are places
            in the stream; residuals of a joint system count from the unedited weight.
        patch: Entries of the batch, for a method that stores entries.
        owners: Place in the stream of each fact in the header of `patch`.
        carried: Tensors of the state that later batches continue from.
        notices: Warnings, in words.
        seconds: Wall-clock time that the batch took.
    """

    first: int
    facts: tuple[Fact, ...]
    statuses: tuple[str, ...]
    records: Mapping[Site, KeyRecords] = field(default_factory=dict)
    patch: Patch | None = None
    owners: tuple[int, ...] = ()
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def places(self) -> range:
        """Places of its facts in the stream."""
        return range(self.first, self.first + len(self.facts))

    @property
    def written(self) -> tuple[int, ...]:
        """Places of the facts for which something was recorded."""
        pairs = zip(self.places, self.statuses, strict=True)
        return tuple(place for place, status in pairs if status != TRUE_ALREADY)

    def keep(self, gone: Set[int]) -> Mapping[Site, KeyRecords]:
        """Return the records without those of some facts of the stream; none where none is left."""
        if gone.isdisjoint(self.written):
            return self.records
        left = torch.tensor([place for place in self.written if place not in gone])
        return self._select({site: torch.isin(own.owners, left) for site, own in self._items()})

    def only(self, places: Set[int]) -> Mapping[Site, KeyRecords]:
        """Return the records of some facts of the stream; none where there are none."""
        wanted = torch.tensor([place for place in self.written if place in places])
        return self._select({site: torch.isin(own.owners, wanted) for site, own in self._items()})

    def keep_entries(self, gone: Set[int]) -> Patch | None:
        """Return the patch without the entries of some facts; None where none is left."""
        assert self.patch is None or isinstance(self.patch, SeparablePatch), "checked at the start"
        out = [index for index, place in enumerate(self.owners) if place in gone]
        if self.patch is None or len(out) == len(self.owners):
            return None
        return self.patch.without_facts(out) if out else self.patch

    def _items(self) -> list[tuple[Site, KeyRecords]]:
        return list(self.records.items())

    def _select(self, rows: Mapping[Site, Tensor]) -> Mapping[Site, KeyRecords]:
        found = {site: own.select(rows[site]) for site, own in self._items()}
        return {site: own for site, own in found.items() if len(own.owners)}

    def to_state(self) -> State:
        """Return the batch as named tensors and plain metadata, for a file."""
        tensors = {f"{_CARRIED}{name}": one for name, one in self.carried.items()}
        for site, own in self.records.items():
            parts = own._asdict().items()
            tensors |= {f"{_RECORDS}{site}/{name}": part for name, part in parts}
        header = None
        if self.patch is not None:
            header = self.patch.header.to_json()
            tensors |= {f"{_STORED}{name}": one for name, one in self.patch.tensors().items()}
        meta = {
            "first": self.first,
            "facts": [asdict(fact) for fact in self.facts],
            "statuses": list(self.statuses),
            "owners": list(self.owners),
            "notices": list(self.notices),
            "seconds": self.seconds,
            "header": header,
        }
        return State(tensors, json.loads(json.dumps(meta)))

    @classmethod
    def from_state(cls, state: State) -> StreamBatch:
        """Restore a batch, to the bit.

        Raises:
            ValueError: something is missing or of another kind.
        """
        meta = cast("dict[str, Any]", dict(state.meta))
        header = meta["header"]
        return cls(
            first=int(meta["first"]),
            facts=tuple(Fact.restore(fact) for fact in meta["facts"]),
            statuses=tuple(map(str, meta["statuses"])),
            records=_read_records(_under(state, _RECORDS)),
            patch=None if header is None else _read_patch(header, _under(state, _STORED)),
            owners=tuple(map(int, meta["owners"])),
            carried=_under(state, _CARRIED),
            notices=tuple(map(str, meta["notices"])),
            seconds=float(meta["seconds"]),
        )


def _under(state: State, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a group by their names in it, each in memory of its own."""
    return {
        name.removeprefix(prefix): tensor.clone()
        for name, tensor in state.tensors.items()
        if name.startswith(prefix)
    }


def _read_records(tensors: Mapping[str, Tensor]) -> dict[Site, KeyRecords]:
    sites = dict.fromkeys(name.rpartition("/")[0] for name in tensors)
    return {
        Site.parse(site): KeyRecords(*(tensors[f"{site}/{part}"] for part in KeyRecords._fields))
        for site in sites
    }


def _read_patch(text: str, tensors: Mapping[str, Tensor]) -> Patch:
    header = Header.model_validate_json(text)
    kind = module_class(header.kind)
    if kind is None:
        raise ValueError(f'no method here stores entries of the kind "{header.kind}"')
    patch = kind(tensors, header)
    patch.require_sound()
    return patch
