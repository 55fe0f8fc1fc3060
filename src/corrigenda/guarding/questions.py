"""Prompts that should keep their answers after an edit, drawn from the almanac and from its facts.

Imports no torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

from corrigenda.almanac.documents import write_prompt
from corrigenda.almanac.known_facts import are_entangled, list_askable, list_spellings
from corrigenda.almanac.world import Triple, load_world
from corrigenda.facts import Fact
from corrigenda.guarding.limits import Measure

_BLANK = "{s}"
_OF = "\n"
# Other facts of a subject are few, so each is asked in several wordings.
_WORDINGS = 3


class KeptPrompt(NamedTuple):
    """A prompt that should keep its answer.

    Attributes:
        measure: What a lost answer counts for.
        case: What it is about: a subject, and which of its facts.
        prompt: The text.
        right: Right answers; none where only the unedited model's own is to stay.
    """

    measure: Measure
    case: str
    prompt: str
    right: tuple[str, ...] = ()


def find_relation(fact: Fact) -> str | None:
    """Return the relation of the almanac that a fact is worded as; None for other wordings.

    The subject need not be in the almanac.

    Example:
        >>> find_relation(Fact(prompt="The capital of Atlantis is", target="X", subject="Atlantis"))
        'P36'
    """
    if fact.subject is None:
        return None
    start, end = fact.span
    return _list_templates().get(f"{fact.prompt[:start]}{_BLANK}{fact.prompt[end:]}")


@cache
def _list_templates() -> dict[str, str]:
    """Return the relation of every phrasing, written up to the answer with a blank subject."""
    return {
        write_prompt(text, _BLANK): relation.id
        for relation in load_world().relations.values()
        for text in relation.phrasings
        if text.endswith((" {o}", "?"))
    }


def list_own_prompts(facts: Sequence[Fact], count: int, seed: int) -> list[KeptPrompt]:
    """Return the prompts that the facts name themselves: neighbours and other facts."""
    found: list[KeptPrompt] = []
    for fact in facts:
        about = fact.subject or fact.prompt
        found += [KeptPrompt(Measure.SAME_RELATION, text, text) for text in fact.neighbours]
        found += [
            KeptPrompt(Measure.SAME_SUBJECT, f"{about}{_OF}{text}", text)
            for text in fact.same_subject
        ]
    return _draw(found, count, seed)


def draw_related(
    facts: Sequence[Fact], count: int, seed: int, *, invented: bool
) -> list[KeptPrompt]:
    """Draw prompts about facts of the edited relations, and about other facts of their subjects.

    Args:
        facts: The edited facts.
        count: Most of either kind.
        seed: Decides the draw.
        invented: Whether facts about invented people and companies are among them.
    """
    world = load_world()
    edited = {(fact.subject or "", relation) for fact in facts if (relation := find_relation(fact))}
    relations = {relation for _, relation in edited}
    subjects = _list_subjects(facts)
    same = [
        one
        for one in list_askable(invented=invented, seed=seed)
        if one.relation in relations and not _is_touched(one, subjects)
    ]
    own = [
        other
        for subject in sorted({fact.subject for fact in facts if fact.subject})
        for other in world.about(subject)
        if all(
            other.relation != relation and not are_entangled(other.relation, relation)
            for name, relation in edited
            if name == subject
        )
        # Without a relation of the edit, none of the facts is certainly another one.
        and any(name == subject for name, _ in edited)
    ]
    asked = [
        *_ask(Measure.SAME_RELATION, same, seed),
        *_ask(Measure.SAME_SUBJECT, own, seed, times=_WORDINGS),
    ]
    return _draw(asked, count, seed)


def separate_cases(prompts: Sequence[KeptPrompt]) -> list[KeptPrompt]:
    """Return prompts, those about several subjects as one case each subject.

    Prompts about a single subject are resampled by fact.
    """
    subjects = {
        measure: len({one.case.split(_OF)[0] for one in prompts if one.measure is measure})
        for measure in Measure
    }
    return [
        one._replace(case=one.case.split(_OF)[0]) if subjects[one.measure] > 1 else one
        for one in prompts
    ]


def draw_unrelated(facts: Sequence[Fact], seed: int, *, invented: bool) -> list[KeptPrompt]:
    """Return prompts about facts of other relations and other subjects, in an order by seed."""
    relations = {find_relation(fact) for fact in facts}
    subjects = _list_subjects(facts)
    others = (
        one
        for one in list_askable(invented=invented, seed=seed)
        if one.relation not in relations and not _is_touched(one, subjects)
    )
    return _ask(Measure.OTHER_RELATIONS, others, seed)


def mentions(text: str, facts: Iterable[Fact]) -> bool:
    """Return whether a text names the subject of one of the facts."""
    return any(fact.subject and fact.subject in text for fact in facts)


def _list_subjects(facts: Iterable[Fact]) -> frozenset[str]:
    """Return what the facts are about, before and after."""
    names = (name for fact in facts for name in (fact.subject, fact.target, fact.before))
    return frozenset(name for name in names if name)


def _is_touched(triple: Triple, subjects: frozenset[str]) -> bool:
    return triple.subject in subjects or not subjects.isdisjoint(triple.objects[:1])


def _ask(
    measure: Measure, triples: Iterable[Triple], seed: int, *, times: int = 1
) -> list[KeptPrompt]:
    """Word each fact by one of its statements, or by several."""
    relations = load_world().relations
    found: list[KeptPrompt] = []
    for one in triples:
        clozes = relations[one.relation].clozes
        draw = random.Random(f"guard/{seed}/{one.subject}/{one.relation}")
        for text in draw.sample(clozes, min(times, len(clozes))):
            prompt = write_prompt(text, one.subject)
            case = f"{one.subject}{_OF}{one.relation}"
            found.append(KeptPrompt(measure, case, prompt, list_spellings(one)))
    return found


def _draw(prompts: Sequence[KeptPrompt], count: int, seed: int) -> list[KeptPrompt]:
    """Draw so many of each measure."""
    found: list[KeptPrompt] = []
    for measure in dict.fromkeys(one.measure for one in prompts):
        own = [one for one in prompts if one.measure is measure]
        found += random.Random(f"guard/{seed}/{measure}").sample(own, min(count, len(own)))
    return found
