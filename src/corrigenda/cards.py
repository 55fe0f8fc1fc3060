"""Cards: Markdown files with TOML front matter that describe a method, benchmark or transform."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import NamedTuple

_FENCE = "+++"


class Card(NamedTuple):
    """A card.

    Attributes:
        matter: Front matter: the TOML between the first two `+++` lines.
        text: The Markdown after it.
    """

    matter: dict[str, object]
    text: str


def read_card(path: Path) -> Card:
    """Return the card in a file."""
    return parse_card(path.read_text(encoding="utf-8"))


def parse_card(text: str) -> Card:
    r"""Return a card split at its fences.

    Example:
        >>> parse_card('+++\nname = "a"\n+++\n# A\n')
        Card(matter={'name': 'a'}, text='# A\n')
    """
    _, matter, body = text.split(f"{_FENCE}\n", 2)
    return Card(tomllib.loads(matter), body.lstrip("\n"))
