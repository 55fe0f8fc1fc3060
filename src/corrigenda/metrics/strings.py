"""Decisions on generated text: equals, begins with, contains an answer.

Only the continuation is read, never the prompt. Texts are compared as `fold`
gives them, at word boundaries, in every script. What is compared and what is ignored:

| part of the text | rule |
|---|---|
| letters | any case, compatibility forms unified (NFKC), accents count in either form |
| digits | of any script; `1,200` is `1200`, `3.5` and `-5` are neither `35` nor `5` |
| quotes, brackets, symbols | ignored; they end words |
| hyphens, dashes, slashes, apostrophes in words | optional: `e-mail` is `email` and `e mail` |
| possessives, elided articles, Korean particles | not part of the answer: `Paris's`, `l'Italie` |
| a leading English article | optional; articles inside an answer count |
| a single letter as the answer | in its own case, unless it is the whole text |
| scripts without spaces | a word may begin and end at every letter; runs of Katakana are words |

The rule of published programs, which deletes punctuation and every English article, is in
`published_strings`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from corrigenda.metrics.folding import Break, FoldedText, fold

_ARTICLES = ("a", "an", "the")
_ELIDED = "all c d dall degl dell gl j jusqu l lorsqu m n nell puisqu qu s sull t un"
_ELISIONS = frozenset(_ELIDED.split())
"""French and Italian words that lose a vowel before the next word, which may be the answer."""

_ENGLISH = "s re ll ve d m"
_TURKISH = (
    "da de ta te dan den tan ten in \u0131n un \u00fcn nin n\u0131n nun n\u00fcn i \u0131 u \u00fc "
    "yi y\u0131 yu y\u00fc a e ya ye"
)
_CLITICS = frozenset(f"{_ENGLISH} {_TURKISH}".split())
"""Endings after an apostrophe that are not part of a name."""

_KOREAN = (
    "\uc740 \ub294 \uc774 \uac00 \uc744 \ub97c \uc758 \uc5d0 \uc640 \uacfc \ub3c4 \ub85c "
    "\uc73c\ub85c \uc5d0\uc11c \uc5d0\uac8c \ub9cc \uae4c\uc9c0 \ubd80\ud130 \uc5d0\ub294 "
    "\uc5d0\uc11c\ub294 \uc774\ub2e4 \ub2e4 \uc785\ub2c8\ub2e4 \uc774\uc5d0\uc694 \uc608\uc694 "
    "\uc600\ub2e4 \uc774\uc5c8\ub2e4 \uc774\uba70 \uc774\uace0 \ub77c\uace0 "
    "\uc774\ub77c\uace0 \uc600\uc2b5\ub2c8\ub2e4 \uc774\uc5c8\uc2b5\ub2c8\ub2e4"
)
_PARTICLES = frozenset(_KOREAN.split())
"""Korean particles and forms of the copula, which are written without a space."""

_SENTENCE_END = re.compile(
    r"[\s\"'*_`)\]\u00ab\u00bb\u201c-\u201f\u2039\u203a\u300d\u300f]*"
    r"(?:[.!?\u2026\u3002\uff0e\uff01\uff1f\uff61\u061f\u06d4\u0964\u0965\u104b\u1362\u17d4]|\n)"
)


def normalise(text: str) -> str:
    """Return the words of a text, folded, without a leading English article.

    Example:
        >>> normalise(" The Louvre."), normalise("Serie A"), normalise("3.5")
        ('louvre', 'serie a', '3.5')
    """
    folded = fold(text)
    return " ".join(_split(folded, _begin(folded)))


def equals(text: str, spelling: str) -> bool:
    """Whether a text is a spelling and nothing else; never, where a spelling has no words.

    Example:
        >>> equals("Paris.", "Paris"), equals("Paris, France", "Paris")
        (True, False)
    """
    return any(
        end == len(folded.characters) for folded, end in _matches(text, spelling, at_begin=True)
    )


def is_answer(text: str, spelling: str) -> bool:
    """Whether the first sentence or line of a text is a spelling and nothing else.

    Example:
        >>> is_answer(" Paris. The city is", "Paris"), is_answer(" Paris is a city.", "Paris")
        (True, False)
    """
    return any(
        end == len(folded.characters) or bool(_SENTENCE_END.match(folded.gaps[end]))
        for folded, end in _matches(text, spelling, at_begin=True)
    )


def begins_with(text: str, spelling: str) -> bool:
    """Whether a text begins with a spelling, which ends where a word ends.

    Example:
        >>> begins_with("Paris, France", "Paris"), begins_with("Parisian", "Paris")
        (True, False)
    """
    return any(True for _ in _matches(text, spelling, at_begin=True))


def contains(text: str, spelling: str) -> bool:
    """Whether the words of a spelling occur in a text one after the other.

    Example:
        >>> contains("April 1st ends at noon on April 2nd", "April 2nd"), contains("USSR", "US")
        (True, False)
    """
    return any(True for _ in _matches(text, spelling))


def has_characters(spelling: str) -> bool:
    """Whether a spelling has letters, digits or symbols, and so can be compared."""
    return bool(fold(spelling).characters or fold(spelling, symbols=True).characters)


def _matches(
    text: str, spelling: str, *, at_begin: bool = False
) -> Iterator[tuple[FoldedText, int]]:
    """Yield the folded text with each place where a spelling in it ends, clitics included."""
    wanted, folded = _fold_both(text, spelling)
    if not wanted.characters:
        return
    for skipped in sorted({0, _begin(wanted)}):
        length = len(wanted.characters) - skipped
        begins = (0, _begin(folded)) if at_begin else _find(folded, wanted.characters[skipped:])
        for begin in begins:
            if not _is_same(folded, begin, wanted, skipped) or not _can_begin(folded, begin):
                continue
            end = _end_of_word(folded, begin + length)
            if end is not None and _has_same_case(folded, begin, end, wanted, skipped):
                yield folded, end


def _find(folded: FoldedText, characters: str) -> Iterator[int]:
    place = folded.characters.find(characters)
    while place >= 0:
        yield place
        place = folded.characters.find(characters, place + 1)


def _has_same_case(
    folded: FoldedText, begin: int, end: int, wanted: FoldedText, skipped: int
) -> bool:
    """Whether a single letter that is not the whole text is in the case of the spelling."""
    letter = wanted.characters[skipped:]
    if len(letter) > 1 or not letter.isalpha() or (begin == 0 and end == len(folded.characters)):
        return True
    return folded.cased[begin] == wanted.cased[skipped]


def _fold_both(text: str, spelling: str) -> tuple[FoldedText, FoldedText]:
    """Fold a spelling and a text; where a spelling is of symbols alone, symbols count."""
    wanted = fold(spelling)
    if wanted.characters:
        return wanted, fold(text)
    return fold(spelling, symbols=True), fold(text, symbols=True)


def _is_same(folded: FoldedText, begin: int, wanted: FoldedText, skipped: int) -> bool:
    length = len(wanted.characters) - skipped
    if folded.characters[begin : begin + length] != wanted.characters[skipped:]:
        return False
    return all(
        {folded.breaks[begin + place], wanted.breaks[skipped + place]} != {Break.NONE, Break.HARD}
        for place in range(1, length)
    )


def _begin(folded: FoldedText) -> int:
    """Return where a text begins after an English article that another word follows."""
    for article in _ARTICLES:
        place = len(article)
        if (
            folded.characters.startswith(article)
            and place < len(folded.characters)
            and folded.breaks[place] is Break.HARD
            and folded.gaps[place].isspace()
        ):
            return place
    return 0


def _can_begin(folded: FoldedText, place: int) -> bool:
    if folded.breaks[place] in (Break.SOFT, Break.HARD):
        return True
    if folded.gaps[place] != "'":
        return False
    before = place - 1
    while folded.breaks[before] is Break.NONE:
        before -= 1
    return folded.characters[before:place] in _ELISIONS


def _end_of_word(folded: FoldedText, place: int) -> int | None:
    """Return where a word that could end at a place does, with what is attached; None inside it."""
    if folded.breaks[place] in (Break.SOFT, Break.HARD):
        return place
    end = place + 1
    while folded.breaks[end] is Break.NONE:
        end += 1
    attached = folded.characters[place:end]
    if folded.gaps[place] == "'" and attached in _CLITICS and folded.breaks[end] is not Break.JOINT:
        return end
    if folded.breaks[place] is Break.NONE and attached in _PARTICLES:
        return end
    return None


@lru_cache(maxsize=1 << 12)
def _split(folded: FoldedText, begin: int) -> tuple[str, ...]:
    found: list[str] = []
    for place in range(begin, len(folded.characters)):
        if place == begin or folded.breaks[place] in (Break.SOFT, Break.HARD):
            found.append("")
        found[-1] += folded.characters[place]
    return tuple(found)
