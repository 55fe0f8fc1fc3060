"""Notes of an edit of several layers for the header of its patch, collected layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from corrigenda.engines.locate.diagnostics import key_agreements, same_key_pairs, written_fractions
from corrigenda.engines.locate.pipeline import SMALL_AGREEMENT, EditPlan
from corrigenda.engines.locate.records import SearchTrace
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.solve import gram_condition
from corrigenda.lm.sites import Site
from corrigenda.patch.notes import round_series, summarise

SMALL_FRACTION = 0.3
"""Below this share of a wanted change in the last edited block, a fact counts as hardly written."""


class SolvedLayer(NamedTuple):
    """Solution of one layer: keys and shares one row per fact, float64."""

    site: Site
    keys: Float[Tensor, "n d_in"]
    share: Float[Tensor, "n d_model"]
    change: LowRank


class LayerNotes:
    """Notes for the header, collected layer by layer."""

    def __init__(
        self, facts: Sequence[Fact], plan: EditPlan, warnings: Sequence[str], merged: bool = False
    ) -> None:
        """Begin with the warnings that are known; facts of one key may be `merged`."""
        self.facts, self.plan, self.merged = facts, plan, merged
        self.traces: list[SearchTrace] = []
        self.warnings = [*plan.notices, *warnings]
        self.agreement: dict[str, list[float]] = {}
        self.fraction: dict[str, list[float]] = {}
        self.missing: dict[str, list[float]] = {}
        self.first_missing: list[float] = []
        self.left: list[float] = []
        self.condition: dict[str, float] = {}
        self.conflicts: list[list[int]] = []

    def add(
        self,
        layer: SolvedLayer,
        missing: Float[Tensor, "n d_model"],
        keys: Float[Tensor, "size n"],
        clean: Float[Tensor, "size n"],
    ) -> None:
        """Record one layer; `keys` and `clean` are in the coordinates of the method."""
        name = str(layer.site)
        self.agreement[name] = key_agreements(keys.T, clean.T, None)
        written = layer.change @ layer.keys.T.to(layer.change.right)
        self.fraction[name] = written_fractions(written, layer.share.T.to(written))
        if not self.first_missing:
            self.first_missing = missing.norm(dim=1).tolist()
        self.left = (missing.T.to(written) - written).norm(dim=0).tolist()
        self.missing[name] = missing.norm(dim=1).tolist()
        self.condition[name] = gram_condition(keys, None).condition
        for fact, ratio in zip(self.facts, self.agreement[name], strict=True):
            if ratio < SMALL_AGREEMENT:
                self.warnings.append(
                    f"{fact.label}: key agreement {ratio:.3f} at {name} is below "
                    f"{SMALL_AGREEMENT}; the averaged key does not represent the bare prompt."
                )
        if self.conflicts or self.merged:
            return
        for i, j in same_key_pairs(layer.keys):
            if self.facts[i].target != self.facts[j].target:
                self.conflicts.append([i, j])
                self.warnings.append(
                    f"{self.facts[i].label} and {self.facts[j].label} have the same key and "
                    "different targets; least squares averages them."
                )

    def _small_fractions(self) -> list[str]:
        """Describe a batch of which too little was written; empty where enough was."""
        pairs = zip(self.left, self.first_missing, strict=True)
        shares = [1 - left / missing for left, missing in pairs if missing > 0]
        few = [share for share in shares if share < SMALL_FRACTION]
        if not few:
            return []
        return [
            f"Of {len(few)} of {len(self.facts)} facts less than {SMALL_FRACTION:.0%} of the "
            f"wanted change was written (least {min(few):.0%}): lower `weight` to write more."
        ]

    def finish(self) -> dict[str, object]:
        """Return the notes for the header."""
        warnings = [*self.warnings, *self._small_fractions()]
        return {
            **summarise(self.facts, [trace.status for trace in self.traces], warnings),
            "search": [trace.to_dict() for trace in self.traces],
            "key_agreement": round_series(self.agreement),
            "written_fraction": round_series(self.fraction),
            "missing": round_series(self.missing),
            "key_condition": {name: f"{value:.3g}" for name, value in self.condition.items()},
            "conflicts": self.conflicts,
            "layers": [site.layer for site in self.plan.sites],
            "statistics": self.plan.statistics,
        }
