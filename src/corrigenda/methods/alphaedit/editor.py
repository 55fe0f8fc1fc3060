"""AlphaEdit: MEMIT within the directions that old keys hardly use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field, JsonValue
from torch import Tensor

from corrigenda.editor import MemoryEstimate, Requires, Supports
from corrigenda.engines.locate.layers import MultiLayerEditor
from corrigenda.engines.locate.pipeline import EditPlan
from corrigenda.errors import MissingState
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.project import NullSpace, null_space
from corrigenda.linalg.solve import null_space_ridge
from corrigenda.lm.footprint import room_of
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.progress import Progress
from corrigenda.state import State
from corrigenda.training.dataset import TrainingSet

_RULE, _NOTICES = "alphaedit/rule", "alphaedit/notices"
_FREE_OF_ALL = 0.98
_ENOUGH_KEYS = 10.0
# Matrices that are there at once while eigenvectors of one are found.
_DECOMPOSITION = 6


class AlphaEdit(MultiLayerEditor):
    """Null-space constrained editing, in sequence.

    The projectors and the keys of all edits so far are in the state, as `alphaedit/projector/...`
    and `alphaedit/protected/...`; to undo an edit, continue from the state before it.

    Reference: Fang et al. 2025, sections 3.2 and 3.3. See the card.
    """

    name: ClassVar[str] = "alphaedit"
    requires: ClassVar[Requires] = Requires(subject=True, moments=True, training_set=False)
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, exact=False, order_free=True
    )

    # A projector and the protected keys beside the moment; a decomposition in place of a factor.
    factors_per_site: ClassVar[int] = 2
    solves_per_cube: ClassVar[float] = 9.0

    weight: float | None = Field(
        default=None,
        gt=0,
        description="Price of a change, in squared units of keys (L2); by default the mean "
        "of ||P k||^2 over the keys of text.",
    )
    energy: float = Field(
        default=0.02, gt=0, lt=1, description="Most of tr(C) that the free directions may hold."
    )
    threshold: float | None = Field(
        default=None, gt=0, description="Free are eigenvalues of C below this; replaces `energy`."
    )

    @property
    def protects_keys(self) -> bool:
        """Whether keys are protected: always."""
        return True

    def fit(
        self,
        lm: LanguageModel,
        corpus: TrainingSet | None = None,
        *,
        progress: Progress | None = None,
    ) -> State:
        """Fit second moments at `sites(lm)` and find the projectors from them, once."""
        state = super().fit(lm, corpus, progress=progress)
        device = "cuda" if self._decomposes_on_device(lm) else "cpu"
        return self.with_projectors(state, state.moment_sites, device=device)

    def memory(self, lm: LanguageModel, num_facts: int) -> MemoryEstimate:
        """Estimate the memory, with that of a decomposition on the device where it fits there."""
        found = super().memory(lm, num_facts)
        if self._decomposes_on_device(lm):
            return found._replace(fit=max(found.fit, self._decomposition_bytes(lm)))
        return found

    def _decomposes_on_device(self, lm: LanguageModel) -> bool:
        room = room_of(lm)
        if room.kind == "cpu" or lm.device.type not in ("cuda", "meta"):
            return False
        return room.free is None or self._decomposition_bytes(lm) <= room.free

    def _decomposition_bytes(self, lm: LanguageModel) -> int:
        widths = [lm.shape(site)[1] for site in self.likely_sites(lm)]
        return _DECOMPOSITION * 8 * max(widths) ** 2

    def with_projectors(
        self, state: State, sites: Sequence[Site], *, device: torch.device | str = "cpu"
    ) -> State:
        """Return a state with projectors computed from its second moments.

        Args:
            state: Holds the moments of `sites`.
            sites: Where to find a projector.
            device: Where the eigenvectors are computed; it must support float64.

        Raises:
            MissingState (CG503): a moment was not fitted.
            BadConfig (CG502): no direction would be free.
            NonFinite (CG201): a moment holds infinities or NaN.
        """
        tensors: dict[str, Tensor] = {}
        notices: list[JsonValue] = []
        for site in sites:
            moment = state.moment(site, device=device)
            free = null_space(moment.covariance(), threshold=self.threshold, energy=self.energy)
            if free.rank > _FREE_OF_ALL * free.width:
                notices.append(
                    f"{site}: {free.rank} of {free.width} directions are free, so hardly anything "
                    "is protected; choose a smaller threshold or energy."
                )
            if moment.keys_per_dimension < _ENOUGH_KEYS:
                notices.append(
                    f"{site}: {moment.keys_per_dimension:.1f} keys a dimension are few for "
                    "eigenvalues as small as those that decide what is free; fit on more text."
                )
            for name, tensor in free.tensors().items():
                tensors[f"{_projector_prefix(site)}{name}"] = tensor
        return state.updated(tensors, {_RULE: self._rule, _NOTICES: notices})

    def projector(self, state: State, site: Site) -> NullSpace:
        """Return the projector of a layer.

        Raises:
            MissingState (CG503): it was not found by `fit`, or by another rule than this editor's.
        """
        prefix = _projector_prefix(site)
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.tensors.items()
            if name.startswith(prefix)
        }
        if not tensors or state.meta.get(_RULE) != self._rule:
            held = f"the state's are by {state.meta[_RULE]}" if tensors else "the state holds none"
            raise MissingState(
                f"there is no projector for {site} by {self._rule}.",
                where=held,
                hint="Call `editor.fit(lm)` with the same editor and pass its state, or "
                "`editor.with_projectors(state, sites)` on a state with second moments.",
            )
        return NullSpace.from_tensors(tensors)

    def mean_energy(self, state: State, site: Site) -> float:
        """Return the mean of ||P k||^2 over the keys of text."""
        return self.projector(state, site).energy * state.mean_square(site)

    def make_plan(self, lm: LanguageModel, state: State | None) -> EditPlan:
        """Decide sites and contexts; every site must have its projector.

        Raises:
            MissingState (CG503): second moments or projectors are needed and not there.
            WrongBase (CG401): the state was fitted on another model.
        """
        plan = super().make_plan(lm, state)
        assert state is not None, "second moments were required"
        for site in plan.sites:
            self.projector(state, site)
        notices = state.meta.get(_NOTICES)
        assert isinstance(notices, list), "written with the rule"
        return plan._replace(notices=(*plan.notices, *map(str, notices)))

    def coordinates(
        self, state: State, site: Site, keys: Float[Tensor, "d_in n"]
    ) -> Float[Tensor, "size n"]:
        """Return the coordinates of keys in the free directions."""
        free = self.projector(state, site)
        return free.coordinates(keys.to(free.basis))

    def lift(
        self, state: State, site: Site, coordinates: Float[Tensor, "size n"]
    ) -> Float[Tensor, "d_in n"]:
        """Return the vectors of the free directions that have these coordinates."""
        return self.projector(state, site).lift(coordinates)

    def solve(
        self,
        keys: Float[Tensor, "d_in n"],
        residuals: Float[Tensor, "d_out n"],
        state: State,
        site: Site,
    ) -> LowRank:
        """Solve R K^T P ((K K^T + K_p K_p^T) P + weight I)^-1."""
        return null_space_ridge(
            keys,
            residuals,
            self.projector(state, site),
            protected=self.protected(state, site),
            weight=self.price(state, site),
        )

    @property
    def _rule(self) -> dict[str, JsonValue]:
        if self.threshold is not None:
            return {"threshold": self.threshold}
        return {"energy": self.energy}


def _projector_prefix(site: Site) -> str:
    return f"alphaedit/projector/{site}/"
