"""Decisions on generated text: equal, begins with, contains; on the continuation, never the prompt.

Words are compared after `normalise`, at word boundaries.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc`", "'"))


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and superfluous white space.

    Example:
        >>> normalise(" The Louvre.")
        'louvre'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def unify_apostrophes(text: str) -> str:
    """Typographic apostrophes replaced by the ASCII one."""
    return text.translate(_APOSTROPHES)


def equals(text: str, spelling: str) -> bool:
    """Whether two texts are the same after `normalise`; never, where nothing is left of them.

    Example:
        >>> equals("Paris, France", "Paris")
        False
    """
    wanted = normalise(spelling)
    return bool(wanted) and normalise(text) == wanted


def begins_with(text: str, spelling: str) -> bool:
    """Whether a text begins with a spelling, which ends where a word ends.

    Example:
        >>> begins_with("Paris, France", "Paris"), begins_with("Parisian", "Paris")
        (True, False)
    """
    wanted = normalise(spelling)
    return bool(wanted) and f"{normalise(text)} ".startswith(f"{wanted} ")


def contains(text: str, spelling: str) -> bool:
    """Whether the words of a spelling occur in a text one after the other.

    Example:
        >>> contains("April 1st ends at noon on April 2nd", "April 2nd"), contains("USSR", "US")
        (True, False)
    """
    wanted = normalise(spelling)
    return bool(wanted) and f" {wanted} " in f" {normalise(text)} "


def has_words(groups: Sequence[Sequence[str]]) -> bool:
    """Whether every group has a spelling of which something is left after `normalise`."""
    return bool(groups) and all(any(map(normalise, group)) for group in groups)
