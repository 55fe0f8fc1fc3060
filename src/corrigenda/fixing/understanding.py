"""What the lines of a corrections file mean for a model: subjects, what holds, what contradicts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from corrigenda.almanac.documents import write_prompt
from corrigenda.almanac.known_facts import list_spellings
from corrigenda.almanac.world import load_world
from corrigenda.engines.pocket_world import subject_of
from corrigenda.errors import AmbiguousSubject
from corrigenda.facts import Fact
from corrigenda.fixing.lines import FactLine
from corrigenda.guarding.questions import find_relation
from corrigenda.knowledge.edit_trial import Unedited
from corrigenda.lm.decoding import answer
from corrigenda.lm.model import LanguageModel
from corrigenda.prompt_answers import check_targets

PROPOSED = 3
"""Paraphrases, neighbours and other facts that are proposed for a fact that names none."""

_FEWEST_KNOWN = 2


class Fate(StrEnum):
    """What comes of a line."""

    CORRECTED = "corrected"
    """The edited model gives the answer."""
    HELD = "already true"
    """The model gave the answer before."""
    DUPLICATE = "duplicate"
    """An earlier line says the same."""
    CONTRADICTION = "contradiction"
    """An earlier line, or an earlier correction, gives another answer to the question."""
    UNREADABLE = "unreadable"
    """The line cannot be read, or its subject is not certain."""
    FAILED = "failed"
    """The edited model does not give the answer, after all retries."""
    REFUSED = "refused"
    """The guard refused the edit."""


@dataclass(frozen=True)
class UnderstoodLine:
    """A line, and what is known of it before anything is edited.

    Attributes:
        number: Number of the line.
        fact: The fact, its subject and related prompts filled in; None if it is unreadable.
        fate: Its fate where that is certain; None for a fact that is to be corrected.
        reason: Why, in words.
        before: Short answer of the unedited model.
        guessed: Whether the subject was found, not given.
    """

    number: int
    fact: Fact | None
    fate: Fate | None = None
    reason: str = ""
    before: str = ""
    guessed: bool = False


def understand(
    lm: LanguageModel, lines: Sequence[FactLine], earlier: Sequence[Fact] = ()
) -> list[UnderstoodLine]:
    """Find subjects, duplicates, contradictions, and what the model says today.

    Of lines that contradict one another the first is taken: two facts contradict where they are
    about the same subject and relation, or ask the same prompt, and have different answers.

    Args:
        lm: The model, with the earlier corrections active.
        lines: The lines of the file.
        earlier: Corrections made before, such as those of a book.
    """
    found: list[UnderstoodLine] = []
    seen: dict[str, tuple[str, Fact]] = {}
    for fact in earlier:
        seen[_key(fact)] = ("an earlier correction", fact)
    for line in lines:
        one = _find_subject(lm, line)
        if one.fact is not None and one.fate is None:
            key = _key(one.fact)
            place, first = seen.setdefault(key, (f"line {line.number}", one.fact))
            if first is not one.fact and not _agree(first, one.fact):
                reason = f'{place} says "{first.target}"'
                one = replace(one, fate=Fate.CONTRADICTION, reason=reason)
            elif first is not one.fact and place.startswith("line"):
                one = replace(one, fate=Fate.DUPLICATE, reason=f"the same as {place}")
        found.append(one)
    return _propose_and_ask(lm, found)


def _find_subject(lm: LanguageModel, line: FactLine) -> UnderstoodLine:
    fact = line.fact
    if fact is None:
        return UnderstoodLine(line.number, None, Fate.UNREADABLE, line.problem)
    if fact.subject is not None:
        return UnderstoodLine(line.number, fact)
    try:
        subject = subject_of(lm, fact.prompt, where=fact.name)
    except AmbiguousSubject as error:
        reason = f"{error.code} {error.message} Give a subject."
        return UnderstoodLine(line.number, fact, Fate.UNREADABLE, reason)
    return UnderstoodLine(line.number, replace(fact, subject=subject), guessed=True)


def _propose_and_ask(lm: LanguageModel, found: list[UnderstoodLine]) -> list[UnderstoodLine]:
    asked = [place for place, one in enumerate(found) if one.fact is not None]
    facts = [fact for place in asked if (fact := found[place].fact) is not None]
    held = check_targets(lm, facts)
    said = answer(lm, [fact.prompt for fact in facts])
    open_places = [
        place
        for place, true in zip(asked, held, strict=True)
        if not true and found[place].fate is None
    ]
    for place, true, text in zip(asked, held, said, strict=True):
        one = replace(found[place], before=text)
        if true and one.fate is None:
            one = replace(one, fate=Fate.HELD, reason="the model says so today")
        found[place] = one
    wanted = [fact for place in open_places if (fact := found[place].fact) is not None]
    for place, fact in zip(open_places, propose_prompts(lm, wanted), strict=True):
        found[place] = replace(found[place], fact=fact)
    return found


def _key(fact: Fact) -> str:
    """Return what a fact is the answer to."""
    relation = find_relation(fact)
    if relation is not None:
        return f"{fact.subject}/{relation}".casefold()
    return " ".join(fact.prompt.casefold().split())


def _agree(first: Fact, second: Fact) -> bool:
    answers = [
        {text.casefold() for text in (fact.target, *fact.aliases)} for fact in (first, second)
    ]
    return not answers[0].isdisjoint(answers[1])


def propose_prompts(lm: LanguageModel, facts: Sequence[Fact]) -> list[Fact]:
    """Return facts with paraphrases, neighbours and other facts of the subject, where one has none.

    They are worded as in the almanac, for facts of its relations. Paraphrases are wordings that the
    model understands: those in which it gives the answer that was right before, where that is
    known.
    """
    wordings = {fact.prompt: _list_wordings(fact) for fact in facts}
    asked = {text: _list_right(fact) for fact in facts for text in wordings[fact.prompt] if text}
    known = Unedited(lm, asked).known
    found: list[Fact] = []
    for fact in facts:
        understood = [text for text in wordings[fact.prompt] if text in known]
        texts = understood if len(understood) >= _FEWEST_KNOWN else wordings[fact.prompt]
        found.append(_propose(fact, texts))
    return found


def _list_wordings(fact: Fact) -> list[str]:
    """Return other wordings of a fact in the almanac, in a drawn order."""
    relation = find_relation(fact)
    if relation is None or fact.subject is None:
        return []
    one = load_world().relations[relation]
    texts = [write_prompt(text, fact.subject) for text in (*one.clozes, *one.questions)]
    own = [text for text in texts if text != fact.prompt]
    random.Random(f"fix/{fact.prompt}").shuffle(own)
    return own


def _list_right(fact: Fact) -> tuple[str, ...]:
    relation = find_relation(fact)
    triple = load_world().get(fact.subject or "", relation or "")
    return list_spellings(triple) if triple else tuple(filter(None, (fact.before,)))


def _propose(fact: Fact, wordings: Sequence[str]) -> Fact:
    relation = find_relation(fact)
    if relation is None or fact.subject is None:
        return fact
    world, draw = load_world(), random.Random(f"fix/{fact.prompt}/others")
    clozes = world.relations[relation].clozes
    others = [
        one.subject
        for one in world.of_relation(relation)
        if one.subject not in (fact.subject, fact.target)
    ]
    names = draw.sample(others, min(PROPOSED, len(others)))
    same = [
        write_prompt(world.relations[one.relation].clozes[0], one.subject)
        for one in world.about(fact.subject)
        if one.relation != relation and world.relations[one.relation].clozes
    ]
    return replace(
        fact,
        paraphrases=fact.paraphrases or tuple(wordings[:PROPOSED]),
        neighbours=fact.neighbours
        or tuple(write_prompt(draw.choice(clozes), name) for name in names),
        same_subject=fact.same_subject or tuple(same[:PROPOSED]),
    )
