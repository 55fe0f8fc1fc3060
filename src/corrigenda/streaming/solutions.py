"""Changes of weights as functions of the records of a stream, and how records are taken out.

Every solution is made by adding batches in their order, so that the same records give the same
bits, however often and in whatever company they are added.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.engines.closed_form import ClosedFormEditor, JointEditor, KeyRecords
from corrigenda.linalg.ridge_sums import RidgeSums
from corrigenda.lm.sites import Site
from corrigenda.patch import Change, Dense
from corrigenda.state import State
from corrigenda.streaming.batches import StreamBatch

_ROUNDING = torch.finfo(torch.float64).eps


class Solution(ABC):
    """Changes of all weights of a stream; a value.

    Attributes:
        error: Estimate of the greatest difference of a weight from the same records added anew;
            None where there is none, since they were.
    """

    error: float | None = None

    @abstractmethod
    def added(self, batch: StreamBatch, gone: Set[int]) -> Solution:
        """Return the solution with one more batch, without the records of some facts."""

    @abstractmethod
    def downdated(self, batches: Sequence[StreamBatch], gone: Set[int], more: Set[int]) -> Solution:
        """Return the solution with more facts taken out, without adding anything anew.

        Args:
            batches: All batches.
            gone: Places of the facts that are out already.
            more: Places of those to take out.
        """

    def changes(self) -> dict[Site, Change]:
        """Return the change of each weight, float64."""
        return {}

    def extend(self, state: State) -> State:
        """Return the fitted state with the keys of all records."""
        return state

    def absolute(self, records: Mapping[Site, KeyRecords]) -> Mapping[Site, KeyRecords]:
        """Return records of the next batch as they are kept: residuals as the solution adds up."""
        return records


@dataclass(frozen=True, eq=False)
class NoChanges(Solution):
    """Solution of a method that stores entries and changes no weight."""

    def added(self, batch: StreamBatch, gone: Set[int]) -> Solution:
        """Return itself."""
        del batch, gone
        return self

    def downdated(self, batches: Sequence[StreamBatch], gone: Set[int], more: Set[int]) -> Solution:
        """Return itself."""
        del batches, gone, more
        return self


@dataclass(frozen=True, eq=False)
class JointSolution(Solution):
    """One ridge regression over the records of all batches, at each site.

    Attributes:
        editor: The method.
        state: Its fitted state.
        sums: By site, in the coordinates of the method.
        error: See `Solution`.
    """

    editor: JointEditor
    state: State
    sums: Mapping[Site, RidgeSums] = field(default_factory=dict)
    error: float | None = None

    def added(self, batch: StreamBatch, gone: Set[int]) -> Solution:
        """Return the solution with the records of one more batch in the sums."""
        sums = dict(self.sums)
        for site, own in batch.keep(gone).items():
            keys = self._coordinates(site, own)
            before = sums.get(site)
            if before is None:
                price = self.editor.price(self.state, site)
                before = RidgeSums.empty(len(keys), own.residuals.shape[1], price, keys.device)
            sums[site] = before.with_columns(keys, own.residuals.T)
        return replace(self, sums=sums)

    def downdated(self, batches: Sequence[StreamBatch], gone: Set[int], more: Set[int]) -> Solution:
        """Return the solution with columns taken out of the sums by the formula of Woodbury."""
        sums = dict(self.sums)
        for batch in batches:
            for site, own in batch.only(more - gone).items():
                keys = self._coordinates(site, own)
                sums[site] = sums[site].without_columns(keys, own.residuals.T)
        made = replace(self, sums=sums)
        errors = [
            float(self.editor.lift(self.state, site, one.rounding_errors().T).abs().max())
            for site, one in sums.items()
        ]
        return replace(made, error=max(errors, default=0.0))

    def changes(self) -> dict[Site, Change]:
        """Return the change of each weight, lifted from the coordinates of the method."""
        lifted = {
            site: self.editor.lift(self.state, site, one.solution.T)
            for site, one in self.sums.items()
        }
        return {site: Dense(one.T.contiguous()) for site, one in lifted.items()}

    def extend(self, state: State) -> State:
        """Return the fitted state with all keys protected."""
        return self.editor.with_protected(
            state, {site: one.protect() for site, one in self.sums.items()}
        )

    def absolute(self, records: Mapping[Site, KeyRecords]) -> Mapping[Site, KeyRecords]:
        """Return records whose residuals count from the unedited weight."""
        found = {}
        for site, own in records.items():
            sums, residuals = self.sums.get(site), own.residuals
            if sums is not None:
                earlier = sums.solution @ self._coordinates(site, own)
                residuals = residuals + earlier.T.to(residuals)
            found[site] = own._replace(residuals=residuals)
        return found

    def _coordinates(self, site: Site, own: KeyRecords) -> Float[Tensor, "size n"]:
        return self.editor.coordinates(self.state, site, own.keys.T)


@dataclass(frozen=True, eq=False)
class AddedSolution(Solution):
    """Sum of the changes of batches that are each solved by themselves.

    Attributes:
        editor: The method.
        state: Its fitted state.
        totals: Change of each weight, float64.
        error: See `Solution`.
    """

    editor: ClosedFormEditor
    state: State
    totals: Mapping[Site, Float[Tensor, "d_out d_in"]] = field(default_factory=dict)
    error: float | None = None

    def added(self, batch: StreamBatch, gone: Set[int]) -> Solution:
        """Return the solution with the change of one more batch."""
        return replace(self, totals=self._add(self.totals, batch.keep(gone), 1.0))

    def downdated(self, batches: Sequence[StreamBatch], gone: Set[int], more: Set[int]) -> Solution:
        """Return the solution with the changes of the batches concerned taken off and solved anew.

        The error is a bound of the rounding.
        """
        totals, size, steps = self.totals, 0.0, 0
        for batch in batches:
            if (more - gone).isdisjoint(batch.written):
                continue
            size = max([size, *(float(one.abs().max()) for one in totals.values())])
            totals = self._add(totals, batch.keep(gone), -1.0)
            totals = self._add(totals, batch.keep(gone | more), 1.0)
            steps += 2
        error = (self.error or 0.0) + _ROUNDING * size * (steps + len(batches))
        return replace(self, totals=totals, error=error)

    def changes(self) -> dict[Site, Change]:
        """Return the sums."""
        return {site: Dense(one) for site, one in self.totals.items()}

    def _add(
        self, totals: Mapping[Site, Tensor], records: Mapping[Site, KeyRecords], sign: float
    ) -> dict[Site, Tensor]:
        found = dict(totals)
        for site, own in records.items():
            change = self.editor.solve(own.keys.T, own.residuals.T, self.state, site)
            before = found.get(site)
            if before is None:
                before = change.left.new_zeros(change.shape)
            found[site] = before.addmm(change.left, change.right.T, alpha=sign)
        return found
