"""Registry of transforms, and the short form of commands and calls: `rect:keep=0.4`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from corrigenda.errors import BadConfig
from corrigenda.registry import Registry
from corrigenda.text_files import UnreadableText, parse_value

if TYPE_CHECKING:
    from corrigenda.transforms.transform import Transform

TRANSFORMS: Registry[Transform] = Registry(
    "transform",
    "corrigenda.transforms",
    "corrigenda.transforms.transform:Transform",
    BadConfig,
    group="corrigenda.transforms",
)
"""Transforms of patches."""


def parse_transform(text: str) -> Transform:
    """Read `name` or `name:option=value,option=value`; a value that is not JSON is text.

    Raises:
        BadConfig (CG502): no such transform, no such option, or a value it cannot take.

    Example:
        >>> parse_transform("rect:keep=0.2")
        KeepLargest(keep=0.2)
    """
    name, _, settings = text.partition(":")
    kind = TRANSFORMS.get(name)
    options: dict[str, object] = {}
    for entry in settings.split(",") if settings.strip() else ():
        option, sign, value = entry.partition("=")
        if not (sign and option.strip()):
            raise BadConfig(f'"{entry}" is not OPTION=VALUE.', where=f"transform {name}")
        try:
            options[option.strip().replace("-", "_")] = parse_value(value.strip())
        except UnreadableText as error:
            raise BadConfig(f"{option}: {error}.", where=f"transform {name}") from error
    return kind(**options)


def parse_transforms(given: Sequence[Transform | str]) -> tuple[Transform, ...]:
    """Return the transforms as given, those written as text read by `parse_transform`."""
    return tuple(parse_transform(one) if isinstance(one, str) else one for one in given)
