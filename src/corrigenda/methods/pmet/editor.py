"""PMET: targets for attention and feed-forward block together, written into the latter alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from corrigenda.editor import Requires, Supports
from corrigenda.engines.locate import pipeline
from corrigenda.engines.locate.layers import RidgeEditor
from corrigenda.engines.locate.pipeline import EditPlan
from corrigenda.engines.locate.records import EntryRole, SearchSettings, Targets
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, value

_SETTLED_WEIGHT = 0.1
_SETTLED_KL = 0.01


class Pmet(RidgeEditor):
    """Precise Model Editing in a Transformer (PMET).

    Two vectors are searched at the last edited block, after its attention and after its
    feed-forward part. The first only helps the search; the weights of attention stay.

    Reference: Li et al. 2024, sections 3.2 and 3.3. See the card.
    """

    name: ClassVar[str] = "pmet"
    requires: ClassVar[Requires] = Requires(subject=True, moments=True, training_set=False)
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, exact=False, order_free=True
    )
    role: ClassVar[EntryRole] = "components"
    usual_clamp: ClassVar[float] = 4.0

    steps: int = Field(default=30, ge=1, description="Forward passes of the target search.")
    learning_rate: float = Field(default=0.2, gt=0, description="Of Adam in the target search.")
    kl_weight: float = Field(default=1.0, ge=0, description="Price of changing the essence.")

    def search_settings(self, lm: LanguageModel) -> SearchSettings:
        """Return the settings of the search; a target that has settled counts for a tenth."""
        found = super().search_settings(lm)
        return found._replace(settled_weight=_SETTLED_WEIGHT, settled_kl=_SETTLED_KL)

    def remaining_residuals(
        self,
        lm: LanguageModel,
        site: Site,
        plan: EditPlan,
        clean: Sequence[tuple[int, ...]],
        targets: Targets,
    ) -> Float[Tensor, "n d_model"]:
        """Return what the last edited feed-forward block lacks, at the output of `site`; float64.

        It is measured at the output of the last edited down projection. A norm after a down
        projection (Gemma 2 and 3, OLMo 2) is passed on the way to a lower one.
        """
        last = plan.sites[-1]
        wanted = targets.wanted[:, -lm.d_model :].double()
        now = pipeline.capture_last(lm, clean, [value(last)])[value(last)].double()
        if site == last:
            return wanted - now
        gain = pipeline.norm_gain(lm, last, clean)
        in_stream = wanted - now if gain is None else gain * (wanted - now)
        return pipeline.residuals_at_output(lm, site, clean, in_stream)

    def layer_share(
        self, missing: Float[Tensor, "n d_model"], remaining: int
    ) -> Float[Tensor, "n d_model"]:
        """Divide by the square root of the layers to go: lower layers get more than in MEMIT."""
        return missing / math.sqrt(remaining)
