"""Norm anchoring: edited values get the length of the unedited model's."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, JsonValue
from torch import Tensor

from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch import ledger_of
from corrigenda.patch.changes import Change, add
from corrigenda.transforms.transform import (
    Transform,
    TransformedChange,
    compute_output,
    read_weight,
)

_DEPENDENT = 1e-6


class AnchorNorm(Transform):
    """Rescale the output at each fact's key to a fixed length, its direction unchanged.

    At a changed weight, with k the input at a fact's key, the value is  v = (W + dW) k + bias. The
    new change makes it  a v / ||v||,  with a the anchor: the mean length of the unedited weight's
    outputs at the keys of all facts of the patch (`reference="own"`: at the fact's own key), or
    `norm`. Of all changes that do so, the one closest to dW is taken whose rows are combinations of
    those of dW; factors stay factors, of no higher rank. Where dW cannot tell the keys apart, least
    squares.

    For ROME this is the edit made with the rescaled value. For methods that write only part of
    what they want, it is the value as written that is rescaled.

    Reference: norm-anchor scaling (Liu et al. 2026). See the card, `anchor_norm.md`.
    """

    name: ClassVar[str] = "anchor-norm"

    norm: float | None = Field(
        default=None, gt=0, description="Length of every value; measured if not given."
    )
    reference: Literal["mean", "own"] = Field(
        default="mean", description="Measured over all facts, or fact by fact."
    )

    def transform_change(
        self,
        site: Site,
        change: Change,
        lm: LanguageModel,
        keys: Float[Tensor, "d_in n"] | None,
    ) -> TransformedChange:
        """Rescale the values of one weight."""
        if keys is None:
            return TransformedChange(change, {"anchor": None})
        bias = lm.bias(site)
        offset = 0.0 if bias is None else bias.detach().cpu().double()[:, None]
        pristine = ledger_of(lm).pristine(lm, site).detach().cpu().double()
        clean = (pristine @ keys + offset).norm(dim=0)
        anchors = clean if self.reference == "own" else clean.mean().expand_as(clean)
        if self.norm is not None:
            anchors = torch.full_like(clean, self.norm)
        base = read_weight(lm, site) @ keys + offset
        values = base + compute_output(change, keys, change.shape[0])
        lengths = values.norm(dim=0)
        wanted = values * (anchors / lengths.clamp_min(torch.finfo(lengths.dtype).tiny))
        new = _correct(change, wanted - values, keys)
        reached = (base + compute_output(new, keys, change.shape[0])).norm(dim=0)
        report: dict[str, JsonValue] = {
            "anchor": [_round(anchor) for anchor in anchors.tolist()],
            "length": [_round(length) for length in lengths.tolist()],
            "length_now": [_round(length) for length in reached.tolist()],
        }
        return TransformedChange(new, report)


def _correct(
    change: Change, missing: Float[Tensor, "d_out n"], keys: Float[Tensor, "d_in n"]
) -> Change:
    """Return the change with these vectors added at these keys, by the smallest correction."""
    if isinstance(change, LowRank):
        frame = change.compress()
        seen = frame.right.T @ keys
        return LowRank(frame.left + missing @ _invert(seen), frame.right)
    return add(change, LowRank(missing, _invert(keys).T))


def _invert(matrix: Float[Tensor, "rows n"]) -> Float[Tensor, "n rows"]:
    return torch.linalg.pinv(matrix, rtol=_DEPENDENT)


def _round(value: float) -> float:
    return float(f"{value:.6g}")
