"""Networks of MALMEN: the change of a weight's output that each token of an answer proposes.

One network serves all weights of a shape. It reads a token's key and gradient, normalised by
statistics of training, and proposes a change of rank one, `-rate v~ u~^T`. Only its effect
at the token's own key is used, a vector of the output; least squares merges these vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from corrigenda.engines.gradients import Samples
from corrigenda.engines.hypernetwork import RunningNorm
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site


class _ProposalBlock(nn.Module):
    """Layer z + scale * max(0, z A B + b) + offset; scale and offset belong to a weight."""

    def __init__(self, width: int, rank: int, members: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(width, rank, generator=generator))
        self.up = nn.Parameter(torch.zeros(rank, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(members, width))
        self.offset = nn.Parameter(torch.zeros(members, width))

    def forward(self, z: Tensor, member: int) -> Tensor:
        # Unlike relu, clamp has gradient 1 at 0, without which nothing would ever be learned.
        hidden = (z @ self.down @ self.up + self.bias).clamp(min=0)
        return z + self.scale[member] * hidden + self.offset[member]


class ProposalNetwork(nn.Module):
    """Network of all weights of one shape; it starts as the identity on normalised samples.

    Attributes:
        rate: Float[Tensor, "members"], length of a proposal, one for each weight.
        log_damping: Float[Tensor, "members"], logarithm of the ridge of the merge.

    Reference: MALMEN (Tan et al. 2024), section 4.1 and appendix; FiLM after the rectifier.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        members: int,
        *,
        rank: int,
        blocks: int,
        rate: float,
        damping: float,
        generator: torch.Generator,
    ) -> None:
        """Draw the first values from a CPU generator; see `Malmen` for the options."""
        super().__init__()
        self.d_out, self.d_in = shape
        width = self.d_out + self.d_in
        self.blocks = nn.ModuleList(
            _ProposalBlock(width, rank, members, generator) for _ in range(blocks)
        )
        self.rate = nn.Parameter(torch.full((members,), rate))
        self.log_damping = nn.Parameter(torch.full((members,), damping).log())
        # The name is part of saved states.
        self.seen = RunningNorm(width)

    def update_statistics(self, samples: Samples) -> None:
        """Take samples into the statistics, key and gradient joined."""
        self.seen.update(torch.cat(samples, dim=1))

    def normalise(self, samples: Samples) -> Float[Tensor, "samples d"]:
        """Join and standardise key and gradient; the result has the dtype of the network."""
        return self.seen(torch.cat(samples, dim=1)).to(self.rate)

    def propose(self, samples: Samples, member: int) -> Samples:
        """Compute u~ and v~ of every sample."""
        z = self.normalise(samples)
        for block in self.blocks:
            z = block(z, member)
        return Samples(*z.split([self.d_in, self.d_out], dim=1))

    def values(self, samples: Samples, member: int) -> Float[Tensor, "samples d_out"]:
        """Compute the output change of each proposal at its own key: -rate (u . u~) v~."""
        proposed = self.propose(samples, member)
        keys = samples.keys.to(proposed.keys)
        along = (keys * proposed.keys).sum(1, keepdim=True)
        return -self.rate[member] * along * proposed.gradients


class Proposers(nn.Module):
    """Networks of all edited weights, one for each shape."""

    def __init__(
        self,
        lm: LanguageModel,
        sites: Sequence[Site],
        *,
        rank: int,
        blocks: int,
        rate: float,
        damping: float,
        seed: int,
    ) -> None:
        """Draw networks for the weights of a model; the same ones for the same seed."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shapes = {site: lm.shape(site) for site in sites}
        self._members: dict[Site, tuple[str, int]] = {}
        self.groups = nn.ModuleDict()
        for shape in dict.fromkeys(shapes.values()):
            members = [site for site in sites if shapes[site] == shape]
            name = f"{shape[0]}x{shape[1]}"
            self.groups[name] = ProposalNetwork(
                shape,
                len(members),
                rank=rank,
                blocks=blocks,
                rate=rate,
                damping=damping,
                generator=generator,
            )
            self._members |= {site: (name, place) for place, site in enumerate(members)}

    def find(self, site: Site) -> tuple[ProposalNetwork, int]:
        """Return the network of a weight, and the weight's number in it."""
        name, member = self._members[site]
        network = self.groups[name]
        assert isinstance(network, ProposalNetwork)
        return network, member

    def damping(self, site: Site) -> float:
        """Return the ridge with which proposals at a weight are merged."""
        network, member = self.find(site)
        return float(network.log_damping[member].detach().double().exp())

    def rate(self, site: Site) -> float:
        """Return the length of the proposals at a weight."""
        network, member = self.find(site)
        return float(network.rate[member].detach())
