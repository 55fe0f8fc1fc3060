"""Which patches are active on a model, and the pristine weights that make them come off exactly.

Adding a change and subtracting it again does not restore floating-point weights. So the first
merged patch that touches a weight leaves a copy of it here, and from then on the weight is always
pristine copy plus sum of the active changes, rounded once; the sum is exact in any order (see
`corrigenda.patch.patched_weight`), so that one more or one less costs the same however many there
are. With no change left the copy is written back and dropped.

The list of active patches changes only after the weights are right, and weights are written back
when anything fails: at every moment outside of this module, list and weights agree. A weight into
which something else has written meanwhile (training, say) is not overwritten unless forced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.errors import NotApplied, NotExportable, WeightsChanged, WrongBase
from corrigenda.lm.compiled import run_wrappers_directly
from corrigenda.lm.digest import count_writes
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.session import ActivePatches, session_of
from corrigenda.lm.sites import Site
from corrigenda.patch.applied import Applied, HasHeader
from corrigenda.patch.changes import Change
from corrigenda.patch.header import Header
from corrigenda.patch.patched_weight import PatchedWeight


class Ledger(ActivePatches[HasHeader]):
    """The patches active on one model, and the weights that they change."""

    @property
    def base_digest(self) -> str | None:
        """Digest of the model without any patch; None while there are none."""
        return self.session.base_digest if self.entries else None

    def base(self, lm: LanguageModel) -> str | None:
        """Return the digest of the model without any of its patches."""
        with self.session.lock:
            return self.session.base_digest if self.entries else lm.recall_digest()

    def digests(self) -> tuple[str, ...]:
        """Return the digests of active patches and their parts; empty ones change nothing."""
        with self.session.lock:
            return tuple(self.session.digest_counts)

    def admit(self, patch: HasHeader, lm: LanguageModel, *, force: bool) -> None:
        """Refuse a patch that does not belong on this model as it is; see `require`.

        Raises:
            WrongBase (CG401), NotApplied (CG406): as `require`; not with `force`.
        """
        self.session.base_digest = self.base(lm) if force else self.require(patch, lm)

    def require(self, patch: HasHeader, lm: LanguageModel) -> str | None:
        """Check that a patch belongs on this model as it is; nothing is changed.

        Returns:
            Digest of the model without any of its patches.

        Raises:
            WrongBase (CG401): another base, or a prerequisite is missing.
            NotApplied (CG406): active already, or a part of it is.
        """
        base = self.base(lm)
        require_base(patch.header, base, lm)
        active = self.session.digest_counts
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
        twice = [] if patch.is_empty else [name for name in digests_of(patch) if name in active]
        if twice:
            what = "" if patch.digest() in twice else f"{len(twice)} part(s) of "
            raise NotApplied(
                f"{what}this {patch.header.method} patch is active on this model already."
                if not what
                else f"{what}this {patch.header.method} patch are active on this model already.",
                where="active: " + ", ".join(name[:12] for name in twice),
                hint="Applying it twice would double the change; `force` does so.",
            )
        return base

    def pristine(self, lm: LanguageModel, site: Site) -> Float[Tensor, "d_out d_in"]:
        """Return a weight as it is without any merged patch; not a copy.

        Raises:
            UnknownSite (CG303): as `LanguageModel.values`.
        """
        with self.session.lock:
            for weight in self._weights:
                if site in weight.sites and len(weight.sum):
                    return weight.pristine
            return lm.values(site)

    def enter(
        self,
        entry: Applied,
        hooks: AbstractContextManager[object] | None = None,
        *,
        force: bool = False,
    ) -> Applied:
        """Make an admitted patch active; if that fails, nothing has changed.

        Raises:
            WeightsChanged (CG407): something else has written into a weight; not with `force`.
            NonFinite (CG201): the sum exceeds the range of a weight's dtype.
        """
        session, lm = self.session, entry.lm
        with session.exclusive(), torch.inference_mode(False):
            before = session.entries, session.digest_counts
            after = [*session.entries, entry], self._counts(entry, 1)
            self._drop_idle()
            touched = self._touched(entry)
            weights = [weight for weight, _ in touched]
            if not force:
                _require_unchanged(lm, weights)
            try:
                for (weight, change), name in zip(touched, _names(entry), strict=True):
                    weight.sum.add(name, change)
                _write(lm, weights)
                if hooks is not None:
                    entry.hooks.enter_context(session.override("save_pretrained", _RefusedSave(lm)))
                    entry.hooks.enter_context(run_wrappers_directly(lm.model))
                    entry.hooks.enter_context(hooks)
                session.entries, session.digest_counts = after
            except BaseException:
                session.entries, session.digest_counts = before
                entry.hooks.close()
                for weight, name in zip(weights, _names(entry), strict=True):
                    weight.sum.discard(name)
                _write(lm, weights)
                self._drop_idle()
                raise
        return entry

    def remove(self, entry: Applied, *, force: bool = False) -> None:
        """Take one application off; harmless when it is off already.

        Raises:
            WeightsChanged (CG407): something else has written into a weight; not with `force`.
            NonFinite (CG201): the patches that are left exceed the range of a weight's dtype.
        """
        session, lm = self.session, entry.lm
        with session.exclusive(), torch.inference_mode(False):
            before = session.entries, session.digest_counts
            left = [other for other in session.entries if other is not entry]
            if len(left) == len(session.entries):
                return
            after = left, self._counts(entry, -1)
            touched = self._touched(entry)
            weights = [weight for weight, _ in touched]
            if not force:
                _require_unchanged(lm, weights)
            try:
                for weight, name in zip(weights, _names(entry), strict=True):
                    weight.sum.discard(name)
                _write(lm, weights)
                session.entries, session.digest_counts = after
            except BaseException:
                session.entries, session.digest_counts = before
                for (weight, change), name in zip(touched, _names(entry), strict=True):
                    weight.sum.discard(name)
                    weight.sum.add(name, change)
                _write(lm, weights)
                raise
            self._drop_idle()
            entry.hooks.close()

    @property
    def _weights(self) -> list[PatchedWeight]:
        return self.session.weights

    def _counts(self, entry: Applied, step: int) -> dict[str, int]:
        """Return the counts of digests with those of a patch and its parts added."""
        counts = dict(self.session.digest_counts)
        for member in getattr(entry.patch, "members", (entry.patch,)):
            if member.is_empty:
                continue
            for name in digests_of(member):
                counts[name] = counts.get(name, 0) + step
                if not counts[name]:
                    del counts[name]
        return counts

    def _touched(self, entry: Applied) -> list[tuple[PatchedWeight, Change]]:
        """Return the changes of an entry, each with its weight, of which there is a copy now."""
        return [(self._patched_weight(entry.lm, site), change) for site, change in entry.changes]

    def _patched_weight(self, lm: LanguageModel, site: Site) -> PatchedWeight:
        for weight in self._weights:
            if site in weight.sites:
                return weight
        current = lm.weight(site)
        for weight in self._weights:
            if _same_storage(current, lm.weight(weight.site)):
                weight.sites.add(site)
                return weight
        pristine = current.detach().clone()
        weight = PatchedWeight(site, pristine, {site}, count_writes(current))
        self._weights.append(weight)
        return weight

    def _drop_idle(self) -> None:
        """Forget the pristine copies of weights that no active patch changes."""
        self._weights[:] = [weight for weight in self._weights if len(weight.sum)]


def ledger_of(lm: LanguageModel) -> Ledger:
    """Return the ledger of a model; wrappers of the same model share it."""
    return Ledger(session_of(lm.model))


def digests_of(patch: HasHeader) -> tuple[str, ...]:
    """Return the digests of the parts of a patch and of the patch itself."""
    found = dict.fromkeys(part.digest for part in patch.header.parts)
    return tuple(found | {patch.digest(): None})


def header_for(
    lm: LanguageModel,
    *,
    method: str,
    config: Mapping[str, object] | None = None,
    facts: Sequence[object] = (),
    notes: Mapping[str, object] | None = None,
) -> Header:
    """Return a header for a patch made now on this model.

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
    with ledger.session.lock:
        base, prerequisites = ledger.base(lm), ledger.digests()
    return Header.model_validate(
        {
            "method": method,
            "config": dict(config or {}),
            "facts": list(facts),
            "notes": dict(notes or {}),
            "base_digest": base,
            "base_name": lm.name,
            "prerequisites": prerequisites,
        }
    )


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


class _RefusedSave:
    """Takes the place of `save_pretrained` while something is active that it would not save."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm

    def __call__(self, *_: object, **__: object) -> None:
        active = [entry for entry in self._lm.patches.entries if entry.mode == "runtime"]
        raise NotExportable(
            "`save_pretrained` would write the unedited model: a patch that works at run time is "
            "no part of the weights.",
            where="active: " + ", ".join(entry.patch.header.method for entry in active),
            hint="Save the patch by itself (`patch.save`), or apply a weight patch with "
            'mode="merge"; to write the unedited model, revert the patch first.',
        )


def _names(entry: Applied) -> list[tuple[int, int]]:
    """Return the names of an entry's changes in sums; the entry lives as long as they are there."""
    return [(id(entry), place) for place in range(len(entry.changes))]


def _write(lm: LanguageModel, weights: Iterable[PatchedWeight]) -> None:
    """Write weights as the changes in their sums make them: pristine where there are none."""
    digests = session_of(lm.model).tensor_digests
    for weight in dict.fromkeys(weights):
        seen = lm.weight(weight.site)
        undisturbed = weight.version is not None and count_writes(seen) == weight.version
        lm.write(weight.site, weight.current())
        now = lm.weight(weight.site)
        # Of a weight that is no view of its parameter, nothing tells what was written between.
        undisturbed &= now.data_ptr() == seen.data_ptr()
        weight.written, weight.version = fingerprint(now), count_writes(now)
        if undisturbed and not len(weight.sum) and weight.before is not None:
            assert weight.version is not None, "it had one before"
            digests.renew(now, weight.before, weight.version)
            weight.before = weight.version


def _require_unchanged(lm: LanguageModel, weights: Iterable[PatchedWeight]) -> None:
    """Refuse to overwrite a weight that holds something else than what was written.

    Raises:
        WeightsChanged (CG407): something else has written into it.
    """
    changed = [
        str(weight.site)
        for weight in dict.fromkeys(weights)
        if weight.written is not None
        and not torch.equal(weight.written, fingerprint(lm.weight(weight.site)))
    ]
    if changed:
        raise WeightsChanged(
            "a weight was changed by something else, such as training, while a patch was merged "
            "into it; taking patches off or putting them on would lose that.",
            where=f"{lm.name}, site {', '.join(changed)}",
            hint="Restore what the patch had written, or accept the loss: "
            "`applied.revert(force=True)`.",
        )


def fingerprint(weight: Float[Tensor, "d_out d_in"]) -> Tensor:
    """Sum the bits of a matrix by row and by column, as integers; any training changes it."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    numbers = weight.detach().view(whole[weight.element_size()])
    sums = [numbers.sum(dim, dtype=torch.int64) for dim in (0, 1)]
    return torch.cat(sums).cpu()


def _same_storage(first: Tensor, second: Tensor) -> bool:
    return (
        first.data_ptr() == second.data_ptr()
        and first.shape == second.shape
        and first.stride() == second.stride()
    )
