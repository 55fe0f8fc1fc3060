"""Reading a model by names: a part or "state", layers, and prompts as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from corrigenda.errors import EmptyTarget, UnknownSite
from corrigenda.lm.sites import PARTS, Point, PointRole, Site, Tokens, state
from corrigenda.lm.spans import HasTokenizer, encode


def name_points(
    name: str, layer: int | Sequence[int] | None, role: PointRole = "value"
) -> tuple[Point, ...]:
    """Return the points that a name and layers mean.

    Args:
        name: A part, "state", or a whole site such as "5.mlp.down".
        layer: Where the name holds no layer: the block, or several.
        role: Which tensor at a part.

    Raises:
        UnknownSite (CG303): no such name or role, or the layer is missing.
    """
    if layer is None:
        return (Point(Site.parse(name), role),)
    layers = [layer] if isinstance(layer, int) else list(layer)
    if name == "state":
        return tuple(state(one) for one in layers)
    if name not in PARTS or role not in ("key", "value", "write"):
        raise UnknownSite(
            f'"{name}" with the role "{role}" is no point of a block.',
            hint=f'Names are "state" and {", ".join(PARTS)}; roles are key, value and write.',
        )
    return tuple(Point(Site(one, name), role) for one in layers)


def encode_prompts(lm: HasTokenizer, prompt: str | Sequence[str]) -> Tokens:
    """Return a batch of prompts that all end at the last column.

    Raises:
        EmptyTarget (CG102): there is no prompt.
        PromptTooLong (CG105): a prompt exceeds the context.
    """
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not texts:
        raise EmptyTarget(
            "no prompt was given to read.",
            hint='Write `lm.tap("mlp.down", layer=5, prompt=...)`.',
        )
    return Tokens.pad([encode(lm, text).ids for text in texts], 0, side="left")


def stack_named(found: Mapping[Point, Tensor], tokens: Tokens, *, several_layers: bool) -> Tensor:
    """Return the tensors of points as one, with NaN at padding.

    Args:
        found: By point, (batch, pos, d).
        tokens: The batch.
        several_layers: Whether there is a leading axis for the points.
    """
    padding = ~tokens.mask.bool()[..., None]
    tensors = [one.masked_fill(padding.to(one.device), torch.nan) for one in found.values()]
    return torch.stack(tensors) if several_layers else tensors[0]


def gather(
    tensor: Shaped[Tensor, "batch pos *d"],
    positions: Int[Tensor, " batch"] | Int[Tensor, "batch k"],
) -> Tensor:
    """Pick positions of each row: (batch, d), or (batch, k, d) where `positions` has k columns."""
    positions = positions.to(tensor.device)
    rows = torch.arange(len(positions), device=tensor.device)
    return tensor[rows.view(-1, *[1] * (positions.dim() - 1)), positions]
