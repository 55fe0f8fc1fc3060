"""Network of KnowledgeEditor: it reads the edit and gates the gradients of weights.

A text holds the model's answer, the wanted one, and the question. A recurrent network
reads it into one vector, and a head for each weight turns that into two matrices of rank one and a
scale: the first gates the gradient entry by entry, the second is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_sequence

from corrigenda.engines.gradients import Samples
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site


@dataclass(frozen=True, eq=False)
class Gate:
    """Output of the network for one weight, one entry an edit.

    Attributes:
        row_a: Of the gate A = row_a col_a^T; positive, sums to 1.
        col_a: Of the gate.
        row_b: Of the addition B = row_b col_b^T; positive, sums to 1.
        col_b: Of the addition.
        scale: Between 0 and the largest scale.
    """

    row_a: Float[Tensor, "edits d_out"]
    col_a: Float[Tensor, "edits d_in"]
    row_b: Float[Tensor, "edits d_out"]
    col_b: Float[Tensor, "edits d_in"]
    scale: Float[Tensor, " edits"]

    def factors(self, edit: int, samples: Samples) -> LowRank:
        """Compute scale (G * A + B), entry by entry, from the tokens that make up the gradient G.

        With G = sum_t v_t u_t^T, G * A = sum_t (row_a v_t) (col_a u_t)^T: the rank is at most the
        number of tokens, and one for B. No matrix of the size of the weight is formed.

        Reference: KnowledgeEditor (De Cao et al. 2021), section 4.1.
        """
        row, col = self.row_a[edit], self.col_a[edit]
        left = torch.cat([samples.gradients.to(row) * row, self.row_b[edit][None]])
        right = torch.cat([samples.keys.to(col) * col, self.col_b[edit][None]])
        return LowRank(self.scale[edit] * left.T, right.T)


class Conditioner(nn.Module):
    """Network from texts of edits to gates of weights.

    Attributes:
        multiplier: alpha, the Lagrange multiplier of the constraint; ascends, never below 0.
        margin: m, how much divergence is allowed.

    Reference: KnowledgeEditor (De Cao et al. 2021), section 4.1 and appendix A.
    """

    def __init__(
        self,
        lm: LanguageModel,
        sites: Sequence[Site],
        *,
        hidden: int,
        condition: int,
        head: int,
        max_scale: float,
        margin: float,
        seed: int,
    ) -> None:
        """Draw first values; word vectors are a copy of the model's own, in float32."""
        super().__init__()
        self.max_scale = max_scale
        self.shapes = {site: lm.shape(site) for site in sites}
        words = lm.model.get_input_embeddings().weight
        assert isinstance(words, Tensor)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.words = nn.Embedding.from_pretrained(
                words.detach().to("cpu", torch.float32, copy=True), freeze=False
            )
            self.reader = nn.LSTM(words.shape[1], hidden, batch_first=True, bidirectional=True)
            self.condense = nn.Linear(2 * hidden, condition)
            self.heads = nn.ModuleList()
            for d_out, d_in in self.shapes.values():
                self.heads.append(
                    nn.Sequential(
                        weight_norm(nn.Linear(condition, head)),
                        nn.Tanh(),
                        weight_norm(nn.Linear(head, 2 * (d_out + d_in) + 1)),
                    )
                )
        self.multiplier = nn.Parameter(torch.ones(()))
        self.register_buffer("margin", torch.tensor(margin, dtype=torch.float64))

    def forward(self, texts: Sequence[Sequence[int]]) -> dict[Site, Gate]:
        """Compute the gates of every weight for token rows, one an edit; no padding is read."""
        device = self.condense.weight.device
        rows = [self.words(torch.tensor(list(text), device=device)) for text in texts]
        _, (last, _) = self.reader(pack_sequence(rows, enforce_sorted=False))
        read = torch.tanh(self.condense(torch.cat([last[0], last[1]], dim=1)))
        gates = {}
        for (site, (d_out, d_in)), head in zip(self.shapes.items(), self.heads, strict=True):
            parts = head(read).split([d_out, d_in, d_out, d_in, 1], dim=1)
            gates[site] = Gate(
                parts[0].softmax(1),
                parts[1],
                parts[2].softmax(1),
                parts[3],
                self.max_scale * parts[4][:, 0].sigmoid(),
            )
        return gates

    @torch.no_grad()
    def clamp_multiplier(self) -> None:
        """Clamp the multiplier at 0 from below."""
        self.multiplier.clamp_(min=0)

    @torch.no_grad()
    def tighten(self, factor: float, least: float) -> None:
        """Shrink the margin, but not below the least."""
        margin = self.get_buffer("margin")
        margin.mul_(factor).clamp_(min=least)

    @property
    def allowed(self) -> float:
        """The current margin."""
        return float(self.get_buffer("margin"))
