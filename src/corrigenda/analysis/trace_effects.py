"""What a causal trace and an average of traces have in common: kinds, groups of tokens, effects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from corrigenda.analysis.heatmap import Heatmap
from corrigenda.lm.sites import Point, Site, state, write


class Kind(StrEnum):
    """Kind of state that is restored."""

    STATE = "state"
    """The residual stream after one block."""
    MLP = "mlp"
    """What the MLPs of a window of blocks add to the residual stream."""
    ATTENTION = "attention"
    """What the attentions of a window of blocks add to the residual stream."""

    def point(self, layer: int) -> Point:
        """Return the point of one block where this kind is read and restored."""
        if self is Kind.STATE:
            return state(layer)
        return write(Site(layer, "mlp.down" if self is Kind.MLP else "attn.out"))


class Bin(StrEnum):
    """Groups of tokens over which traces of prompts are averaged, in the order of the prompt.

    A subject of one token counts as first and last. The prompt's last token is in no other group.
    """

    SUBJECT_FIRST = "first subject token"
    SUBJECT_MIDDLE = "middle subject tokens"
    SUBJECT_LAST = "last subject token"
    AFTER_FIRST = "first token after the subject"
    AFTER_FURTHER = "further tokens"
    LAST = "last token"


class EarlySite(NamedTuple):
    """Place where restoring helps most, the prompt's last token left out.

    Attributes:
        layer: Block, the centre of the window for MLP and attention.
        token: Position in the prompt.
        kind: What is restored there.
        effect: Its indirect effect.
        bin: The group of tokens it belongs to; None before the subject.
    """

    layer: int
    token: int
    kind: Kind
    effect: float
    bin: Bin | None

    @property
    def at_subject_last(self) -> bool:
        """Whether it is at the subject's last token."""
        return self.bin is Bin.SUBJECT_LAST


@dataclass(frozen=True, kw_only=True, repr=False)
class TraceEffects:
    """Effects that a trace of one prompt and an average over prompts share.

    Attributes:
        clean: P, probability of the answer.
        corrupted: P*, the same with a noised subject, mean over samples.
        effects: Indirect effect by kind, then row (a token, or a group of tokens) and block.
        errors: Standard errors of `effects`.
        severed: Indirect effects, by block, of restoring the state at the subject's last token
            while the outputs of all MLPs or attentions at that token keep their corrupted values.
    """

    clean: float
    corrupted: float
    effects: Mapping[Kind, Float[Tensor, "row layer"]]
    errors: Mapping[Kind, Float[Tensor, "row layer"]]
    severed: Mapping[Kind, Float[Tensor, " layer"]]

    @property
    def total_effect(self) -> float:
        """P - P*. Where it is small the indirect effects mean nothing."""
        return self.clean - self.corrupted

    def _make_maps(
        self, rows: tuple[str, ...], *, subject_last: int, marked: frozenset[int], width: str
    ) -> tuple[Heatmap, ...]:
        """Make one heat map for each kind, and one of the severed paths if there are any."""
        titles = {
            Kind.STATE: "state after the block restored",
            Kind.MLP: f"MLP outputs of {width} restored",
            Kind.ATTENTION: f"attention outputs of {width} restored",
        }
        maps = [
            Heatmap(titles[kind], rows, tuple(tuple(row) for row in grid.tolist()), marked)
            for kind, grid in self.effects.items()
        ]
        if self.severed:
            curves = {f"{path} severed": curve for path, curve in self.severed.items()}
            if Kind.STATE in self.effects:
                curves = {"nothing severed": self.effects[Kind.STATE][subject_last], **curves}
            maps.append(
                Heatmap(
                    title="state restored at the subject's last token",
                    rows=tuple(curves),
                    values=tuple(tuple(curve.tolist()) for curve in curves.values()),
                )
            )
        return tuple(maps)
