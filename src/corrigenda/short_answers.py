"""The answer at the beginning of a continuation, and whether it is kept. Text only, no model."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LONGEST = 6
# A mark that closes a clause. A full stop after an initial ("J. K.", "D.C.") or a common
# abbreviation closes none, and neither does a mark inside a number or a word.
_CLAUSE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\b(?:St|Mr|Dr|Ms|Mt|Jr|Co))(?<!\b(?:Mrs|Inc|Ltd))\.(?=[\s\"')\]]|$)"
    r"|[,;:!?](?=[\s\"')\]]|$)|\s[-\u2013\u2014(\[]|[\n\u2014\u3001\u3002\uff0c\uff01\uff1f]"
)
# Words that continue a sentence after its answer.
_CONTINUING = frozenset(("and", "or", "but", "which", "who", "where", "while", "because", "that"))
_ARTICLES = frozenset(("a", "an", "the"))
_AROUND = "\"'*_`()[]\u201c\u201d\u2018\u2019\u00ab\u00bb"


def begins(text: str, target: str) -> bool:
    """Tell whether an answer begins with a target, as a whole word."""
    return text.startswith(target) and not text[len(target) : len(target) + 1].isalnum()


def shorten(text: str) -> str:
    """Return the short answer at the beginning of a text: its first clause, at most six words.

    The clause ends at a line break, at a punctuation mark before a space, before a dash or bracket,
    and before a word such as "and" or "which". A leading article, quotes and case are left out,
    unless nothing else is there.

    Example:
        >>> shorten(" the Louvre, which is in Paris"), shorten(" Paris and it is a city")
        ('louvre', 'paris')
    """
    clause = _CLAUSE_END.split(text.strip(), maxsplit=1)[0]
    words = [word.casefold() for word in (one.strip(_AROUND) for one in clause.split()) if word]
    if len(words) > 1 and words[0] in _ARTICLES:
        words = words[1:]
    stop = next((at for at, word in enumerate(words) if at and word in _CONTINUING), len(words))
    return " ".join(words[: min(stop, _LONGEST)])


def keeps_answer(before: str, after: str, known: Sequence[str] = ()) -> bool:
    """Tell whether an edit left an answer as it was; what comes after the answer is not read.

    Where the text before begins with a known object, the text after must begin with one too. Else
    the two short answers must be equal, or one must begin with all words of the other ("English",
    "English language").

    Args:
        before: Greedy continuation of the unedited model.
        after: The same of the edited model.
        known: Spellings of the object that is known to be right.

    Example:
        >>> keeps_answer("Berlin, a city", "Berlin. It is"), keeps_answer("Berlin", "Rome, Italy")
        (True, False)
    """
    before, after = before.strip(), after.strip()
    if any(begins(before, one) for one in known):
        return any(begins(after, one) for one in known)
    first, second = sorted((shorten(before), shorten(after)), key=len)
    return first == second or bool(first and second.startswith(f"{first} "))
