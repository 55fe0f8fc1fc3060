"""What is known of the facts a pocket model was trained on: subjects and related prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.model_names import SHIPPED
from corrigenda.subjects import guess_subject


def subject_of(lm: LanguageModel, prompt: str, *, where: str = "") -> str:
    """Return the subject of a prompt where only one is possible.

    For a pocket model the names of its world decide first; see `corrigenda.subjects.guess_subject`.

    Raises:
        AmbiguousSubject (CG104): no candidate, or several.
    """
    known: tuple[str, ...] = ()
    if lm.name in SHIPPED:
        from corrigenda.almanac.world import load_world

        known = load_world().subjects
    return guess_subject(prompt, known=known, where=where)


def complete_subjects(lm: LanguageModel, facts: Sequence[Fact]) -> tuple[list[Fact], list[str]]:
    """Return facts with the subjects that were not given, and a notice for each that was found.

    Raises:
        AmbiguousSubject (CG104): see `subject_of`.
    """
    complete, notices = list(facts), []
    for index, fact in enumerate(facts):
        if fact.subject is None:
            subject = subject_of(lm, fact.prompt, where=fact.name)
            notices.append(f'subject of {fact.label}: "{subject}" (found)')
            complete[index] = replace(fact, subject=subject)
    return complete, notices


def add_related_prompts(lm: LanguageModel, fact: Fact) -> Fact:
    """Return a fact with the related prompts of a pocket model's world, if it has none.

    These are paraphrases, neighbours and other facts of the subject. For other models, and where
    the fact names any of them, it comes back as it is.
    """
    if lm.name not in SHIPPED or fact.paraphrases or fact.neighbours or fact.same_subject:
        return fact
    from corrigenda.almanac import exam

    return exam.add_related_prompts(fact)
