"""Text that looks like other text: case, accents, quotes, dashes and invisible characters."""

from __future__ import annotations

import unicodedata

_LOOKS = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201b\u02bc\u02b9\u2032\uff07\u0060\u00b4", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad"),
    }
)


def explain_look_alike(prompt: str, subject: str) -> str:
    """Return a hint at the same text in other characters: case, accents, quotes, dashes, blanks."""
    folded = [_fold(char) for char in prompt]
    wanted = "".join(map(_fold, subject))
    at = "".join(folded).find(wanted) if wanted else -1
    if at < 0:
        return ""
    owners = [index for index, part in enumerate(folded) for _ in part]
    end = owners[at + len(wanted) - 1] + 1
    while end < len(prompt) and unicodedata.combining(prompt[end]):
        end += 1
    found = prompt[owners[at] : end]
    hint = f' Did you mean "{found}"?'
    if found.casefold() == subject.casefold():
        return hint
    here = _list_characters(found, subject)
    there = _list_characters(subject, found)
    return f"{hint} It looks alike, but has {here or 'fewer characters'}, the subject {there}."


def _fold(char: str) -> str:
    """Return a character as it looks: without case, accents, and kinds of quotes and dashes."""
    plain = "".join(
        part for part in unicodedata.normalize("NFKD", char) if not unicodedata.combining(part)
    )
    return plain.casefold().translate(_LOOKS)


def _list_characters(text: str, other: str) -> str:
    """Return the characters of a text that another has not, with their names."""
    own = [char for char in dict.fromkeys(text) if char not in other]
    names = [f"U+{ord(char):04X} {unicodedata.name(char, '')}".strip() for char in own]
    return ", ".join(names[:3]) or "none of them"
