"""Causal traces averaged over facts, by groups of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.analysis.causal_trace import CAVEAT, CausalTrace
from corrigenda.analysis.heatmap import Plot
from corrigenda.analysis.trace_effects import Bin, Kind, TraceEffects
from corrigenda.errors import BadConfig


@dataclass(frozen=True, kw_only=True, repr=False)
class AverageTrace(TraceEffects):
    """Average indirect effects (AIE): over noise samples first, then over prompts.

    Attributes:
        num_traces: Prompts averaged.
        effects: Mean over the prompts that have such a token, by kind, group of tokens (in the
            order of `Bin`) and block; several tokens of one group in one prompt count as their
            mean. NaN where no prompt has such a token.
        errors: Standard errors of `effects` over prompts.
        severed: Mean of the severed curves, by block.
    """

    num_traces: int

    def early_site(self, kind: Kind | None = None) -> tuple[Bin, int, Kind, float]:
        """Find the largest average effect outside the last token: group, block, kind and effect."""
        early = [each for each in Bin if each is not Bin.LAST]
        found = []
        for each in self.effects if kind is None else [kind]:
            grid = self.effects[each][: len(early)].nan_to_num(nan=-math.inf)
            row, layer = divmod(int(grid.argmax()), grid.shape[1])
            found.append((early[row], layer, each, float(grid[row, layer])))
        return max(found, key=lambda site: site[3])

    def summary(self) -> str:
        """Return the probabilities and the early site in a few lines."""
        name, layer, kind, effect = self.early_site()
        return (
            f"average of {self.num_traces} prompt(s)\n"
            f"probability {self.clean:.3f}, with the subject noised {self.corrupted:.3f} "
            f"(total effect {self.total_effect:.3f})\n"
            f"early site: block {layer}, {kind} at the {name}, indirect effect {effect:.3f}"
        )

    def __repr__(self) -> str:
        """Return the summary."""
        return self.summary()

    def plot(self) -> Plot:
        """Return heat maps of the effects: to print, to show in a notebook, or to `save`."""
        subject = (Bin.SUBJECT_FIRST, Bin.SUBJECT_MIDDLE, Bin.SUBJECT_LAST)
        maps = self._make_maps(
            tuple(map(str, Bin)),
            subject_last=list(Bin).index(Bin.SUBJECT_LAST),
            marked=frozenset(list(Bin).index(each) for each in subject),
            width="windows of blocks",
        )
        return Plot(maps, caption=self.summary(), note=CAVEAT)

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists; groups without a token are left out."""
        return {
            "num_traces": self.num_traces,
            "clean": self.clean,
            "corrupted": self.corrupted,
            "total_effect": self.total_effect,
            "effects": {
                str(kind): {
                    str(name): row.tolist()
                    for name, row in zip(Bin, grid, strict=True)
                    if not row.isnan().any()
                }
                for kind, grid in self.effects.items()
            },
            "severed": {str(kind): curve.tolist() for kind, curve in self.severed.items()},
        }


def average_traces(
    traces: Sequence[CausalTrace], *, least_total_effect: float = -math.inf
) -> AverageTrace:
    """Average the traces of many prompts of one model.

    Args:
        traces: Of the same kinds and severed paths.
        least_total_effect: Leave out prompts whose total effect is below this: where noise hardly
            lowers the probability of the answer, indirect effects mean nothing.

    Raises:
        BadConfig (CG502): no trace is left.

    Reference: ROME (Meng et al. 2022), figure 2 and appendix B.3. Unlike there, the last token of
    the prompt is in the last group only, also where it follows the subject directly.
    """
    kept = [trace for trace in traces if trace.total_effect >= least_total_effect]
    if not kept:
        raise BadConfig(
            f"none of {len(traces)} traces has a total effect of {least_total_effect} or more.",
            hint="Take prompts whose answers the model knows, or more noise.",
        )
    effects, errors = {}, {}
    for kind in kept[0].effects:
        rows = [_average_groups(trace, kind) for trace in kept]
        grid = torch.stack(rows)
        effects[kind] = grid.nanmean(dim=0)
        count = (~grid.isnan()).sum(dim=0)
        variance = (grid - effects[kind]).square().nansum(dim=0) / (count - 1)
        errors[kind] = (variance / count).sqrt().masked_fill(count < 2, math.nan)
    return AverageTrace(
        num_traces=len(kept),
        clean=sum(trace.clean for trace in kept) / len(kept),
        corrupted=sum(trace.corrupted for trace in kept) / len(kept),
        effects=effects,
        errors=errors,
        severed={
            path: torch.stack([trace.severed[path] for trace in kept]).mean(dim=0)
            for path in kept[0].severed
        },
    )


def _average_groups(trace: CausalTrace, kind: Kind) -> Float[Tensor, "bin layer"]:
    grid = trace.effects[kind]
    nothing = torch.full_like(grid[0], math.nan)
    return torch.stack([grid[own].mean(dim=0) if own else nothing for own in trace.bins().values()])
