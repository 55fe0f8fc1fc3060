"""The rule by which published programs compare generated text, for metrics named `legacy`.

Lower case, ASCII punctuation deleted, the words a, an and the deleted wherever they are, white
space collapsed; then words are compared. It takes "Serie B" for "Serie A" and "3.5" for "35", and
knows only the quotes and dashes of ASCII: see `strings` for what this library does instead.
"""

from __future__ import annotations

import re
import string

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def published_normalise(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation, articles and superfluous white space.

    Example:
        >>> published_normalise(" The Louvre."), published_normalise("3.5")
        ('louvre', '35')
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def published_equals(text: str, spelling: str) -> bool:
    """Whether two texts are the same after `published_normalise`."""
    wanted = published_normalise(spelling)
    return bool(wanted) and published_normalise(text) == wanted


def published_begins_with(text: str, spelling: str) -> bool:
    """Whether a text begins with the words of a spelling."""
    wanted = published_normalise(spelling)
    return bool(wanted) and f"{published_normalise(text)} ".startswith(f"{wanted} ")


def published_contains(text: str, spelling: str) -> bool:
    """Whether the words of a spelling occur in a text one after the other."""
    wanted = published_normalise(spelling)
    return bool(wanted) and f" {wanted} " in f" {published_normalise(text)} "
