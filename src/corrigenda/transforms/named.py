"""Transforms by name, and the short form in which commands and calls name them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from corrigenda.errors import BadConfig, did_you_mean

if TYPE_CHECKING:
    from corrigenda.transforms.transform import Transform

_HOMES = {
    "anchor-norm": ("anchor_norm", "AnchorNorm"),
    "clip-norm": ("clip_norm", "ClipNorm"),
    "compress": ("compress_rank", "CompressRank"),
    "prune": ("prune_spectrum", "PruneSpectrum"),
    "rect": ("keep_largest", "KeepLargest"),
}

NAMES: tuple[str, ...] = tuple(_HOMES)
"""Names of all transforms."""


def transform_class(name: str) -> type[Transform]:
    """The class of a transform; this imports it, and torch with it.

    Raises:
        BadConfig (CG502): no transform by that name.
    """
    if name not in _HOMES:
        raise BadConfig(f'no transform "{name}".', hint=did_you_mean(name, NAMES))
    module, kind = _HOMES[name]
    return getattr(importlib.import_module(f"corrigenda.transforms.{module}"), kind)


def parse(text: str) -> Transform:
    """Read `name` or `name:option=value,option=value`; a value that is not JSON is text.

    Raises:
        BadConfig (CG502): no such transform, no such option, or a value it cannot take.

    Example:
        >>> parse("rect:keep=0.2")
        KeepLargest(keep=0.2)
    """
    name, _, settings = text.partition(":")
    kind = transform_class(name.strip())
    options: dict[str, object] = {}
    for entry in settings.split(",") if settings.strip() else ():
        option, sign, value = entry.partition("=")
        if not (sign and option.strip()):
            raise BadConfig(f'"{entry}" is not OPTION=VALUE.', where=f"transform {name}")
        try:
            options[option.strip().replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            options[option.strip().replace("-", "_")] = value.strip()
    return kind(**options)


def parse_all(given: Sequence[Transform | str]) -> tuple[Transform, ...]:
    """Transforms as given, those written as text read by `parse`."""
    return tuple(parse(one) if isinstance(one, str) else one for one in given)
