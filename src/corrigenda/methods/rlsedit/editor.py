"""RLSEdit: batch after batch as one ridge regression, by recursive least squares."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator

from corrigenda.editor import Requires, Supports
from corrigenda.engines.locate.layers import RidgeEditor
from corrigenda.errors import BadConfig
from corrigenda.linalg.cholesky import Cholesky
from corrigenda.lm.sites import Site
from corrigenda.state import State


class RLSEdit(RidgeEditor):
    """Recursive least squares for edits that come in batches (RLSEdit).

    A change costs S = mu^2 w C + lambda^2 I, with C the second moment of keys, w `weight`,
    mu `anchor` and lambda^2 `norm_weight`.

    Reference: Wang et al. 2026, the recursion of the soft constraints. See the card.
    """

    name: ClassVar[str] = "rlsedit"
    requires: ClassVar[Requires] = Requires(subject=True, moments=True, training_set=False)
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, exact=False, order_free=True
    )

    anchor: float = Field(
        default=1.0, ge=0, description="Price of changed outputs at the keys of text, mu."
    )

    @model_validator(mode="after")
    def _require_a_price(self) -> Self:
        if self.anchor == 0.0 and self.norm_weight == 0.0:
            raise BadConfig(
                "anchor and norm_weight are both 0, so that a change would cost nothing.",
                where="method rlsedit",
                hint="Set one of them above 0; as published, anchor is 1.",
            )
        return self

    @property
    def protects_keys(self) -> bool:
        """Whether keys are protected: always."""
        return True

    def price(self, state: State, site: Site) -> float:
        """Return mu^2 w, or lambda^2 where there is no anchor."""
        if self.anchor == 0.0:
            return self.norm_weight
        return self.anchor**2 * super().price(state, site)

    def metric(self, state: State, site: Site) -> Cholesky:
        """Return the factor of S / `price`: C + lambda^2 / (mu^2 w) I, or I without an anchor.

        Raises:
            IllConditioned (CG203): it is not positive definite.
        """
        if self.anchor == 0.0:
            width = state.factor(site).size
            return Cholesky(torch.eye(width, dtype=torch.float64))
        return super().metric(state, site)
