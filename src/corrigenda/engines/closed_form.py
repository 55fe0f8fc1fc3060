"""What a method gives whose update is a closed form of keys and residuals, or a store of entries.

From these records the change of every weight can be computed again without any of the facts: see
`corrigenda.streaming`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.protected import Protected
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch import Patch
from corrigenda.state import State


class KeyRecords(NamedTuple):
    """Keys and residuals that facts gave at one site, one row each; float64 on the CPU.

    Attributes:
        keys: Inputs of the weight.
        residuals: Wanted changes of its output.
        owners: Index of the fact that each row belongs to.
    """

    keys: Float[Tensor, "n d_in"]
    residuals: Float[Tensor, "n d_out"]
    owners: Int[Tensor, " n"]

    def select(self, rows: Bool[Tensor, " n"]) -> KeyRecords:
        """Return some rows, in order, as tensors of their own."""
        return KeyRecords(*(part[rows].contiguous() for part in self))


class RecordedBatch(NamedTuple):
    """Records of one batch of facts, with what an edit reports.

    Attributes:
        records: By site; residuals are what the model as it was edited lacked.
        state: State for the next batch, without keys that the records hold.
        statuses: One for each fact, as in the notes of a patch.
        notices: Warnings, in words.
    """

    records: Mapping[Site, KeyRecords]
    state: State
    statuses: tuple[str, ...]
    notices: tuple[str, ...]


@runtime_checkable
class ClosedFormEditor(Protocol):
    """Method whose change of each weight is a closed form of keys and residuals."""

    @property
    def joins_batches(self) -> bool:
        """Whether all batches are one system; else each is solved by itself and they add up."""
        ...

    def record(self, lm: LanguageModel, facts: Sequence[Fact], state: State) -> RecordedBatch:
        """Find keys and residuals of facts, as `edit` does; the model is left as it is."""
        ...

    def solve(
        self,
        keys: Float[Tensor, "d_in n"],
        residuals: Float[Tensor, "d_out n"],
        state: State,
        site: Site,
    ) -> LowRank:
        """Solve for the change of one weight."""
        ...


@runtime_checkable
class JointEditor(ClosedFormEditor, Protocol):
    """Method whose batches are one ridge regression, in coordinates with one price."""

    def coordinates(
        self, state: State, site: Site, keys: Float[Tensor, "d_in n"]
    ) -> Float[Tensor, "size n"]:
        """Return keys in coordinates in which a change costs the same in every direction."""
        ...

    def lift(
        self, state: State, site: Site, coordinates: Float[Tensor, "size n"]
    ) -> Float[Tensor, "d_in n"]:
        """Return what reads a key as `coordinates` read its coordinates."""
        ...

    def price(self, state: State, site: Site) -> float:
        """Return the price of a change in these coordinates."""
        ...

    def with_protected(self, state: State, held: Mapping[Site, Protected]) -> State:
        """Return a state that holds these keys of earlier batches."""
        ...


@runtime_checkable
class SeparablePatch(Protocol):
    """Patch made of entries, each of which belongs to one fact."""

    def without_facts(self, gone: Collection[int]) -> Patch:
        """Return the patch without the facts at these places of its header."""
        ...
