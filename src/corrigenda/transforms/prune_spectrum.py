"""PRUNE: bound the singular values of a change by the largest of the unedited weight."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, JsonValue
from torch import Tensor

from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch import ledger_of
from corrigenda.patch.changes import Change, Dense, Rows, norm
from corrigenda.transforms.spectra import compute_spectral_norm, decompose
from corrigenda.transforms.transform import Transform, TransformedChange


class PruneSpectrum(Transform):
    """Restrain the singular values of a change that exceed the largest of the unedited weight.

    With s a singular value of the change and sigma the largest of the unedited weight, every
    s >= sigma becomes  min(s, sigma + ln(s / sigma) / ln(base)),  or (s + sigma) / 2 where
    `restraint` is "linear"; smaller ones and all directions stay. Factors stay factors of the same
    rank, rows stay rows. Meant for the sum of a sequence of edits: compose the patches first.

    The edited weight then has no singular value above  2 sigma + ln(s / sigma) / ln(base),  which
    bounds its condition number from above as far as the change is to blame.

    Reference: PRUNE (Ma et al. 2025), section 4. See the card, `prune_spectrum.md`.
    """

    name: ClassVar[str] = "prune"

    base: float = Field(default=math.e, gt=1, description="Of the logarithm; larger is stricter.")
    restraint: Literal["log", "linear"] = Field(default="log", description="How values shrink.")

    def restrain(self, values: Float[Tensor, " k"], sigma: float) -> Float[Tensor, " k"]:
        """Apply the paper's function to singular values; never above the value itself."""
        if self.restraint == "linear":
            smaller = (values + sigma) / 2
        else:
            smaller = sigma + (values / sigma).clamp_min(1.0).log() / math.log(self.base)
        return torch.where(values >= sigma, torch.minimum(values, smaller), values)

    def transform_change(
        self,
        site: Site,
        change: Change,
        lm: LanguageModel,
        keys: Float[Tensor, "d_in n"] | None,
    ) -> TransformedChange:
        """Restrain one change."""
        weight = ledger_of(lm).pristine(lm, site).detach().cpu().double()
        # Cheap proof that nothing exceeds sigma: ||dW||_2 <= ||dW||_F, and sigma is at least the
        # root mean square of the singular values of W.
        if norm(change) < float(weight.norm()) / min(weight.shape) ** 0.5:
            return TransformedChange(change, {"restrained": 0})
        sigma = compute_spectral_norm(weight)
        left, values, right = decompose(change)
        smaller = self.restrain(values, sigma)
        report: dict[str, JsonValue] = {
            "restrained": int((smaller < values).sum()),
            "largest_of_weight": sigma,
            "largest": float(values.max()),
            "largest_now": float(smaller.max()),
        }
        if not report["restrained"]:
            return TransformedChange(change, report)
        match change:
            case LowRank():
                return TransformedChange(LowRank(left * smaller, right), report)
            case Rows(index=index, d_out=d_out):
                return TransformedChange(Rows(index, (left * smaller) @ right.T, d_out), report)
            case Dense():
                return TransformedChange(Dense((left * smaller) @ right.T), report)
