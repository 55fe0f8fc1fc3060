"""Active patches that answer as one, and a cache of what is built from all of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar
from weakref import ref

from corrigenda.lm.model import LanguageModel
from corrigenda.patch.ledger import ledger_of
from corrigenda.patch.module import ModulePatch

PatchType = TypeVar("PatchType", bound=ModulePatch)
Built = TypeVar("Built")


def active_group(patch: PatchType, lm: LanguageModel) -> list[PatchType]:
    """Return the active patches that answer as one with this patch, first applied first.

    They are of one class and have equal configurations. A patch that is not active forms a group
    by itself.
    """
    group = [
        one
        for one in ledger_of(lm)
        if isinstance(one, type(patch))
        and type(one) is type(patch)
        and one.header.config == patch.header.config
        and not one.is_empty
    ]
    return group if any(one is patch for one in group) else [patch]


class PatchCache(Generic[Built]):
    """Cache of one value, built from a list of patches and dropped when one of them is collected.

    Building reads every edit, and questions come one after another to the same patches.

    Example:
        >>> PatchCache(len).get([])
        0
    """

    def __init__(self, build: Callable[[Sequence[ModulePatch]], Built]) -> None:
        """Args: build: Builds the value from the patches, in order."""
        self._build = build
        self._entry: tuple[list[ref[ModulePatch]], Built] | None = None

    def get(self, patches: Sequence[ModulePatch]) -> Built:
        """Return the value for these patches, in order; build it if the last one was for others."""
        entry = self._entry
        if entry is not None and [id(link()) for link in entry[0]] == [id(one) for one in patches]:
            return entry[1]
        built = self._build(patches)
        self._entry = [ref(one, self._forget) for one in patches], built
        return built

    def _forget(self, gone: ref[ModulePatch]) -> None:
        entry = self._entry
        if entry is not None and any(link is gone for link in entry[0]):
            self._entry = None
