"""Where things are in a model, in our words: sites, points at sites, and token batches."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from corrigenda.errors import UnknownSite

PARTS = ("mlp.down", "mlp.up", "mlp.gate", "attn.out", "attn.q", "attn.k", "attn.v")
"""Parts of a block that have a weight."""

PointRole = Literal["key", "value", "write", "state"]
Side = Literal["left", "right"]

_SITE = re.compile(r"(\d+)\.([a-z]+\.[a-z]+)(?:#(\d+))?")


@dataclass(frozen=True, order=True)
class Site:
    """Weight of a model: block, part, and the expert where the block has several.

    Attributes:
        layer: Index of the block, from 0.
        part: One of `PARTS`. `mlp.down` is the output projection of the feed-forward block.
        expert: Index of the expert in a mixture-of-experts block, None in a dense one.

    Example:
        >>> str(Site(5)), str(Site(5, "mlp.down", 3))
        ('5.mlp.down', '5.mlp.down#3')
        >>> Site.parse("5.attn.q")
        Site(layer=5, part='attn.q', expert=None)
    """

    layer: int
    part: str = "mlp.down"
    expert: int | None = None

    def __str__(self) -> str:
        tail = "" if self.expert is None else f"#{self.expert}"
        return f"{self.layer}.{self.part}{tail}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read what `str(site)` writes.

        Raises:
            UnknownSite (CG303): the text is not of that form, or names an unknown part.
        """
        match = _SITE.fullmatch(text.strip())
        if match is None or match[2] not in PARTS:
            raise UnknownSite(
                f'"{text}" is not a site.',
                hint=f'Write layer.part, as "5.mlp.down"; parts are {", ".join(PARTS)}.',
            )
        return cls(int(match[1]), match[2], None if match[3] is None else int(match[3]))


class Point(NamedTuple):
    """Tensor in the forward pass at a site.

    Attributes:
        site: The site; for states only its layer counts.
        role: "key" is the input of the weight, "value" its output (bias included), "write" what
            the sub-block adds to the residual stream (`mlp.down` and `attn.out` only), "state" the
            residual stream after the block.
    """

    site: Site
    role: PointRole


def key(site: Site) -> Point:
    """Return the input of a weight: for `mlp.down` what comes out of the non-linearity."""
    return Point(site, "key")


def value(site: Site) -> Point:
    """Return the output of a weight, bias included, before any norm."""
    return Point(site, "value")


def write(site: Site) -> Point:
    """Return what a sub-block adds to the residual stream, after a norm where there is one."""
    return Point(site, "write")


def state(layer: int) -> Point:
    """Return the residual stream after a block; `state(-1)` enters block 0."""
    return Point(Site(layer), "state")


class Layered(Protocol):
    """A model with a name and a number of blocks."""

    name: str

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        ...


def require_layers(lm: Layered, layers: Sequence[int], *, where: str = "") -> None:
    """Refuse layers that a model does not have.

    Raises:
        UnknownSite (CG303): there is no such block.
    """
    for layer in layers:
        if not 0 <= layer < lm.num_layers:
            raise UnknownSite(
                f"there is no block {layer} in {lm.name}: it has {lm.num_layers}, from 0.",
                where=where,
                hint=f"Choose from 0 to {lm.num_layers - 1}.",
            )


def resolve_sites(
    lm: Layered,
    layers: Sequence[int] | Mapping[str, Sequence[int]],
    *,
    parts: Sequence[str] = ("mlp.down",),
    where: str = "",
) -> tuple[Site, ...]:
    """Return the sites that an option names, lowest first.

    Args:
        lm: The model.
        layers: Blocks, or the blocks of each part.
        parts: Parts of each block where `layers` names none.
        where: How messages refer to the option, such as "method mend".

    Raises:
        UnknownSite (CG303): there is no such block or part.
    """
    named = layers if isinstance(layers, Mapping) else dict.fromkeys(parts, layers)
    sites = {Site.parse(f"{layer}.{part}") for part, own in named.items() for layer in own}
    require_layers(lm, [site.layer for site in sorted(sites)], where=where)
    return tuple(sorted(sites))


class Tokens(NamedTuple):
    """Batch of token rows with its mask.

    Attributes:
        ids: Token ids; any id where the mask is 0.
        mask: 1 at tokens, 0 at padding, which is at one side only.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"]

    @classmethod
    def pad(cls, rows: Sequence[Sequence[int]], pad_id: int, side: Side = "right") -> Tokens:
        """Make a batch of rows of different lengths.

        Args:
            rows: Token ids, at least one row.
            pad_id: Fills the shorter rows.
            side: Where the padding goes.
        """
        width = max(len(row) for row in rows)
        gaps = [[pad_id] * (width - len(row)) for row in rows]
        holes = [[0] * len(gap) for gap in gaps]
        ones = [[1] * len(row) for row in rows]
        if side == "right":
            ids = [[*row, *gap] for row, gap in zip(rows, gaps, strict=True)]
            mask = [[*one, *hole] for one, hole in zip(ones, holes, strict=True)]
        else:
            ids = [[*gap, *row] for row, gap in zip(rows, gaps, strict=True)]
            mask = [[*hole, *one] for one, hole in zip(ones, holes, strict=True)]
        return cls(torch.tensor(ids, dtype=torch.long), torch.tensor(mask, dtype=torch.long))

    @property
    def position_ids(self) -> Int[Tensor, "batch pos"]:
        """Count tokens from 0 in each row, whatever the padding; padding gets a valid number."""
        return (self.mask.long().cumsum(1) - 1).clamp_min(0)

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Number of tokens in each row, without padding."""
        return self.mask.long().sum(1)

    def to(self, device: torch.device | str) -> Tokens:
        """Return the batch on a device."""
        return Tokens(self.ids.to(device), self.mask.to(device))
