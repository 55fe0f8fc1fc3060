"""Reads answers in files: a text, a list of texts, or a list of lists of aliases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Answers = str | list[str] | list[list[str]]
"""Forms that an answer has in a file."""

Groups = tuple[tuple[str, ...], ...]
"""Groups of spellings, as in `Probe.expected`."""


def group_answers(answers: Answers | None) -> Groups:
    """Return the spellings of each object; blank ones are left out.

    A flat list is one object with its spellings.

    Example:
        >>> group_answers([["USSR", "Soviet Union"], [], [" "]])
        (('USSR', 'Soviet Union'),)
    """
    match answers:
        case None:
            found: Sequence[Sequence[str]] = ()
        case str():
            found = [[answers]]
        case [str(), *_]:
            found = [answers]
        case _:
            found = [one for one in answers if not isinstance(one, str)]
    groups = (drop_repeats(one.strip() for one in group) for group in found)
    return tuple(group for group in groups if group)


def merge_groups(groups: Iterable[Sequence[str]]) -> Groups:
    """Return one group of all spellings, any of which will do; no group if there are none.

    Example:
        >>> merge_groups((("Anna", "Ann"), ("Bert",)))
        (('Anna', 'Ann', 'Bert'),)
    """
    merged = drop_repeats(one for group in groups for one in group)
    return (merged,) if merged else ()


def drop_repeats(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the texts in order, without blanks and repetitions."""
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


def is_same_name(one: str, other: str) -> bool:
    """Return whether two names differ in case and spacing at most."""
    return " ".join(one.lower().split()) == " ".join(other.lower().split())


def exclude_names(groups: Groups, names: Iterable[str]) -> Groups:
    """Return the groups that hold none of the names.

    Example:
        >>> exclude_names((("bishop",), ("cardinal", "Cardinal")), ["Bishop"])
        (('cardinal', 'Cardinal'),)
    """
    banned = tuple(names)
    return tuple(
        group
        for group in groups
        if not any(is_same_name(one, name) for one in group for name in banned)
    )
