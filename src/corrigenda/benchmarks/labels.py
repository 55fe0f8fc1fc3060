"""Finds names of subjects and objects where a file gives only Wikidata ids and sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from corrigenda.errors import AmbiguousSubject, SubjectNotFound
from corrigenda.facts import find_subject
from corrigenda.subjects import guess_subject


class EntityLabels:
    """Spellings by Wikidata id, as the answers of a whole file give them."""

    def __init__(self, found: Iterable[tuple[str, tuple[str, ...]]]) -> None:
        """Collect spellings; the first that is found for an id counts."""
        self._spellings: dict[str, tuple[str, ...]] = {}
        for key, spellings in found:
            if spellings:
                self._spellings.setdefault(key, spellings)

    def get(self, key: str) -> tuple[str, ...]:
        """Return the spellings of an id; none if the file has no answer with it."""
        return self._spellings.get(key, ())

    def infer_subject(self, prompt: str, key: str, others: Sequence[str]) -> str:
        """Return the subject of a prompt; empty if it is not certain.

        It is a spelling of its id, or else the only run of capitalised words of the prompt, where
        that occurs in every other prompt about it as well.

        Args:
            prompt: The prompt edited.
            key: Id of the subject.
            others: Other prompts about the same id, by the same name.
        """
        for spelling in self.get(key):
            if _occurs_once(spelling, prompt):
                return spelling
        try:
            guess = guess_subject(prompt)
        except AmbiguousSubject:
            return ""
        return guess if all(_occurs_once(guess, other) for other in others) else ""


def split_statement(
    statement: str,
    spellings: Sequence[str],
    original: str | None = None,
    original_spellings: Sequence[str] = (),
) -> tuple[str, str] | None:
    """Split a statement that ends with its target and a full stop into prompt and target.

    Args:
        statement: "The capital of France is Rome."
        spellings: Spellings of the target, where they are known.
        original: The same statement with the old target, where there is one.
        original_spellings: Spellings of the old target, where they are known.

    Returns:
        None if the target is not certain.

    Example:
        >>> split_statement("The capital of France is Rome.", (), "The capital of France is Paris.")
        ('The capital of France is', 'Rome')
    """
    text = statement.strip().removesuffix(".")
    for spelling in spellings:
        if text.endswith(f" {spelling}"):
            return text.removesuffix(spelling).rstrip(), spelling
    if original is None:
        return None
    before = original.strip().removesuffix(".")
    for spelling in original_spellings:
        prompt = before.removesuffix(spelling)
        if before.endswith(f" {spelling}") and text.startswith(prompt) and text != prompt:
            return prompt.rstrip(), text.removeprefix(prompt)
    words = text.split(" ")
    shared = 0
    for one, other in zip(words, before.split(" "), strict=False):
        if one != other:
            break
        shared += 1
    # "New York" and "New Delhi" share a word that is no part of the prompt.
    while shared and not words[shared - 1][:1].islower():
        shared -= 1
    if not 0 < shared < len(words):
        return None
    return " ".join(words[:shared]), " ".join(words[shared:])


def _occurs_once(name: str, text: str) -> bool:
    try:
        find_subject(text, name)
    except (SubjectNotFound, AmbiguousSubject):
        return False
    return True
