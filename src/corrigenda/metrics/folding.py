"""Folding of text for comparison: letters, digits and marks of any script, and the breaks between.

Two texts that differ in case, compatibility forms, composition, quotes, dashes or digits of another
script fold to the same characters. A break is remembered before every character, with the text that
was there, so that comparisons can tell words apart.
"""

from __future__ import annotations

import re
import unicodedata
from enum import Enum
from functools import lru_cache
from typing import NamedTuple


class Break(Enum):
    """Kind of break before a character."""

    NONE = "none"
    """Inside a word."""

    JOINT = "joint"
    """Inside a word that may also be written as two: `O'Brien`, `U.S.`, `5km`."""

    SOFT = "soft"
    """Between words that may also be written as one: `e-mail`, or a script without spaces."""

    HARD = "hard"
    """Between words."""


class FoldedText(NamedTuple):
    """A text as it is compared.

    Attributes:
        characters: Its letters, digits and marks, folded.
        cased: For each of them, the character it comes from.
        breaks: The break before each of them, and after the last.
        gaps: The text that was there.
    """

    characters: str
    cased: tuple[str, ...]
    breaks: tuple[Break, ...]
    gaps: tuple[str, ...]


# Before NFKC, which turns some of these into a space and an accent, or into plain spaces.
_UNIFIED = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u02bb\u02b9\u2032\u00b4`\uff07\u05f3", "'"),
        **dict.fromkeys("\u2212\u207b\u02d7\u2010\u2011\u2012\u2013\u2014\u2015\ufe58\uff0d", "-"),
        **dict.fromkeys("\u066b", "."),
        **dict.fromkeys("\u066c", ","),
        **dict.fromkeys("\u200b\u2028\u2029", " "),
        "\u05f4": '"',
    }
)
_NARROW_SPACES = "\u00a0\u2007\u2009\u202f"
_GROUPED = re.compile(
    rf"(?<![\d.,])\d{{1,3}}(?:(?:,\d{{2}})*,\d{{3}}|(?:,\d{{3}})+|(?:['{_NARROW_SPACES}]\d{{3}})+)"
    r"(?![\d,])"
)
"""A number with separators of thousands (1,200; 12,34,567; 1'200; with narrow spaces)."""

_DECIMAL_COMMA = re.compile(r"(?<![\d,.])(\d+),(\d{1,2}|\d{4,})(?![\d,.])")
_OPTIONAL_MARKS = re.compile("[\u0640\u064b-\u0652\u0670\u0591-\u05bd\u05bf\u05c1-\u05c2\u05c7]")
"""Vowel marks that Arabic and Hebrew usually leave out, and the line that stretches words."""

_JOINTS = frozenset("'")
_SOFT_GAPS = frozenset("-/_&@\u00b7\u30fb\u2044\u05be")
_INITIAL_GAP = re.compile(r"\.\s+")
_LONGEST_INITIAL = 2
# Thai and Lao vowels that are written before or after their consonant.
_LEADING_VOWELS = frozenset("\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4")
_TRAILING_VOWELS = frozenset("\u0e30\u0e32\u0e33\u0e45\u0eb0\u0eb2\u0eb3")
_SYMBOLS = frozenset("%&#@*")
_STACKERS = frozenset("\u17d2\u1039")
"""Signs after which Khmer and Burmese consonants are stacked."""

_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF, "thai"),
    (0x1000, 0x109F, "burmese"),
    (0x1780, 0x17FF, "khmer"),
    (0x1950, 0x19DF, "tai"),
    (0x1A20, 0x1AAF, "tai"),
    (0x3005, 0x3007, "han"),
    (0x3040, 0x309F, "hiragana"),
    (0x30A0, 0x30FF, "katakana"),
    (0x31F0, 0x31FF, "katakana"),
    (0x3400, 0x9FFF, "han"),
    (0xA980, 0xA9DF, "javanese"),
    (0xAA60, 0xAA7F, "burmese"),
    (0xAA80, 0xAADF, "tai"),
    (0xF900, 0xFAFF, "han"),
    (0x20000, 0x3FFFF, "han"),
)
_HANGUL = ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7FF))


@lru_cache(maxsize=1 << 15)
def fold(text: str, *, symbols: bool = False) -> FoldedText:
    """Fold a text.

    Args:
        text: Any text.
        symbols: Whether symbols such as `+` and emoji are characters too.

    Example:
        >>> fold("Franche-Comt\u00e9").characters == fold("FRANCHE COMTE\u0301").characters
        True
        >>> fold("1,200.5").characters, fold("C++").characters, fold("35%").characters
        ('1200.5', 'c++', '35')
    """
    plain = _unify(text)
    characters: list[str] = []
    cased: list[str] = []
    gaps: list[str] = []
    gap = ""
    for place, character in enumerate(plain):
        if not _counts(plain, place, symbols=symbols):
            gap += character
            continue
        for one in character.casefold():
            # The dot that a Turkish capital leaves.
            if one == "\u0307" and characters and characters[-1] == "i":
                continue
            characters.append(one)
            cased.append(character)
            gaps.append(gap)
            gap = ""
    gaps.append(gap)
    breaks = [_break(characters, gaps, place) for place in range(len(gaps))]
    return FoldedText("".join(characters), tuple(cased), tuple(breaks), tuple(gaps))


def _unify(text: str) -> str:
    """Unify composition, compatibility forms, quotes, dashes, digits and separators of numbers."""
    found: list[str] = []
    for place, character in enumerate(text):
        kind = unicodedata.decomposition(character).partition(" ")[0]
        if kind == "<fraction>":
            found.append(" ")
        elif kind == "<super>" and character.isdigit() and text[place - 1 : place].isdigit():
            found.append("^")
        digit = unicodedata.decimal(character, None)
        found.append(character if digit is None else str(digit))
    unified = "".join(found).translate(_UNIFIED)
    unified = _GROUPED.sub(lambda one: re.sub(r"\D", "", one.group()), unified)
    unified = unicodedata.normalize("NFKC", unified)
    unified = "".join(one for one in unified if unicodedata.category(one) != "Cf")
    unified = unicodedata.normalize("NFKC", _OPTIONAL_MARKS.sub("", unified))
    return _DECIMAL_COMMA.sub(r"\1.\2", unified)


def _counts(text: str, place: int, *, symbols: bool) -> bool:
    """Whether a character of a text is compared."""
    character = text[place]
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    category = unicodedata.category(character)
    if category[0] == "M":
        return bool(before) and unicodedata.category(before)[0] in "LMN"
    if category[0] in "LN":
        return True
    if character in ".^":
        return before.isdigit() and after.isdigit()
    if character == "-" and after.isdigit():
        return not before or before.isspace() or before in "([{=:"
    if character == "-":
        return _is_grade(text, place)
    if symbols:
        return category[0] == "S" or character in _SYMBOLS
    if character in "+#" and not after.isalnum():
        return text[:place].rstrip("+#")[-1:].isalpha()
    return False


def _is_grade(text: str, place: int) -> bool:
    """Whether a minus belongs to the letter before it, as in the grade `A-`."""
    before = text[place - 1 : place]
    return (
        before.isupper()
        and not text[place - 2 : place - 1].strip()
        and not text[place + 1 : place + 2].strip(" .,;:!?)")
        and not (text[place + 1 : place + 2] == " " and text[place + 2 : place + 3].isalnum())
    )


def _break(characters: list[str], gaps: list[str], place: int) -> Break:
    if place in (0, len(characters)):
        return Break.HARD
    gap, before, after = gaps[place], characters[place - 1], characters[place]
    if not gap:
        return _break_without_gap(before, after)
    if gap in _JOINTS:
        return Break.JOINT
    numeric = before.isdigit() and after.isdigit()
    if gap in _SOFT_GAPS:
        return Break.HARD if numeric else Break.SOFT
    if gap == "." or _INITIAL_GAP.fullmatch(gap):
        first, second = _run_before(gaps, place), _run_after(gaps, place)
        longest = _LONGEST_INITIAL if gap == "." else 1
        if max(first, second) <= longest and (before + after).isalpha():
            spaced = gap != "." and not gaps[place + second].startswith(".")
            return Break.HARD if spaced else Break.JOINT
    return Break.HARD


def _run_before(gaps: list[str], place: int) -> int:
    """Return the number of characters without a gap before a place."""
    begin = place - 1
    while begin and not gaps[begin]:
        begin -= 1
    return place - begin


def _run_after(gaps: list[str], place: int) -> int:
    end = place + 1
    while end < len(gaps) - 1 and not gaps[end]:
        end += 1
    return end - place


def _break_without_gap(before: str, after: str) -> Break:
    if unicodedata.category(after)[0] == "M" or before in _STACKERS:
        return Break.NONE
    if before in _LEADING_VOWELS or after in _TRAILING_VOWELS:
        return Break.NONE
    first, second = _script(before), _script(after)
    if first != second and (first or second):
        return Break.SOFT
    if first not in ("", "katakana", "hangul"):
        return Break.SOFT
    if before.isdigit() != after.isdigit() and (before + after).isalnum():
        return Break.JOINT
    return Break.NONE


@lru_cache(maxsize=1 << 12)
def _script(character: str) -> str:
    """Return the name of a script in which words are not between spaces; empty for all others."""
    code = ord(character)
    for first, last, name in _WITHOUT_SPACES:
        if first <= code <= last:
            return name
    return "hangul" if any(first <= code <= last for first, last in _HANGUL) else ""
