"""The edit of MEND, in the order of the paper.

1. Gradient: each token t gives the gradient of a weight as a product d_t u_t^T of its input u and
   the gradient d of the loss at its output (`gradient_factors`; section 3.1).
2. Normalisation: u and d are standardised by statistics of the training
   (`GradientRewriter.normalise`).
3. Rewriting: a network g turns them into u~ and d~. One network serves all weights of a shape; each
   weight has its own scale and offset after every rectifier (`GradientRewriter`; section 3.2).
4. Step: the change of the weight is rate * sum_t d~_t u~_t^T, with one learned rate for each weight
   (`Networks`, `apply_factors`; section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from corrigenda.engines.gradients import LabelledRow, gradient_samples
from corrigenda.engines.hypernetwork import RunningNorm
from corrigenda.lm.hooks import Term
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site

RewrittenFactors = Literal["jointly", "separately", "inputs", "gradients"]
"""What is rewritten: both factors by one network, each by its own, or only one of them."""

_LAYERS = 2


class Factors(NamedTuple):
    """Low-rank change `outputs.T @ inputs` of one weight, one row a token.

    Attributes:
        inputs: What the change reads, u or u~.
        outputs: What it writes, d or d~ (times the rate).
        owners: Number of the edit that each token belongs to.
    """

    inputs: Float[Tensor, "tokens d_in"]
    outputs: Float[Tensor, "tokens d_out"]
    owners: Int[Tensor, " tokens"]


def gradient_factors(
    lm: LanguageModel,
    rows: Sequence[LabelledRow],
    sites: Sequence[Site],
    owners: Sequence[int] | None = None,
) -> tuple[dict[Site, Factors], list[float]]:
    """Compute inputs and output gradients at all tokens that the loss of a row depends on.

    The loss of a row is the mean over its labels, and those of several rows are added up.
    `outputs.T @ inputs` is the gradient of the weight; it is never formed.

    Args:
        lm: The model, with the patches that are active.
        rows: One batch.
        sites: The weights.
        owners: Number of the edit that each row belongs to; each its own if None.

    Returns:
        Factors by site, float64 on the CPU, and the loss of each row.

    Reference: MEND (Mitchell et al. 2022), section 3.1.
    """
    captured = gradient_samples(lm, rows, sites, reduction="sum", every_token=True)
    lengths = torch.tensor([len(row.ids) for row in rows])
    labels = torch.tensor([len(row.labels) for row in rows], dtype=torch.float64)
    labels_per_token = labels.repeat_interleave(lengths)[:, None]
    numbers = torch.tensor(range(len(rows)) if owners is None else owners)
    owner = numbers.repeat_interleave(lengths)
    factors = {}
    for site, (inputs, outputs) in captured.samples.items():
        # Padding is gone already; what feeds no label has no gradient and would be normalised.
        used = (inputs != 0).any(1) & (outputs != 0).any(1)
        factors[site] = Factors(inputs[used], (outputs / labels_per_token)[used], owner[used])
    return factors, captured.losses


class ResidualLayer(nn.Module):
    """Layer z + max(0, scale * (P Q z + b) + shift), the identity at first.

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


class GradientRewriter(nn.Module):
    """Network g of all weights of one shape, with the statistics of its inputs."""

    def __init__(
        self,
        shape: tuple[int, int],
        members: int,
        *,
        rank: int,
        rewrite: RewrittenFactors,
        normalise: bool,
        generator: torch.Generator,
    ) -> None:
        """Draw a network for weights of shape (d_out, d_in)."""
        super().__init__()
        self.d_out, self.d_in = shape
        self.standardised = normalise
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
        # The name is part of saved states.
        self.seen = RunningNorm(self.d_in + self.d_out)

    def normalise(self, joint: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens d"]:
        """Standardise in float64, then convert to the dtype of the network."""
        weight = next(self.parameters())
        if self.standardised:
            joint = self.seen(joint)
        return joint.to(weight.device, weight.dtype)

    def forward(
        self, joint: Float[Tensor, "tokens d"], member: Int[Tensor, " tokens"]
    ) -> tuple[Float[Tensor, "tokens d_in"], Float[Tensor, "tokens d_out"]]:
        """Rewrite tokens; `joint` holds u and d side by side, as they were captured."""
        z = self.normalise(joint)
        member = member.to(z.device)
        if "joint" in self.parts:
            inputs, outputs = _run_layers(self.parts["joint"], z, member).split(
                [self.d_in, self.d_out], dim=1
            )
            return inputs, outputs
        inputs, outputs = z.split([self.d_in, self.d_out], dim=1)
        if "inputs" in self.parts:
            inputs = _run_layers(self.parts["inputs"], inputs, member)
        if "gradients" in self.parts:
            outputs = _run_layers(self.parts["gradients"], outputs, member)
        return inputs, outputs


class Networks(nn.Module):
    """Networks and rates of all edited weights.

    Attributes:
        groups: By shape of the weight, (d_out)x(d_in), or by site where nothing is shared.
        rates: By site, the factor of the rewritten gradient.
    """

    def __init__(
        self,
        lm: LanguageModel,
        sites: Sequence[Site],
        *,
        rank: int,
        rewrite: RewrittenFactors,
        normalise: bool,
        shared: bool,
        rate: float,
        seed: int,
    ) -> None:
        """Draw networks for weights of a model; the same ones for the same seed."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shapes = {site: lm.shape(site) for site in sites}
        self._members: dict[str, list[Site]] = {}
        for site, (d_out, d_in) in shapes.items():
            name = f"{d_out}x{d_in}" if shared else _module_name(site)
            self._members.setdefault(name, []).append(site)
        self.groups = nn.ModuleDict(
            {
                name: GradientRewriter(
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
            {_module_name(site): nn.Parameter(torch.tensor(rate)) for site in sites}
        )

    def rate(self, site: Site) -> Float[Tensor, ""]:
        """Return the rate of a weight."""
        return self.rates[_module_name(site)]

    def update_statistics(self, factors: Mapping[Site, Factors]) -> None:
        """Take captured tokens into the statistics of the normalisation."""
        for name, members in self._members.items():
            self._rewriter(name).seen.update(torch.cat([_join(factors[site]) for site in members]))

    def forward(self, factors: Mapping[Site, Factors]) -> dict[Site, Factors]:
        """Turn the factors of the gradient into those of the edit, rates included."""
        rewritten: dict[Site, Factors] = {}
        for name, members in self._members.items():
            sizes = [len(factors[site].owners) for site in members]
            member = torch.repeat_interleave(torch.arange(len(members)), torch.tensor(sizes))
            joint = torch.cat([_join(factors[site]) for site in members])
            inputs, outputs = self._rewriter(name)(joint, member)
            for site, one, other in zip(
                members, inputs.split(sizes), outputs.split(sizes), strict=True
            ):
                owners = factors[site].owners
                rewritten[site] = Factors(one, self.rate(site) * other, owners)
        return {site: rewritten[site] for site in factors}

    def _rewriter(self, name: str) -> GradientRewriter:
        return cast("GradientRewriter", self.groups[name])


def apply_factors(
    lm: LanguageModel, edits: Mapping[Site, Factors], owners: Int[Tensor, " batch"]
) -> AbstractContextManager[None]:
    """Run the model with an edit for each row, until left; gradients reach the factors.

    Args:
        lm: The model, with the patches that are active.
        edits: By site, the factors of all edits, in the dtype their products are taken in.
        owners: Number of the edit that applies to each row of the pass.
    """

    def make_term(edit: Factors) -> Term:
        own = (owners[:, None] == edit.owners[None, :])[:, None, :]

        def multiply(read: Tensor, _: Tensor) -> Tensor:
            inputs, outputs = edit.inputs.to(read.device), edit.outputs.to(read.device)
            along = read.to(inputs.dtype) @ inputs.T
            return (along * own.to(along)) @ outputs

        return multiply

    return lm.add({site: make_term(edit) for site, edit in edits.items()})


def _run_layers(layers: nn.Module, z: Tensor, member: Tensor) -> Tensor:
    for layer in cast("nn.ModuleList", layers):
        z = layer(z, member)
    return z


def _join(factors: Factors) -> Tensor:
    return torch.cat([factors.inputs, factors.outputs], dim=1)


def _module_name(site: Site) -> str:
    """Return a name that torch takes for a module: without dots."""
    return str(site).replace(".", "-")
