"""The facts in the prompt: all of them come before every question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.editor import Requires
from corrigenda.engines.in_context import FactStore, InContextPatch
from corrigenda.engines.stated_facts import StatedFactsEditor, StatedFactsPatch
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel


class AllFactsPatch(StatedFactsPatch):
    """All facts, in alphabetical order, before every prompt."""

    kind: ClassVar[str] = "prompt"

    def _nearest(
        self, lm: LanguageModel, store: FactStore, prompts: Sequence[str]
    ) -> list[list[int]]:
        """Return all facts for each prompt, in an order that does not depend on that of editing."""
        del lm

        def text(place: int) -> tuple[str, str]:
            fact = store.entries[place].fact
            return fact.prompt, fact.target

        places = sorted(range(len(store.entries)), key=text, reverse=True)
        return [places for _ in prompts]


class Prompt(StatedFactsEditor):
    """Facts written before every prompt: the baseline without any method.

    Reference: none; what users of a model do first. See the card, `prompt.md`.
    """

    name: ClassVar[str] = "prompt"
    requires: ClassVar[Requires] = Requires()
    patch_class: ClassVar[type[InContextPatch]] = AllFactsPatch

    def _embed(self, lm: LanguageModel, facts: Sequence[Fact]) -> Float[Tensor, "facts d"]:
        """Return vectors of nothing: no fact is looked for."""
        del lm
        return torch.zeros(len(facts), 1)
