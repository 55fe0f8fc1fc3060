"""MEMIT: many facts at once, spread over several layers, by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from corrigenda.editor import Gives, Needs
from corrigenda.facts import Fact
from corrigenda.linalg.cholesky import Cholesky
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.solve import ridge
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, key
from corrigenda.methods import _locate
from corrigenda.methods._locate import Plan
from corrigenda.methods._spread import SpreadEditor
from corrigenda.state import State


class Memit(SpreadEditor):
    """Mass-Editing Memory in a Transformer.

    Reference: Meng et al. 2023, section 4, equations 14 and 20. See the card, `memit.md`.
    """

    name: ClassVar[str] = "memit"
    needs: ClassVar[Needs] = Needs(subject=True, moments=True, training_set=False)
    gives: ClassVar[Gives] = Gives(
        single=True, batch=True, sequential=True, exact=False, order_free=True
    )

    layers: tuple[int, ...] | None = Field(
        default=None, description="Blocks to edit, lowest first; probed if not given."
    )
    weight: float = Field(
        default=15000.0, gt=0, description="Price of disturbing old keys, in background keys."
    )
    sequential: bool = Field(
        default=False, description="Keep the keys of each batch and protect them in later ones."
    )

    def chosen_layers(self) -> tuple[int, ...] | None:
        """The layers given in ascending order, or None to let the probe choose."""
        return None if self.layers is None else tuple(sorted(set(self.layers)))

    def probed_layers(self, peak: int, num_layers: int) -> tuple[int, ...]:
        """A sixth of the blocks, at most five, ending at the one the probe found."""
        count = max(1, min(5, num_layers // 6))
        return tuple(range(max(0, peak - count + 1), peak + 1))

    def solve(
        self,
        keys: Float[Tensor, "d_in n"],
        residuals: Float[Tensor, "d_out n"],
        factor: Cholesky,
        protected: Float[Tensor, "d_in n_protected"] | None,
    ) -> LowRank:
        """R K^T (weight C + K_p K_p^T + K K^T)^-1."""
        return ridge(keys, residuals, factor, weight=self.weight, protected=protected)

    def protected(self, state: State, site: Site) -> Float[Tensor, "d_in n_protected"] | None:
        """Keys kept in the state, if `sequential`."""
        return _locate.old_keys(state, self.name, site) if self.sequential else None

    def remember(self, lm: LanguageModel, facts: Sequence[Fact], plan: Plan, state: State) -> State:
        """Append the keys of this batch as the edited model computes them, if `sequential`."""
        if not self.sequential:
            return state
        sequences = _locate.subject_tokens(lm, facts, plan.contexts.prefixes)
        captured = _locate.capture_last(lm, sequences, [key(site) for site in plan.sites])
        new = {
            site: _locate.average(captured[key(site)], plan.contexts.weights).T
            for site in plan.sites
        }
        return _locate.with_old_keys(state, self.name, new)
