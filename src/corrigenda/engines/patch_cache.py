"""Patches that answer as one while they are active, and what they then know together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar
from weakref import ref

from corrigenda.lm.model import LanguageModel
from corrigenda.patch.ledger import ledger_of
from corrigenda.patch.module import ModulePatch

Made = TypeVar("Made")


def partners(patch: ModulePatch, lm: LanguageModel) -> list[ModulePatch]:
    """The active patches that share a store with this one, itself included, first applied first.

    They are of one class and have equal configurations. A patch that is not active is alone.
    """
    found = [
        one
        for one in ledger_of(lm)
        if isinstance(one, ModulePatch)
        and type(one) is type(patch)
        and one.header.config == patch.header.config
        and not one.is_empty
    ]
    return found if any(one is patch for one in found) else [patch]


class Kept(Generic[Made]):
    """What was made of the patches asked last, for as long as they exist.

    Making it reads every edit; questions come one after another to the same patches.

    Example:
        >>> Kept(len).of([])
        0
    """

    def __init__(self, make: Callable[[Sequence[ModulePatch]], Made]) -> None:
        """Say how it is made."""
        self._make = make
        self._kept: tuple[list[ref[ModulePatch]], Made] | None = None

    def of(self, patches: Sequence[ModulePatch]) -> Made:
        """It, of these very patches in this order."""
        kept = self._kept
        if kept is not None and [id(link()) for link in kept[0]] == [id(one) for one in patches]:
            return kept[1]
        made = self._make(patches)
        self._kept = [ref(one, self._forget) for one in patches], made
        return made

    def _forget(self, gone: ref[ModulePatch]) -> None:
        kept = self._kept
        if kept is not None and any(link is gone for link in kept[0]):
            self._kept = None
