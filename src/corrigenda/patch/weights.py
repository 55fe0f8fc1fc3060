"""An edit of weights, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, overload

import torch
from torch import Tensor

from corrigenda.errors import NonFinite, QuantisedWeights
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch import changes as change_algebra
from corrigenda.patch.changes import Change
from corrigenda.patch.header import Header, compose_headers
from corrigenda.patch.runtime import added_at_run_time, require_shapes
from corrigenda.patch.value import PatchValue


@dataclass(frozen=True, eq=False, repr=False)
class WeightPatch(PatchValue):
    """Changes of weights by site, with a header that records their origin.

    A value: its tensors are copied on construction, live on the CPU and are shared with nothing.
    Two patches are equal when header and tensors agree. `first + second` is one patch that does
    both; it is associative, and a patch without changes is neutral.

    Attributes:
        changes: What is added to the weight of each site, ordered by site; never an empty change.
        header: Method, configuration, facts, base model.

    Raises:
        NonFinite (CG201): a change holds infinities or NaN.

    Example:
        >>> WeightPatch({}, Header(method="none")).is_empty
        True
    """

    kind: ClassVar[str] = "weights"

    changes: Mapping[Site, Change]
    header: Header

    def __post_init__(self) -> None:
        kept: dict[Site, Change] = {}
        for site in sorted(self.changes, key=_order):
            change = change_algebra.copy_to_cpu(self.changes[site])
            tensors = change_algebra.tensors_of(change).values()
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
                raise NonFinite(
                    "a weight change holds infinities or NaN.",
                    where=f"site {site}, method {self.header.method}",
                )
            if change_algebra.num_parameters(change):
                kept[site] = change
        object.__setattr__(self, "changes", MappingProxyType(kept))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (dict(self.changes), self.header)

    @property
    def is_empty(self) -> bool:
        """Whether nothing would change."""
        return not self.changes

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites whose weights change."""
        return tuple(self.changes)

    def norms(self) -> dict[Site, float]:
        """Return the Frobenius norm of the change at each site."""
        return {site: change_algebra.norm(change) for site, change in self.changes.items()}

    def num_parameters(self) -> int:
        """Return how many numbers describe the patch: entries of factors, not of the weight."""
        return sum(change_algebra.num_parameters(change) for change in self.changes.values())

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the patch by its name in a file, such as `5.mlp.down/left`."""
        return {
            f"{site}/{name}": tensor
            for site, change in self.changes.items()
            for name, tensor in change_algebra.tensors_of(change).items()
        }

    def digest(self) -> str:
        """Return a hash of the changes alone, by which later patches refer to this one."""
        return change_algebra.digest_of(self.tensors())

    def scale(self, factor: float) -> WeightPatch:
        """Return the patch with every change times a number; the product of numbers is noted."""
        notes = dict(self.header.notes)
        previous = notes.get("scale", 1.0)
        notes["scale"] = factor * (previous if isinstance(previous, int | float) else 1.0)
        return WeightPatch(
            {site: change_algebra.scale(change, factor) for site, change in self.changes.items()},
            self.header.model_copy(update={"notes": notes}),
        )

    @overload
    def __add__(self, other: WeightPatch) -> WeightPatch: ...
    @overload
    def __add__(self, other: PatchValue) -> PatchValue: ...
    def __add__(self, other: object) -> PatchValue:
        """Return one patch that does what both do; of weights alone, one `WeightPatch`.

        Raises:
            WrongBase (CG401): they were made on different models.
            NotApplied (CG406): both contain the same patch, whose effect would double.
        """
        return super().__add__(other)

    def join(self, other: PatchValue) -> WeightPatch | None:
        """Return the sum with another change of weights."""
        if not isinstance(other, WeightPatch):
            return None
        together = dict(self.changes)
        for site, change in other.changes.items():
            mine = together.get(site)
            together[site] = change if mine is None else change_algebra.add(mine, change)
        header = compose_headers(self.header, other.header, digests=(self.digest(), other.digest()))
        return WeightPatch(together, header)

    def weight_changes(self) -> list[tuple[Site, Change]]:
        """Return the change of each site."""
        return list(self.changes.items())

    def run_time_hooks(
        self, lm: LanguageModel, *, merge: bool
    ) -> AbstractContextManager[object] | None:
        """Return hooks that add each change's output; None where the weights hold it."""
        return None if merge else added_at_run_time(self.changes, lm)

    def require_mode(self, lm: LanguageModel, mode: str) -> None:
        """Refuse to merge into quantised weights."""
        super().require_mode(lm, mode)
        if mode == "merge" and lm.is_quantised:
            raise QuantisedWeights(
                "a patch cannot be merged into quantised weights.",
                where=lm.name,
                hint='Apply it with mode="runtime", which is the default there.',
            )

    def require_fit(self, lm: LanguageModel) -> None:
        """Refuse a model whose weights have other shapes."""
        require_shapes(self.changes, lm)


def _order(site: Site) -> tuple[int, str, int]:
    return site.layer, site.part, -1 if site.expert is None else site.expert
