"""Things with a name whose card, Markdown behind TOML front matter, stands beside their module."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

_FENCE = "+++"


class Card(NamedTuple):
    """A card.

    Attributes:
        matter: Front matter: the TOML between the first two `+++` lines.
        text: Markdown behind it.
    """

    matter: dict[str, object]
    text: str


def names_in(package: str) -> tuple[str, ...]:
    """Names of everything with a card in a package, sorted.

    A name is that of the module, with hyphens: `ft-l` is `ft_l.py`, its card `ft_l.md`.
    """
    cards = (item.name for item in files(package).iterdir() if item.name.endswith(".md"))
    return tuple(sorted(card.removesuffix(".md").replace("_", "-") for card in cards))


def stem(name: str) -> str:
    """Name of the module and the card.

    Example:
        >>> stem("ft-l")
        'ft_l'
    """
    return name.replace("-", "_")


def card_in(package: str, name: str) -> Card:
    """The card of one of `names_in(package)`."""
    return parse_card(files(package).joinpath(f"{stem(name)}.md").read_text(encoding="utf-8"))


def card_at(path: Path) -> Card:
    """The card in a file."""
    return parse_card(path.read_text(encoding="utf-8"))


def parse_card(text: str) -> Card:
    r"""Split a card at its fences.

    Example:
        >>> parse_card('+++\nname = "a"\n+++\n# A\n')
        Card(matter={'name': 'a'}, text='# A\n')
    """
    _, matter, body = text.split(f"{_FENCE}\n", 2)
    return Card(tomllib.loads(matter), body.lstrip("\n"))
