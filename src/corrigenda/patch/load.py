"""From a file back to the value."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from torch import Tensor

from corrigenda.errors import NewerFormat
from corrigenda.lm.sites import Site
from corrigenda.patch.changes import Change, change_from
from corrigenda.patch.file import corrupt, read_patch_file
from corrigenda.patch.module import module_class
from corrigenda.patch.protocols import Patch
from corrigenda.patch.weights import WeightPatch


def load_patch(path: str | Path) -> Patch:
    """Read a patch.

    Raises:
        CorruptFile (CG402): missing, truncated, changed since it was written, or not a patch.
        PickleRefused (CG403): a pickle file, by its name or by its first bytes.
        NewerFormat (CG404): written by a newer version of this library.
    """
    header, tensors = read_patch_file(path)
    if header.kind != "weights":
        found = module_class(header.kind)
        if found is not None:
            return found(tensors, header)  # type: ignore[return-value]  # subclasses are patches
        raise NewerFormat(
            f'{path} holds a patch of the kind "{header.kind}", which this version cannot read.',
            hint="Install what wrote it: corrigenda "
            f"{header.versions.get('corrigenda', 'unknown')}, or the plug-in of that method.",
        )
    try:
        return WeightPatch(_changes(tensors), header)
    except ValueError as error:
        raise corrupt(path, str(error)) from error


def _changes(tensors: dict[str, Tensor]) -> dict[Site, Change]:
    by_site: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        site, _, part = name.rpartition("/")
        by_site[site][part] = tensor
    return {Site.parse(site): change_from(parts) for site, parts in by_site.items()}
