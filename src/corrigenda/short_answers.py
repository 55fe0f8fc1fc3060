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
_SENTENCE_END = re.compile(r"(?<!\b[A-Z])(?<!\bSt)(?<!\b[DM]r)[.!?](?=[\s\"')\]*]|$)|[\n\u3002]")
_COPULAS = frozenset(("is", "are", "was", "were"))
# Words that continue a sentence after its answer.
_CONTINUING = frozenset(("and", "or", "but", "which", "who", "where", "while", "because", "that"))
_ARTICLES = frozenset(("a", "an", "the"))
_AROUND = "\"'*_`()[]\u201c\u201d\u2018\u2019\u00ab\u00bb"


def begins(text: str, target: str) -> bool:
    """Tell whether an answer begins with a target, as a whole word."""
    return text.startswith(target) and not text[len(target) : len(target) + 1].isalnum()


def shorten(text: str, *, sentence: bool = False) -> str:
    """Return the short answer at the beginning of a text: its first clause, at most six words.

    The clause ends at a line break, at a punctuation mark before a space, before a dash or bracket,
    and before a word such as "and" or "which". A leading article, quotes and case are left out,
    unless nothing else is there. Of a whole sentence ("The capital of France is Paris, ...") the
    words up to the first "is", "are", "was" or "were" are kept, and the rest is shortened.

    Args:
        text: A continuation, or the answer of a chat model.
        sentence: Whether the answer may be a whole sentence.

    Example:
        >>> shorten(" the Louvre, which is in Paris"), shorten(" Paris and it is a city")
        ('louvre', 'paris')
    """
    clause = _CLAUSE_END.split(text.strip(), maxsplit=1)[0]
    words = [word.casefold() for word in (one.strip(_AROUND) for one in clause.split()) if word]
    verb = next((at for at, word in enumerate(words) if sentence and word in _COPULAS), -1)
    head, rest = words[: verb + 1], words[verb + 1 :]
    if len(rest) > 1 and rest[0] in _ARTICLES:
        rest = rest[1:]
    stop = next((at for at, word in enumerate(rest) if at and word in _CONTINUING), len(rest))
    return " ".join((*head, *rest[: min(stop, _LONGEST)]))


def find_words(text: str, words: str) -> int:
    """Return where words first occur in a text, as whole words in any case; -1 if nowhere."""
    found = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE)
    return found.start() if found else -1


def states(text: str, targets: Sequence[str], others: Sequence[str] = ()) -> bool:
    """Tell whether the first sentence of an answer states a target, and no other answer before it.

    Args:
        text: Answer of a chat model, often a whole sentence.
        targets: Spellings of what it should state.
        others: Spellings of other answers, such as the one that was true before.

    Example:
        >>> states("The capital of France is Rome.", ["Rome"]), states("Paris, not Rome", ["Rome"])
        (True, True)
        >>> states("Paris, not Rome", ["Rome"], ["Paris"])
        False
    """
    first = _SENTENCE_END.split(text.strip(), maxsplit=1)[0]
    places = [place for one in targets if (place := find_words(first, one)) >= 0]
    rivals = [place for one in others if (place := find_words(first, one)) >= 0]
    return bool(places) and all(min(places) <= place for place in rivals)


def keeps_answer(
    before: str, after: str, known: Sequence[str] = (), *, sentence: bool = False
) -> bool:
    """Tell whether an edit left an answer as it was; what comes after the answer is not read.

    Where the text before begins with a known object (of a sentence: states it), so must the text
    after. Else the two short answers must be equal, or one must begin with all words of the other
    ("English", "English language").

    Args:
        before: Greedy continuation of the unedited model.
        after: The same of the edited model.
        known: Spellings of the object that is known to be right.
        sentence: Whether the answers may be whole sentences; see `shorten`.

    Example:
        >>> keeps_answer("Berlin, a city", "Berlin. It is"), keeps_answer("Berlin", "Rome, Italy")
        (True, False)
    """
    before, after = before.strip(), after.strip()
    gives = states if sentence else _begins_with_one
    if gives(before, known):
        return gives(after, known)
    texts = (shorten(before, sentence=sentence), shorten(after, sentence=sentence))
    first, second = sorted(texts, key=len)
    return first == second or bool(first and second.startswith(f"{first} "))


def _begins_with_one(text: str, spellings: Sequence[str]) -> bool:
    return any(begins(text, one) for one in spellings)
