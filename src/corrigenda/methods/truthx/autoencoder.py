"""TruthX's auto-encoder with a semantic and a truthful code, its losses, and its edit of a state.

Letters: x state (d) - h_s semantic code, h_t truthful code of length one (code) - delta from the
untruthful to the truthful centre (code) - tau temperature.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss, normalize

_SMALL = 1e-12


class TruthCodes(NamedTuple):
    """Semantic and truthful code of a state.

    Attributes:
        semantic: h_s.
        truthful: h_t, of length one.
    """

    semantic: Float[Tensor, "*rows code"]
    truthful: Float[Tensor, "*rows code"]


class AutoEncoderLosses(NamedTuple):
    """The four parts of the training loss, weighed alike.

    Attributes:
        reconstruction: A state is decoded from its own codes.
        truthful: Truthful codes group by truthfulness.
        semantic: Semantic codes of a pair attract, whatever their truthfulness.
        editing: With the truthful code of its partner a state is decoded as the partner.
    """

    reconstruction: Float[Tensor, ""]
    truthful: Float[Tensor, ""]
    semantic: Float[Tensor, ""]
    editing: Float[Tensor, ""]

    @property
    def total(self) -> Float[Tensor, ""]:
        """Return their sum."""
        return self.reconstruction + self.truthful + self.semantic + self.editing


class AutoEncoder(nn.Module):
    """Two encoders, a fusion and a decoder, for states of one width.

    Attention of one head from h_s to h_t, as published, has a single key for each token. Its
    softmax is 1, so it is a linear map of h_t, and is written as one here.

    Reference: TruthX (Zhang et al. 2024), section 3.1, with the layers of the published weights.
    """

    def __init__(self, width: int, hidden: int, code: int) -> None:
        """Draw the first weights from torch's generator.

        Args:
            width: d, of the states.
            hidden: Width of the layers between.
            code: Width of both codes.
        """
        super().__init__()
        self.semantic = nn.Sequential(*_layer(width, hidden), *_layer(hidden, code))
        self.truthful = nn.Sequential(*_layer(width, hidden), *_layer(hidden, code))
        self.fusion = nn.Linear(code, code)
        self.decoder = nn.Sequential(*_layer(code, hidden), nn.Linear(hidden, width))

    def encode(self, states: Float[Tensor, "*rows d"]) -> TruthCodes:
        """Return both codes of each state."""
        return TruthCodes(self.semantic(states), self.truth(states))

    def truth(self, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows code"]:
        """Return h_t = E_t(x) / ||E_t(x)||."""
        return normalize(self.truthful(states), dim=-1)

    def decode(self, codes: TruthCodes) -> Float[Tensor, "*rows d"]:
        """Return the state Dec(h_s + Attn(h_s, h_t)) of a semantic and a truthful code."""
        return self.decoder(codes.semantic + self.fusion(codes.truthful))

    def losses(
        self, states: Float[Tensor, "pairs 2 d"], *, temperature: float
    ) -> AutoEncoderLosses:
        """Return the losses of some pairs of one module, the truthful state of each first.

        Reference: TruthX, section 3.2.
        """
        codes = self.encode(states)
        swapped = TruthCodes(codes.semantic, codes.truthful.flip(1))
        good, bad = codes.truthful.unbind(1)
        first, second = codes.semantic.unbind(1)
        return AutoEncoderLosses(
            reconstruction=mse_loss(self.decode(codes), states),
            truthful=grouping_loss(good, bad, temperature) + grouping_loss(bad, good, temperature),
            semantic=pairing_loss(first, second, temperature)
            + pairing_loss(second, first, temperature),
            editing=mse_loss(self.decode(swapped), states.flip(1)),
        )

    def displacement(
        self,
        states: Float[Tensor, "rows d"],
        delta: Float[Tensor, " code"],
    ) -> Float[Tensor, "rows d"]:
        """Return the direction from less to more truth at each state, as long as the state itself.

        D = Dec(h_s, norm(h_t + delta)) - Dec(h_s, norm(h_t - delta)), scaled to the length of x.

        Reference: TruthX, section 3.3.
        """
        semantic, truthful = self.encode(states)
        both = torch.stack([truthful + delta, truthful - delta])
        more, less = self.decode(TruthCodes(semantic.expand_as(both), normalize(both, dim=-1)))
        return normalize(more - less, dim=-1, eps=_SMALL) * states.norm(dim=-1, keepdim=True)


def grouping_loss(
    anchors: Float[Tensor, "n code"], others: Float[Tensor, "n code"], temperature: float
) -> Float[Tensor, ""]:
    """Return InfoNCE with the other anchors as positives and `others` as negatives.

    One anchor alone has no positive, and its loss is 0.
    """
    if len(anchors) == 1:
        return anchors.sum() * 0.0
    same = cosines(anchors, anchors) / temperature
    same = same.masked_fill(torch.eye(len(same), dtype=torch.bool, device=same.device), -torch.inf)
    every = torch.cat([same, cosines(anchors, others) / temperature], dim=1)
    return (every.logsumexp(1) - same.logsumexp(1)).mean()


def pairing_loss(
    anchors: Float[Tensor, "n code"], partners: Float[Tensor, "n code"], temperature: float
) -> Float[Tensor, ""]:
    """Return InfoNCE with each anchor's partner as positive and the other partners as negatives."""
    every = cosines(anchors, partners) / temperature
    return (every.logsumexp(1) - every.diagonal()).mean()


def cosines(
    rows: Float[Tensor, "n code"], columns: Float[Tensor, "m code"]
) -> Float[Tensor, "n m"]:
    """Return the cosine of each row of one with each row of the other."""
    return linear(normalize(rows, dim=-1), normalize(columns, dim=-1))


def measure_untruth(
    truthful: Float[Tensor, "*rows code"],
    positive: Float[Tensor, " code"],
    negative: Float[Tensor, " code"],
) -> Float[Tensor, "*rows"]:
    """Return the cosine with the untruthful centre less that with the truthful one."""
    centres = normalize(torch.stack([negative, positive]), dim=-1)
    near, far = linear(normalize(truthful, dim=-1), centres).unbind(-1)
    return near - far


def _layer(width: int, out: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Linear(width, out), nn.LayerNorm(out), nn.LeakyReLU()
