"""MEMIT: many facts at once, spread over several layers, by least squares."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from corrigenda.editor import Requires, Supports
from corrigenda.engines.locate.layers import RidgeEditor


class Memit(RidgeEditor):
    """Mass-Editing Memory in a Transformer (MEMIT).

    Reference: Meng et al. 2023, section 4, equations 14 and 20. See the card.
    """

    name: ClassVar[str] = "memit"
    requires: ClassVar[Requires] = Requires(subject=True, moments=True, training_set=False)
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, exact=False, order_free=True
    )

    sequential: bool = Field(
        default=False, description="Protect the keys of each batch in later ones."
    )

    @property
    def protects_keys(self) -> bool:
        """Whether keys are protected: the option `sequential`."""
        return self.sequential
