"""EMMET: ROME for a batch, by equality constraints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from corrigenda.editor import Constraint, Requires, Supports
from corrigenda.engines.locate import pipeline
from corrigenda.engines.locate.layers import SpreadEditor
from corrigenda.engines.locate.pipeline import EditPlan
from corrigenda.errors import DependentKeys, NotEnoughFacts
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.solve import equality, ridge
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.placement import multiply
from corrigenda.lm.sites import Site
from corrigenda.state import State


class Emmet(SpreadEditor):
    """Equality-constrained Mass Model Editing in a Transformer (EMMET), at one layer.

    With `gamma` above 0 the constraint is soft and the result is that of MEMIT at one layer with
    `weight = gamma`.

    Reference: Gupta et al. 2024, section 4. See the card.
    """

    name: ClassVar[str] = "emmet"
    requires: ClassVar[Requires] = Requires(subject=True, moments=True, training_set=False)

    layer: int | None = Field(
        default=None, ge=0, description="Block to edit; chosen by depth if not given."
    )
    gamma: float = Field(
        default=0.0, ge=0, description="Ridge on the constraints; 0 meets them exactly."
    )

    @property
    def supports(self) -> Supports:  # pyright: ignore[reportIncompatibleVariableOverride]  # by option
        """Exact constraints unless there is a ridge."""
        return Supports(
            single=True, batch=True, sequential=True, exact=self.gamma == 0.0, order_free=True
        )

    def configured_layers(self) -> tuple[int, ...] | None:
        """Return the layer given, or None where there is none."""
        return None if self.layer is None else (self.layer,)

    def check_facts(self, lm: LanguageModel, facts: Sequence[Fact], plan: EditPlan) -> None:
        """Refuse more constraints than a key has coordinates, unless there is a ridge.

        Raises:
            DependentKeys (CG202): names both numbers.
        """
        (site,) = plan.sites
        d_in = lm.shape(site)[1]
        if self.gamma == 0.0 and len(facts) > d_in:
            raise DependentKeys(
                f"{len(facts)} facts cannot all be constraints on keys of {d_in} coordinates.",
                where=f"site {site}",
                hint="Set gamma above 0, or give fewer facts.",
            )

    def check_keys(self, facts: Sequence[Fact], keys: Float[Tensor, "n d_in"]) -> None:
        """Refuse two facts with one key, unless there is a ridge.

        Raises:
            NotEnoughFacts (CG106): names the facts.
        """
        if self.gamma > 0:
            return
        for i, j in pipeline.same_key_pairs(keys):
            raise NotEnoughFacts(
                "two facts of the batch have the same key, so both cannot be constraints.",
                where=f"{facts[i].label} and {facts[j].label}",
                hint="Drop one of them, or set gamma above 0.",
            )

    def solve(
        self,
        keys: Float[Tensor, "d_in n"],
        residuals: Float[Tensor, "d_out n"],
        state: State,
        site: Site,
    ) -> LowRank:
        """Solve R (K^T C^-1 K + gamma I)^-1 K^T C^-1."""
        if self.gamma == 0.0:
            return equality(keys, residuals, state.factor(site))
        return ridge(keys, residuals, state.factor(site), weight=self.gamma)

    def constraints(
        self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None
    ) -> Mapping[Site, Constraint]:
        """Return averaged keys and their wanted outputs; only without a ridge."""
        if not facts or self.gamma > 0:
            return {}
        (layer,) = self.solve_layers(lm, facts, state or State())
        values = multiply(layer.keys, lm.values(layer.site).T).T + layer.share.T
        return {layer.site: Constraint(layer.keys.T, values)}
