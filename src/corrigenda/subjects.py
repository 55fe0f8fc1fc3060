"""The subject of a prompt, where only one is possible; imports no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from corrigenda.errors import AmbiguousSubject
from corrigenda.facts import find_subject

_WORD = re.compile(r"[^\W_][\w'.\u2019-]*(?<![.'\u2019-])|[^\w\s]+")
_JOINING = re.compile("of|the|de|la|le|du|des|van|von|der|den|da|di|al|bin|ibn")
# Words that are capitalised only because a sentence starts with them.
_OPENING = re.compile(
    "an?|the|in|on|at|of|for|from|to|by|with|as|wh(at|ich|om?|ose|ere|en|y)|how|is|are|was|were"
    "|did|does|do|ha[sd]|have|name|tell|question|answer|q|his|her|its|their|th(is|at|ese|ose|ey|ere)"
    "|it|s?he|and|but|or|if|according"
)


def guess_subject(prompt: str, *, known: Collection[str] = (), where: str = "") -> str:
    """Return the subject of a prompt where only one is possible.

    Known names decide first: the longest one that occurs; a second one that is no part of it makes
    the prompt ambiguous. Without them, the only run of capitalised words is the subject.

    Args:
        prompt: Text up to the answer.
        known: Names of subjects, where there is a list (the pocket model's world).
        where: How messages refer to the fact.

    Raises:
        AmbiguousSubject (CG104): no candidate, or several.

    Example:
        >>> guess_subject("The mother tongue of Danielle Darrieux is")
        'Danielle Darrieux'
    """
    candidates = _drop_parts(_find_names(prompt, known)) or _find_capitalised(prompt)
    if len(candidates) != 1:
        found = ", ".join(f'"{name}"' for name in candidates) or "nothing"
        raise AmbiguousSubject(
            f'the subject of "{prompt}" is not certain: found {found}.',
            where=where,
            hint="Give it with --subject (`subject` in Python and in facts files).",
        )
    find_subject(prompt, candidates[0], where=where)
    return candidates[0]


def _find_names(prompt: str, known: Iterable[str]) -> list[str]:
    return [
        name
        for name in known
        if name in prompt and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", prompt)
    ]


def _drop_parts(names: list[str]) -> list[str]:
    return [name for name in names if not any(name != other and name in other for other in names)]


def _find_capitalised(prompt: str) -> list[str]:
    """Return the maximal runs of capitalised words, joining words inside them included."""
    spans: list[tuple[int, int]] = []
    start = end = -1
    for word in _WORD.finditer(prompt):
        text = word.group()
        opens = not prompt[: word.start()].strip() or prompt[: word.start()].rstrip()[-1] in ".:?!"
        if text[0].isupper() and not (opens and _OPENING.fullmatch(text.lower())):
            start, end = (word.start() if start < 0 else start), word.end()
        elif start >= 0 and text.isdigit() and word.start() == end + 1:
            end = word.end()
        elif start >= 0 and not _JOINING.fullmatch(text):
            spans.append((start, end))
            start = -1
    if start >= 0:
        spans.append((start, end))
    return list(dict.fromkeys(prompt[first:last] for first, last in spans))
