"""Which patches are active on a model, and the pristine weights that make them come off exactly.

Adding a change and subtracting it again does not restore floating-point weights. So the first
merged patch that touches a weight leaves a copy of it here, and from then on the weight is always
computed anew: pristine copy plus all active changes in order of application, summed in float64 and
rounded once. With no change left the copy is written back and dropped. Whatever else was written
into a patched weight meanwhile is therefore lost when a patch comes or goes: that is what exact
means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.errors import NonFinite, NotApplied, WrongBase
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch.changes import Change, add_to_weight
from corrigenda.patch.generate import asked_through
from corrigenda.patch.header import Header
from corrigenda.patch.protocols import AnswerPatch, HookPatch, Patch, PromptPatch

Mode = Literal["merge", "runtime"]

_ATTRIBUTE = "_corrigenda_ledger"


class Applied:
    """A patch that is active on a model; a context manager that takes it off, also on exceptions.

    Attributes:
        patch: The patch.
        lm: The model.
        mode: "merge" where weights were rewritten, "runtime" where hooks do the work.
        hooks: What is undone when the patch comes off, apart from weights.
    """

    def __init__(self, patch: Patch, lm: LanguageModel, mode: Mode) -> None:
        """Made by `Patch.apply` only."""
        self.patch, self.lm, self.mode = patch, lm, mode
        self.hooks = ExitStack()

    @property
    def active(self) -> bool:
        """Whether the patch is still on."""
        return any(entry is self for entry in ledger_of(self.lm).entries)

    def revert(self) -> None:
        """Take the patch off, bit for bit; harmless when it is off already."""
        if self.active:
            ledger_of(self.lm).remove(self)

    def __enter__(self) -> Applied:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.revert()

    def __repr__(self) -> str:
        state = "active" if self.active else "reverted"
        return f"<{self.patch.header.method} patch, {self.mode}, {state}>"


@dataclass(eq=False)
class _Region:
    """A weight under change: the storage behind one site, or behind several that share it."""

    site: Site
    pristine: Float[Tensor, "d_out d_in"]
    sites: set[Site] = field(default_factory=set[Site])


class Ledger(Sequence[Patch]):
    """The patches active on one model, in order of application; read it as `lm.patches`.

    Attributes:
        entries: The `Applied` of each.
        base_digest: Digest of the model without any of them; None while there are none.
    """

    def __init__(self) -> None:
        """Start with no patches."""
        self.entries: list[Applied] = []
        self.base_digest: str | None = None
        self._regions: list[_Region] = []

    @overload
    def __getitem__(self, index: int) -> Patch: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Patch, ...]: ...
    def __getitem__(self, index: int | slice) -> Patch | tuple[Patch, ...]:
        patches = tuple(entry.patch for entry in self.entries)
        return patches[index]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Patch]:
        return iter([entry.patch for entry in self.entries])

    def __repr__(self) -> str:
        return f"<active patches: {', '.join(patch.header.method for patch in self) or 'none'}>"

    def __deepcopy__(self, memo: object) -> Ledger:
        """A copied model starts with no patches: what it holds then is its own base."""
        return Ledger()

    def __reduce__(self) -> tuple[type[Ledger], tuple[()]]:
        return Ledger, ()

    def base(self, lm: LanguageModel) -> str | None:
        """Digest of the model without any of its patches."""
        return self.base_digest if self.entries else lm.digest()

    def digests(self) -> tuple[str, ...]:
        """Digests of all active patches and of the parts they are composed of, in order."""
        found: dict[str, None] = {}
        for patch in self:
            found |= dict.fromkeys(part.digest for part in patch.header.parts)
            found[patch.digest()] = None
        return tuple(found)

    def revert(self, patch: Patch) -> None:
        """Take off the latest application of this patch.

        Raises:
            NotApplied (CG406): no equal patch is active.
        """
        for entry in reversed(self.entries):
            if entry.patch == patch:
                return self.remove(entry)
        raise NotApplied(
            f"this {patch.header.method} patch is not active on this model.",
            hint="`lm.patches` lists those that are.",
        )

    def clear(self) -> None:
        """Take off every patch; the model is as it was before the first."""
        for entry in reversed(tuple(self.entries)):
            self.remove(entry)

    def admit(self, patch: Patch, lm: LanguageModel, *, force: bool) -> None:
        """Refuse a patch that does not belong on this model as it stands; see `require`.

        Raises:
            WrongBase (CG401), NotApplied (CG406): as `require`; not with `force`.
        """
        self.base_digest = self.base(lm) if force else self.require(patch, lm)

    def require(self, patch: Patch, lm: LanguageModel) -> str | None:
        """Check that a patch belongs on this model as it stands; nothing is changed.

        Returns:
            Digest of the model without any of its patches.

        Raises:
            WrongBase (CG401): another base, or a prerequisite is missing.
            NotApplied (CG406): active already.
        """
        base = self.base(lm)
        require_base(patch.header, base, lm)
        active = self.digests()
        missing = [name for name in patch.header.prerequisites if name not in active]
        if missing:
            raise WrongBase(
                f"this {patch.header.method} patch was made on top of "
                f"{len(patch.header.prerequisites)} other patch(es), of which {len(missing)} "
                "are not active.",
                where="missing: " + ", ".join(name[:12] for name in missing),
                hint="Apply those first, in order, or compose them with `+`; "
                "`force` applies it all the same.",
            )
        if not patch.is_empty and patch.digest() in active:
            raise NotApplied(
                f"this {patch.header.method} patch is active on this model already.",
                hint="Applying it twice would double the change; `force` does so.",
            )
        return base

    def pristine(self, lm: LanguageModel, site: Site) -> Float[Tensor, "d_out d_in"]:
        """A weight as it is without any merged patch; not a copy.

        Raises:
            UnknownSite (CG303), QuantisedWeights (CG304): as `LanguageModel.weight`.
        """
        for region in self._regions:
            if site in region.sites:
                return region.pristine
        return lm.weight(site)

    def enter(self, entry: Applied, hooks: AbstractContextManager[object] | None = None) -> Applied:
        """Make an admitted patch active; if that fails, nothing has changed."""
        self.entries.append(entry)
        try:
            if hooks is not None:
                entry.hooks.enter_context(hooks)
            else:
                self._recompute(entry)
        except BaseException:
            self.remove(entry)
            raise
        return entry

    def remove(self, entry: Applied) -> None:
        """Take one application off."""
        self.entries = [other for other in self.entries if other is not entry]
        entry.hooks.close()
        if entry.mode == "merge":
            self._recompute(entry)
        if not self.entries:
            self.base_digest = None

    def _recompute(self, entry: Applied) -> None:
        """Write every weight that this entry touches anew from its pristine copy."""
        touched = [self._region(entry.lm, site) for site in _changes(entry)]
        for region in dict.fromkeys(touched):
            changes = [
                change
                for other in self.entries
                if other.mode == "merge"
                for site, change in _changes(other).items()
                if site in region.sites
            ]
            if not changes:
                entry.lm.write(region.site, region.pristine)
                self._regions.remove(region)
                continue
            total = region.pristine.to(_sum_dtype(region.pristine), copy=True)
            for change in changes:
                add_to_weight(change, total)
            rounded = total.to(region.pristine.dtype)
            if not bool(torch.isfinite(rounded).all()):
                raise NonFinite(
                    f"the patched weight exceeds the range of {rounded.dtype}.",
                    where=f"site {region.site}",
                    hint="The change is too large for this model; load it in float32 or bfloat16.",
                )
            entry.lm.write(region.site, rounded)

    def _region(self, lm: LanguageModel, site: Site) -> _Region:
        for region in self._regions:
            if site in region.sites:
                return region
        weight = lm.weight(site)
        for region in self._regions:
            if _same_storage(weight, lm.weight(region.site)):
                region.sites.add(site)
                return region
        region = _Region(site, weight.detach().clone(), {site})
        self._regions.append(region)
        return region


def ledger_of(lm: LanguageModel) -> Ledger:
    """The ledger of the model behind `lm`; wrappers of the same model share it."""
    ledger = lm.model.__dict__.get(_ATTRIBUTE)
    if ledger is None:
        ledger = Ledger()
        lm.model.__dict__[_ATTRIBUTE] = ledger
    lm.patches = ledger
    return ledger


def header_for(
    lm: LanguageModel,
    *,
    method: str,
    config: Mapping[str, object] | None = None,
    facts: Sequence[object] = (),
    notes: Mapping[str, object] | None = None,
) -> Header:
    """A header for a patch made now on this model.

    The base is the model without any patch. What is active at the moment becomes the prerequisites:
    a later edit of a sequence is only valid on top of the earlier ones.

    Args:
        lm: The model that was edited.
        method: Name of the editor.
        config: Its configuration; anything that can become JSON.
        facts: What was corrected, `Fact` or mappings.
        notes: What the method reports.
    """
    ledger = ledger_of(lm)
    return Header.model_validate(
        {
            "method": method,
            "config": dict(config or {}),
            "facts": list(facts),
            "notes": dict(notes or {}),
            "base_digest": ledger.base(lm),
            "base_name": lm.name,
            "prerequisites": ledger.digests(),
        }
    )


def apply_hooks(
    patch: HookPatch | PromptPatch | AnswerPatch, lm: LanguageModel, *, force: bool = False
) -> Applied:
    """Make a patch active that works by hooks, or that stands between questions and the model.

    Raises:
        WrongBase (CG401): made on another model, or its prerequisites are not active.
        NotApplied (CG406): active already.
    """
    ledger = ledger_of(lm)
    ledger.admit(patch, lm, force=force)
    if patch.is_empty:
        hooks: AbstractContextManager[object] = ExitStack()
    elif isinstance(patch, HookPatch):
        hooks = patch.hooks(lm)
    else:
        hooks = asked_through(patch, lm)
    return ledger.enter(Applied(patch, lm, "runtime"), hooks)


def _changes(entry: Applied) -> Mapping[Site, Change]:
    return getattr(entry.patch, "changes", {})


def require_base(header: Header, base: str | None, lm: LanguageModel) -> None:
    """Refuse a patch made on another model than the one whose pristine digest is `base`.

    Raises:
        WrongBase (CG401): the digests differ.
    """
    if header.base_digest is None or header.base_digest == base:
        return
    raise WrongBase(
        f"this {header.method} patch was made on {header.base_name or 'another model'} "
        f"({header.base_digest[:12]}), not on {lm.name} as it is now ({str(base)[:12]}).",
        hint="Load the very weights and dtype it was made on; `force` applies it all the same, "
        "with no promise about its effect.",
    )


def _same_storage(first: Tensor, second: Tensor) -> bool:
    return (
        first.data_ptr() == second.data_ptr()
        and first.shape == second.shape
        and first.stride() == second.stride()
    )


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64
