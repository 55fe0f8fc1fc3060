"""Reading a patch of any kind from its file."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from corrigenda.errors import NewerFormat, NonFinite
from corrigenda.lm.sites import Site
from corrigenda.patch.changes import CHANGE_FORMS, Change, change_from
from corrigenda.patch.file import corrupt, read_patch_file
from corrigenda.patch.forms import require_forms
from corrigenda.patch.header import Header
from corrigenda.patch.module import ModulePatch, module_class
from corrigenda.patch.protocols import Patch
from corrigenda.patch.value import COMPOSED, ComposedPatch, PatchValue
from corrigenda.patch.weights import WeightPatch


def load_patch(path: str | Path) -> Patch:
    """Read a patch.

    Raises:
        CorruptFile (CG402): missing, truncated, changed since it was written, or not a patch.
        PickleRefused (CG403): a pickle file, by its name or by its first bytes.
        NewerFormat (CG404): written by a newer version of this library.
    """
    header, tensors = read_patch_file(path)
    return _build(path, header, tensors)


def _build(path: str | Path, header: Header, tensors: dict[str, Tensor]) -> PatchValue:
    if header.kind == COMPOSED:
        return _compose(path, header, tensors)
    if header.kind != WeightPatch.kind:
        found = module_class(header.kind)
        if found is not None:
            return _build_module(path, found, header, tensors)
        raise NewerFormat(
            f'{path} holds a patch of the kind "{header.kind}", which this version cannot read.',
            hint="Install what wrote it: corrigenda "
            f"{header.versions.get('corrigenda', 'unknown')}, or the plug-in of that method.",
        )
    try:
        return WeightPatch(_changes(tensors), header)
    except NonFinite:
        raise
    except ValueError as error:
        raise corrupt(path, str(error)) from error


def _build_module(
    path: str | Path, kind: type[ModulePatch], header: Header, tensors: dict[str, Tensor]
) -> ModulePatch:
    """Build a patch and check it; a file may hold anything under a right checksum."""
    try:
        patch = kind(tensors, header)
        patch.require_sound()
    except NonFinite:
        raise
    except (ValueError, TypeError, KeyError, AssertionError, RuntimeError) as error:
        raise corrupt(path, f"it is no {header.kind} patch: {error}") from error
    return patch


def _compose(path: str | Path, header: Header, tensors: dict[str, Tensor]) -> ComposedPatch:
    by_member: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        place, _, own = name.partition("/")
        by_member[place][own] = tensor
    listed = header.config.get("members")
    try:
        headers = [Header.model_validate(one) for one in listed or []]  # type: ignore[union-attr]  # checked here
    except (ValidationError, TypeError) as error:
        raise corrupt(path, f"the headers of its members are not readable: {error}") from error
    known = {str(place) for place in range(len(headers))}
    if len(headers) < 2 or not by_member.keys() <= known:
        raise corrupt(path, "its members and their tensors do not agree")
    return ComposedPatch(
        tuple(_build(path, one, by_member[str(place)]) for place, one in enumerate(headers))
    )


def _changes(tensors: dict[str, Tensor]) -> dict[Site, Change]:
    by_site: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        site, _, part = name.rpartition("/")
        by_site[site][part] = tensor
    changes = {}
    for site, parts in by_site.items():
        form = next((one for one in CHANGE_FORMS if one.keys() == parts.keys()), None)
        if form is None:
            raise ValueError(f"no kind of change has the tensors {', '.join(sorted(parts))}")
        require_forms(form, parts, {})
        changes[Site.parse(site)] = change_from(parts)
    return changes
