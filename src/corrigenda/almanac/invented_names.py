"""Invented names and the values that invented people and companies can have."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from importlib import resources

_DATA = json.loads(
    resources.files("corrigenda.almanac").joinpath("data", "registry.json").read_text("utf-8")
)

COUNTRY_ALIASES: Mapping[str, str] = _DATA["country_aliases"]
OCCUPATIONS: Sequence[str] = _DATA["occupations"]
UNIVERSITIES: Sequence[str] = _DATA["universities"]
SPORTS: Sequence[str] = _DATA["sports"]
INSTRUMENTS: Sequence[str] = _DATA["instruments"]
INDUSTRIES: Sequence[str] = _DATA["industries"]
PRODUCTS: Sequence[str] = _DATA["products"]
_NUMERALS = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X"]
STORY: Mapping[str, Sequence[str]] = _DATA["story"]


def draw_people(draw: random.Random, count: int, *, taken: set[str]) -> list[tuple[str, str]]:
    """Draw unique full names, each with the pronoun that goes with the first name."""
    found: dict[str, str] = {}
    while len(found) < count:
        name, pronoun = draw_person(draw)
        if name not in taken:
            found.setdefault(name, pronoun)
    return list(found.items())


def draw_person(draw: random.Random) -> tuple[str, str]:
    """Draw one full name with its pronoun; names outside the world are drawn here too."""
    women, men = _DATA["female"], _DATA["male"]
    first, pronoun = draw.choice([*((n, "She") for n in women), *((n, "He") for n in men)])
    return f"{first} {_draw_compound(draw)}", pronoun


def draw_companies(draw: random.Random, count: int, *, taken: set[str]) -> list[str]:
    """Draw unique company names."""
    found: dict[str, None] = {}
    while len(found) < count:
        if (name := draw_company(draw)) not in taken:
            found[name] = None
    return list(found)


def draw_company(draw: random.Random) -> str:
    """Draw one company name."""
    return f"{_draw_compound(draw)} {draw.choice(_DATA['company_kinds'])}"


def _draw_compound(draw: random.Random) -> str:
    return draw.choice(_DATA["first_half"]) + draw.choice(_DATA["second_half"])


def draw_nickname(draw: random.Random, *, taken: set[str]) -> str:
    """Draw a nickname that is not taken."""
    while True:
        name = f"{draw.choice(_DATA['nickname_first'])} {draw.choice(_DATA['nickname_last'])}"
        if draw.random() < 0.5:
            name = f"{name} {draw.choice(_NUMERALS)}"
        if name not in taken:
            return name
