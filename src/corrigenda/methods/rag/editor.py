"""RAG over the edited facts: those nearest to a question in meaning are written before it."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from corrigenda.editor import Requires
from corrigenda.engines.in_context import InContextPatch, Scope
from corrigenda.engines.stated_facts import StatedFactsEditor, StatedFactsPatch


class RagPatch(StatedFactsPatch):
    """Facts in an index, the nearest of which are written before a prompt near enough to them."""

    kind: ClassVar[str] = "rag"


class Rag(StatedFactsEditor):
    """Retrieval-augmented generation whose documents are the edited facts.

    Reference: Thede et al. 2025, the arm RAG of WikiBigEdit; the threshold is ours. See the card,
    `rag.md`.
    """

    name: ClassVar[str] = "rag"
    requires: ClassVar[Requires] = Requires()
    patch_class: ClassVar[type[InContextPatch]] = RagPatch

    scope: Scope = Field(
        default="retrieve",
        description="Only prompts near enough get facts, or every prompt does, as published.",
    )
    num_facts: int = Field(default=4, ge=1, description="Facts before one prompt, at most.")
