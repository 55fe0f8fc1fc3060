"""ICE: the new fact alone is written before the question."""

from __future__ import annotations

from typing import ClassVar

from corrigenda.editor import Requires
from corrigenda.engines.in_context import InContextEditor, InContextPatch


class IcePatch(InContextPatch):
    """New facts, each written before the questions nearest to it."""

    kind: ClassVar[str] = "ice"


class ICE(InContextEditor):
    """In-context editing without demonstrations.

    Reference: Zheng et al. 2023, the baseline PROMPT of table 2. See the card, `ice.md`.
    """

    name: ClassVar[str] = "ice"
    requires: ClassVar[Requires] = Requires()
    patch_class: ClassVar[type[InContextPatch]] = IcePatch
