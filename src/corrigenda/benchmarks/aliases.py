"""Answers as the files write them: a text, a list of texts, or a list of lists of aliases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Answers = str | list[str] | list[list[str]]
"""What a file may hold where an answer stands."""

Groups = tuple[tuple[str, ...], ...]
"""Groups of spellings, as in `Probe.expected`."""


def group_answers(answers: Answers | None) -> Groups:
    """Answers by object, each with its spellings; blank ones are left out.

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
    """One group of everything: any spelling of any object will do. Nothing where there is nothing.

    Example:
        >>> merge_groups((("Anna", "Ann"), ("Bert",)))
        (('Anna', 'Ann', 'Bert'),)
    """
    merged = drop_repeats(one for group in groups for one in group)
    return (merged,) if merged else ()


def drop_repeats(texts: Iterable[str]) -> tuple[str, ...]:
    """Texts without blanks and repetitions, in order."""
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


def is_same_name(one: str, other: str) -> bool:
    """Whether two names differ in case and spacing at most."""
    return " ".join(one.lower().split()) == " ".join(other.lower().split())


def exclude_names(groups: Groups, names: Iterable[str]) -> Groups:
    """Groups that hold none of the names.

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
