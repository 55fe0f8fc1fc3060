"""The base of transforms: a frozen configuration that makes a patch from a patch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from corrigenda.errors import NotExportable
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.kv_cache import batches, pad_id
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens, key
from corrigenda.lm.spans import encode_fact
from corrigenda.patch import Header, WeightPatch, ledger_of
from corrigenda.patch.changes import Change, Dense, Rows
from corrigenda.patch.runtime import require_shapes
from corrigenda.settings import Settings

if TYPE_CHECKING:
    from corrigenda.patch import Patch

_HALF = 0.5
_FACT_FIELDS = ("prompt", "target", "subject", "subject_start", "separator")


class TransformedChange(NamedTuple):
    """New change at one site, with a report.

    Attributes:
        change: The new change; None where nothing is left of it.
        report: What was measured, plain values for the header.
    """

    change: Change | None
    report: Mapping[str, JsonValue]


class Transform(Settings, ABC):
    """Transform of a weight patch; validated, frozen, equal when the options are equal.

    A transform is a subclass with `name` and `at`. Calling it never changes the model, the same
    arguments give an equal patch, and an empty patch comes back as it is.

    Raises:
        BadConfig (CG502): an option the transform does not have, or a value it cannot take.
    """

    kind: ClassVar[str] = "transform"
    name: ClassVar[str]

    def __call__(self, patch: Patch, lm: LanguageModel) -> WeightPatch:
        """Make the new patch.

        Its header keeps everything and adds an entry to `notes["transforms"]`: name, options,
        digest of the patch before, and a report by site. There `residual` is, fact by fact, the
        relative difference between what the new and the old change write at the fact's key (the
        input at the subject's last token, or at the prompt's last one): 0 where a constraint that
        held still holds, None where the old change writes nothing.

        Args:
            patch: A patch of weights, not active on the model.
            lm: The model it was made on, with the patches active that it was made on top of.

        Raises:
            NotExportable (CG405): the patch changes no weights.
            WrongBase (CG401): made on another model, or on top of patches that are not active.
            NotApplied (CG406): the patch is active.
            QuantisedWeights (CG304): the weights cannot be read.
        """
        if not isinstance(patch, WeightPatch):
            raise NotExportable(
                f"a {type(patch).__name__} changes no weights, so there is nothing to transform.",
                where=patch.header.method,
            )
        if patch.is_empty:
            return patch
        ledger_of(lm).require(patch, lm)
        require_shapes(patch.changes, lm)
        keys = collect_keys(patch, lm)
        changes: dict[Site, Change] = {}
        report: dict[str, JsonValue] = {}
        residuals: dict[Site, list[float | None]] = {}
        for site, change in patch.changes.items():
            new = self.transform_change(site, change, lm, keys.get(site))
            if new.change is not None:
                changes[site] = new.change
            residuals[site] = _measure_residuals(change, new.change, keys.get(site))
            report[str(site)] = {**new.report, "residual": [*residuals[site]]}
        return WeightPatch(changes, self._make_header(patch, report, residuals))

    @abstractmethod
    def transform_change(
        self,
        site: Site,
        change: Change,
        lm: LanguageModel,
        keys: Float[Tensor, "d_in n"] | None,
    ) -> TransformedChange:
        """Return the new change of one weight.

        Args:
            site: Where.
            change: The change as it is.
            lm: The model in front of the change.
            keys: Inputs at the facts' keys with the old patch active; None without facts.
        """

    def _make_header(
        self,
        patch: WeightPatch,
        report: Mapping[str, JsonValue],
        residuals: Mapping[Site, Sequence[float | None]],
    ) -> Header:
        header = patch.header
        entry: JsonValue = {
            "name": self.name,
            "options": self.model_dump(mode="json"),
            "of": patch.digest(),
            "report": dict(report),
        }
        notes = dict(header.notes)
        notes["transforms"] = [*_read_list(notes, "transforms"), entry]
        notices = _read_list(notes, "notices") + self.list_notices(residuals)
        if notices:
            notes["notices"] = notices
        # What a composition consisted of is no longer there bit for bit, so others cannot build
        # on its parts.
        if header.parts:
            notes["parts"] = [part.model_dump(mode="json") for part in header.parts]
        method = f"({header.method})" if " + " in header.method else header.method
        fields = {**header.model_dump(), "method": f"{method} > {self.name}"}
        return Header.model_validate({**fields, "notes": notes, "parts": ()})

    def list_notices(self, residuals: Mapping[Site, Sequence[float | None]]) -> list[JsonValue]:
        """Return notices for the user: how many facts lose half of what was written."""
        lost = [
            max((row[index] or 0.0 for row in residuals.values()), default=0.0) > _HALF
            for index in range(max(map(len, residuals.values()), default=0))
        ]
        if not any(lost):
            return []
        return [
            f"{self.name}: what the patch writes at the keys of {sum(lost)} of {len(lost)} facts "
            "changes by more than half; ask them again."
        ]


def collect_keys(patch: WeightPatch, lm: LanguageModel) -> dict[Site, Float[Tensor, "d_in n"]]:
    """Return the inputs of each changed weight at the facts' keys, one column a fact; float64.

    Taken with the patch active, so that at higher layers they are those that the edited model
    computes; a weight's own change does not alter its input. Empty where the header has no facts.
    """
    rows = [_encode_to_key(lm, fact) for fact in _read_facts(patch.header)]
    if not rows:
        return {}
    found = {site: [torch.empty(0)] * len(rows) for site in patch.sites}
    with WeightPatch(patch.changes, Header(method=patch.header.method)).apply(lm, mode="runtime"):
        for batch in batches(lm, [len(row) for row in rows], None):
            tokens = Tokens.pad([rows[index] for index in batch], pad_id(lm)).to(lm.device)
            last = tokens.lengths - 1
            seen = lm.tap(tokens, [key(site) for site in patch.sites], positions=last)
            for site in patch.sites:
                for index, row in zip(batch, seen[key(site)].double().cpu(), strict=True):
                    found[site][index] = row
    return {site: torch.stack(columns, dim=1) for site, columns in found.items()}


def read_weight(lm: LanguageModel, site: Site) -> Float[Tensor, "d_out d_in"]:
    """Return a weight before the change, as it is now, float64 on the CPU."""
    return lm.values(site).detach().cpu().double()


def compute_output(
    change: Change | None, keys: Float[Tensor, "d_in n"], d_out: int
) -> Float[Tensor, "d_out n"]:
    """Return what a change adds to the output at each key, float64."""
    match change:
        case None:
            return torch.zeros(d_out, keys.shape[1], dtype=torch.float64)
        case LowRank(left=left, right=right):
            return left.double() @ (right.double().T @ keys)
        case Dense(delta=delta):
            return delta.double() @ keys
        case Rows(index=index, values=values):
            full = torch.zeros(d_out, keys.shape[1], dtype=torch.float64)
            return full.index_copy(0, index, values.double() @ keys)


def _measure_residuals(
    old: Change, new: Change | None, keys: Float[Tensor, "d_in n"] | None
) -> list[float | None]:
    if keys is None:
        return []
    before, after = (compute_output(change, keys, old.shape[0]) for change in (old, new))
    sizes = before.norm(dim=0).tolist()
    gaps = (after - before).norm(dim=0).tolist()
    return [
        float(f"{gap / size:.6g}") if size else None for gap, size in zip(gaps, sizes, strict=True)
    ]


def _read_facts(header: Header) -> list[Fact]:
    """Return the facts of a header; none if a record is no fact."""
    if not all({"prompt", "target"} <= set(record) for record in header.facts):
        return []
    return [
        Fact(**{name: record[name] for name in _FACT_FIELDS if name in record})  # type: ignore[arg-type]  # as saved
        for record in header.facts
    ]


def _encode_to_key(lm: LanguageModel, fact: Fact) -> list[int]:
    one = encode_fact(lm, fact)
    at = one.prompt_last if one.subject_last is None else one.subject_last
    return one.ids[: at + 1]


def _read_list(notes: Mapping[str, JsonValue], name: str) -> list[JsonValue]:
    found = notes.get(name)
    return list(found) if isinstance(found, list) else []
