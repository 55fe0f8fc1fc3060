"""MEMIT: many facts at once, spread over several layers, by least squares."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from corrigenda.editor import Requires, Supports
from corrigenda.engines.locate.layers import MultiLayerEditor
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.solve import ridge
from corrigenda.lm.sites import Site
from corrigenda.state import State


class Memit(MultiLayerEditor):
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

    def solve(
        self,
        keys: Float[Tensor, "d_in n"],
        residuals: Float[Tensor, "d_out n"],
        state: State,
        site: Site,
    ) -> LowRank:
        """Solve R K^T (weight C + K_p K_p^T + K K^T)^-1."""
        protected = self.protected(state, site)
        return ridge(
            keys, residuals, state.factor(site), weight=self.price(state, site), protected=protected
        )
