"""Corrections that ask the same question, and whether they give the same answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from corrigenda.books.records import Correction
from corrigenda.facts import Fact


class SharedQuestion(NamedTuple):
    """A fact that asks what a correction of a book asks too.

    Attributes:
        fact: The fact.
        correction: The correction.
        other: The fact of the correction that is asked the same.
        agrees: Whether both have the same answer.
    """

    fact: Fact
    correction: Correction
    other: Fact
    agrees: bool

    def describe(self) -> str:
        """Return a line for messages."""
        number = self.correction.number
        who = f"correction {self.correction.name}" if number else "another fact that is to be added"
        says = "says the same" if self.agrees else f"says {self.other.target}"
        return f'"{self.fact.prompt}": {self.fact.target}; {who} {says}'


class QuestionIndex:
    """The questions of corrections: prompts and paraphrases, without regard to case and spaces."""

    def __init__(self, corrections: Iterable[Correction]) -> None:
        """List the questions of corrections."""
        self._known: dict[str, list[tuple[Correction, Fact]]] = defaultdict(list)
        for correction in corrections:
            self.add(correction)

    def add(self, correction: Correction) -> None:
        """List the questions of another correction."""
        for fact in correction.facts:
            for question in list_questions(fact):
                self._known[question].append((correction, fact))

    def find(self, facts: Sequence[Fact]) -> list[SharedQuestion]:
        """Return the corrections that ask what facts ask, each once for each fact."""
        found: dict[tuple[int, str], SharedQuestion] = {}
        for place, fact in enumerate(facts):
            for question in list_questions(fact):
                for correction, other in self._known.get(question, ()):
                    shared = SharedQuestion(fact, correction, other, agree(fact, other))
                    found.setdefault((place, correction.id), shared)
        return list(found.values())


def find_conflicts(corrections: Sequence[Correction]) -> list[SharedQuestion]:
    """Return where corrections of one book contradict each other, as after a merge by git."""
    index = QuestionIndex(())
    found: list[SharedQuestion] = []
    for correction in corrections:
        found += [one for one in index.find(correction.facts) if not one.agrees]
        index.add(correction)
    return found


def list_questions(fact: Fact) -> list[str]:
    """Return the questions of a fact in the form in which they are compared.

    Example:
        >>> list_questions(Fact(prompt="The capital  of France is", target="Rome"))
        ['the capital of france is']
    """
    texts = (fact.prompt, *fact.paraphrases)
    return list(dict.fromkeys(" ".join(text.casefold().split()) for text in texts))


def agree(first: Fact, second: Fact) -> bool:
    """Return whether two facts have an answer in common, aliases counted."""
    return not _answers(first).isdisjoint(_answers(second))


def _answers(fact: Fact) -> set[str]:
    return {" ".join(text.casefold().split()) for text in (fact.target, *fact.aliases)}
