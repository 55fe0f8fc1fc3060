"""Networks of MEND: they rewrite the two factors that each token gives to a gradient.

One network serves all weights of a shape. It reads a token's input u and output gradient d, each
coordinate normalised by what was seen in training, and returns others in their place; each weight
has a scale and a shift of its own behind every rectifier, and a rate of its own for the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from corrigenda.engines.running_norm import RunningNorm
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site

Rewrite = Literal["jointly", "separately", "inputs", "gradients"]
"""What is rewritten: both factors by one network, each by its own, or only one of them."""

_LAYERS = 2


class Factors(NamedTuple):
    """The change `outputs.T @ inputs` of one weight, one row a token.

    Attributes:
        inputs: What the change reads, u or its rewritten form.
        outputs: What it writes, d or its rewritten form (times the rate).
        owners: Which edit each token belongs to.
    """

    inputs: Float[Tensor, "tokens d_in"]
    outputs: Float[Tensor, "tokens d_out"]
    owners: Int[Tensor, " tokens"]


class ResidualLayer(nn.Module):
    """z + max(0, scale * (P Q z + b) + shift), the identity at first.

    Reference: MEND (Mitchell et al. 2022), section 3.2, and the authors' code for the place of the
        rectifier. P is zero at first and Q standard normal.
    """

    def __init__(self, width: int, members: int, rank: int, generator: torch.Generator) -> None:
        """Draw the first values from a CPU generator."""
        super().__init__()
        self.left = nn.Parameter(torch.zeros(width, rank))
        self.right = nn.Parameter(torch.randn(rank, width, generator=generator))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(members, width))
        self.shift = nn.Parameter(torch.zeros(members, width))

    def forward(
        self, z: Float[Tensor, "tokens d"], member: Int[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens d"]:
        """Rewrite rows that belong to several weights."""
        before = z @ self.right.T @ self.left.T + self.bias
        # Unlike relu, clamp has gradient 1 at 0; with 0 there nothing would ever be learned.
        return z + (self.scale[member] * before + self.shift[member]).clamp(min=0)


class Rewriter(nn.Module):
    """The network of all weights of one shape, with the statistics of what it has read."""

    def __init__(
        self,
        shape: tuple[int, int],
        members: int,
        *,
        rank: int,
        rewrite: Rewrite,
        normalise: bool,
        generator: torch.Generator,
    ) -> None:
        """Draw a network for weights of shape (d_out, d_in)."""
        super().__init__()
        self.d_out, self.d_in = shape
        self.normalise = normalise
        widths = {
            "jointly": {"joint": self.d_in + self.d_out},
            "separately": {"inputs": self.d_in, "gradients": self.d_out},
            "inputs": {"inputs": self.d_in},
            "gradients": {"gradients": self.d_out},
        }[rewrite]
        self.parts = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    ResidualLayer(width, members, min(rank, width), generator)
                    for _ in range(_LAYERS)
                )
                for name, width in widths.items()
            }
        )
        self.seen = RunningNorm(self.d_in + self.d_out)

    def normalised(self, joint: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens d"]:
        """Standardised in float64, then in the dtype of the network."""
        weight = next(self.parameters())
        if self.normalise:
            joint = self.seen(joint)
        return joint.to(weight.device, weight.dtype)

    def forward(
        self, joint: Float[Tensor, "tokens d"], member: Int[Tensor, " tokens"]
    ) -> tuple[Float[Tensor, "tokens d_in"], Float[Tensor, "tokens d_out"]]:
        """Rewrite tokens; `joint` holds u and d side by side, as they were captured."""
        z = self.normalised(joint)
        member = member.to(z.device)
        if "joint" in self.parts:
            inputs, outputs = _through(self.parts["joint"], z, member).split(
                [self.d_in, self.d_out], dim=1
            )
            return inputs, outputs
        inputs, outputs = z.split([self.d_in, self.d_out], dim=1)
        if "inputs" in self.parts:
            inputs = _through(self.parts["inputs"], inputs, member)
        if "gradients" in self.parts:
            outputs = _through(self.parts["gradients"], outputs, member)
        return inputs, outputs


class Networks(nn.Module):
    """Networks and rates of all edited weights.

    Attributes:
        groups: By shape of the weight, (d_out)x(d_in), or by site where nothing is shared.
        rates: By site; what the rewritten gradient is multiplied with.
    """

    def __init__(
        self,
        lm: LanguageModel,
        sites: Sequence[Site],
        *,
        rank: int,
        rewrite: Rewrite,
        normalise: bool,
        shared: bool,
        rate: float,
        seed: int,
    ) -> None:
        """Draw networks for weights of a model; the same ones for the same seed."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shapes = {site: (lm.weight(site).shape[0], lm.weight(site).shape[1]) for site in sites}
        self._members: dict[str, list[Site]] = {}
        for site, (d_out, d_in) in shapes.items():
            name = f"{d_out}x{d_in}" if shared else _named(site)
            self._members.setdefault(name, []).append(site)
        self.groups = nn.ModuleDict(
            {
                name: Rewriter(
                    shapes[members[0]],
                    len(members),
                    rank=rank,
                    rewrite=rewrite,
                    normalise=normalise,
                    generator=generator,
                )
                for name, members in self._members.items()
            }
        )
        self.rates = nn.ParameterDict(
            {_named(site): nn.Parameter(torch.tensor(rate)) for site in sites}
        )

    def rate(self, site: Site) -> Float[Tensor, ""]:
        """The rate of a weight."""
        return self.rates[_named(site)]

    def see(self, factors: Mapping[Site, Factors]) -> None:
        """Take captured tokens into the statistics."""
        for name, members in self._members.items():
            self._of(name).seen.see(torch.cat([_joint(factors[site]) for site in members]))

    def forward(self, factors: Mapping[Site, Factors]) -> dict[Site, Factors]:
        """The factors of the edit for the captured factors of the gradient."""
        rewritten: dict[Site, Factors] = {}
        for name, members in self._members.items():
            sizes = [len(factors[site].owners) for site in members]
            member = torch.repeat_interleave(torch.arange(len(members)), torch.tensor(sizes))
            joint = torch.cat([_joint(factors[site]) for site in members])
            inputs, outputs = self._of(name)(joint, member)
            for site, one, other in zip(
                members, inputs.split(sizes), outputs.split(sizes), strict=True
            ):
                owners = factors[site].owners
                rewritten[site] = Factors(one, self.rate(site) * other, owners)
        return {site: rewritten[site] for site in factors}

    def _of(self, name: str) -> Rewriter:
        return cast("Rewriter", self.groups[name])


def _through(layers: nn.Module, z: Tensor, member: Tensor) -> Tensor:
    for layer in cast("nn.ModuleList", layers):
        z = layer(z, member)
    return z


def _joint(factors: Factors) -> Tensor:
    return torch.cat([factors.inputs, factors.outputs], dim=1)


def _named(site: Site) -> str:
    """A name that torch takes for a module: without dots."""
    return str(site).replace(".", "-")
