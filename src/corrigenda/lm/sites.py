"""Where things are in a model, in our words: sites, points at sites, and token batches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from corrigenda.errors import UnknownSite

PARTS = ("mlp.down", "mlp.up", "mlp.gate", "attn.out", "attn.q", "attn.k", "attn.v")
"""Parts of a block that have a weight."""

Role = Literal["key", "value", "write", "state"]
Side = Literal["left", "right"]

_SITE = re.compile(r"(\d+)\.([a-z]+\.[a-z]+)(?:#(\d+))?")


@dataclass(frozen=True, order=True)
class Site:
    """A weight of a model: block, part, and the expert where the block has several.

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
    """A tensor in the forward pass, found at a site.

    Attributes:
        site: The site; for states only its layer counts.
        role: "key" is the input of the weight, "value" its output (bias included), "write" what
            the sub-block adds to the residual stream (`mlp.down` and `attn.out` only), "state" the
            residual stream behind the block.
    """

    site: Site
    role: Role


def key(site: Site) -> Point:
    """Return the input of a weight: for `mlp.down` what comes out of the non-linearity."""
    return Point(site, "key")


def value(site: Site) -> Point:
    """Return the output of a weight, bias included, before any norm."""
    return Point(site, "value")


def write(site: Site) -> Point:
    """Return what a sub-block adds to the residual stream, behind a norm where there is one."""
    return Point(site, "write")


def state(layer: int) -> Point:
    """Return the residual stream behind a block; `state(-1)` enters block 0."""
    return Point(Site(layer), "state")


class Tokens(NamedTuple):
    """A batch of token rows.

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
