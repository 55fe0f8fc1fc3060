"""An edit of weights, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from corrigenda.errors import NonFinite, QuantisedWeights, WrongBase
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch import changes as change_algebra
from corrigenda.patch.changes import Change
from corrigenda.patch.file import save_patch
from corrigenda.patch.header import Header, compose_headers
from corrigenda.patch.ledger import Applied, ledger_of
from corrigenda.patch.runtime import added_at_run_time, require_shapes


@dataclass(frozen=True, eq=False)
class WeightPatch:
    """Changes of weights by site, with a header that says where they come from.

    A value: its tensors are copied on construction, live on the CPU and belong to nobody else. Two
    patches are equal when header and tensors agree. `first + second` is one patch that does both;
    it is associative, and a patch without changes is neutral.

    Attributes:
        changes: What is added to the weight of each site, ordered by site; never an empty change.
        header: Method, configuration, facts, base model.

    Raises:
        NonFinite (CG201): a change holds infinities or NaN.

    Example:
        >>> WeightPatch({}, Header(method="none")).is_empty
        True
    """

    changes: Mapping[Site, Change]
    header: Header

    def __post_init__(self) -> None:
        kept: dict[Site, Change] = {}
        for site in sorted(self.changes, key=_order):
            change = change_algebra.owned(self.changes[site])
            tensors = change_algebra.tensors_of(change).values()
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
                raise NonFinite(
                    "a weight change holds infinities or NaN.",
                    where=f"site {site}, method {self.header.method}",
                )
            if change_algebra.num_parameters(change):
                kept[site] = change
        object.__setattr__(self, "changes", MappingProxyType(kept))

    @property
    def is_empty(self) -> bool:
        """Whether nothing would change."""
        return not self.changes

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites whose weights change."""
        return tuple(self.changes)

    def norms(self) -> dict[Site, float]:
        """Frobenius norm of the change at each site."""
        return {site: change_algebra.norm(change) for site, change in self.changes.items()}

    def num_parameters(self) -> int:
        """How many numbers describe the patch: the entries of factors, not those of the weight."""
        return sum(change_algebra.num_parameters(change) for change in self.changes.values())

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the patch by its name in a file, such as `5.mlp.down/left`."""
        return {
            f"{site}/{name}": tensor
            for site, change in self.changes.items()
            for name, tensor in change_algebra.tensors_of(change).items()
        }

    def digest(self) -> str:
        """Hash of the changes alone; what other patches call this one when they build on it."""
        return change_algebra.digest_of(self.tensors())

    def scaled(self, factor: float) -> WeightPatch:
        """The patch with every change times a number; the product of such numbers is noted."""
        notes = dict(self.header.notes)
        previous = notes.get("scale", 1.0)
        notes["scale"] = factor * (previous if isinstance(previous, int | float) else 1.0)
        return WeightPatch(
            {site: change_algebra.scaled(change, factor) for site, change in self.changes.items()},
            self.header.model_copy(update={"notes": notes}),
        )

    def __add__(self, other: WeightPatch) -> WeightPatch:
        """One patch that does what both do.

        Raises:
            WrongBase (CG401): they were made on different models.
        """
        if self.is_empty or other.is_empty:
            return other if self.is_empty else self
        bases = {self.header.base_digest, other.header.base_digest} - {None}
        if len(bases) > 1:
            raise WrongBase(
                "these patches were made on different models and cannot become one.",
                where=f"{self.header.base_name} and {other.header.base_name}",
            )
        together = dict(self.changes)
        for site, change in other.changes.items():
            mine = together.get(site)
            together[site] = change if mine is None else change_algebra.add(mine, change)
        header = compose_headers(self.header, other.header, digests=(self.digest(), other.digest()))
        return WeightPatch(together, header)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, WeightPatch)
            and self.header.to_json() == other.header.to_json()
            and change_algebra.same_tensors(self.tensors(), other.tensors())
        )

    __hash__ = None  # type: ignore[assignment]  # holds tensors, compared by content

    def apply(
        self,
        lm: LanguageModel,
        *,
        mode: Literal["merge", "runtime"] = "merge",
        force: bool = False,
    ) -> Applied:
        """Make the patch active on a model.

        Args:
            lm: A model; several patches may be active on it, in both modes.
            mode: "merge" rewrites the weights (nothing is slower afterwards); "runtime" leaves
                them alone and adds `(x @ right) @ left.T` in forward hooks, also on quantised
                models.
            force: Apply it to another base, without its prerequisites, or twice. Shapes must fit.

        Returns:
            A context manager with `.revert()`; merged weights return bit for bit, in any order.

        Raises:
            WrongBase (CG401): made on another model, or its prerequisites are not active.
            NotApplied (CG406): active already.
            QuantisedWeights (CG304): merge mode on a quantised model.
            NonFinite (CG201): the sum overflows the dtype of the weight.
            UnknownSite (CG303): the model has no such layer or part.
        """
        if mode not in ("merge", "runtime"):
            raise ValueError(f'mode is "merge" or "runtime", not {mode!r}')
        if mode == "merge" and lm.is_quantised:
            raise QuantisedWeights(
                "a patch cannot be merged into quantised weights.",
                where=lm.name,
                hint='Apply it with mode="runtime".',
            )
        ledger = ledger_of(lm)
        ledger.admit(self, lm, force=force)
        require_shapes(self.changes, lm)
        hooks = added_at_run_time(self.changes, lm) if mode == "runtime" else None
        return ledger.enter(Applied(self, lm, mode), hooks)

    def save(self, path: str | Path) -> Path:
        """Write the patch to one safetensors file; see `corrigenda.patch.file.save_patch`."""
        return save_patch(self, path)


def _order(site: Site) -> tuple[int, str, int]:
    return site.layer, site.part, -1 if site.expert is None else site.expert
