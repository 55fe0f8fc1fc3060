"""Conflicting edits and edits there and back, drawn from the pocket world."""

from __future__ import annotations

from collections.abc import Iterator

from corrigenda.almanac.world import Triple
from corrigenda.benchmarks.pocketedit.facts import INVERSE, Setting, new_object, prompt_of
from corrigenda.benchmarks.sequences import Conflict, Scored, conflict_case, round_case
from corrigenda.cases import Case

_PARAPHRASES = 5
_LIES_IN = "P17"
_INHERITED = ("P30", "P37")
"""What a city has from its country: continent, official language."""


def coverage(setting: Setting) -> Iterator[Case]:
    """A fact is edited, and edited again."""
    world = setting.world
    usable = [
        one
        for one in world.triples()
        if len(one.objects) == 1 and one.relation not in INVERSE and _objects(setting, one) > 2
    ]
    setting.draw.shuffle(usable)
    for triple in usable:
        first = new_object(setting, triple)
        assert first is not None
        second = new_object(setting, Triple(triple.subject, triple.relation, (*triple[2], first)))
        assert second is not None
        template, prompts = _asked(setting, triple)
        yield _conflict(
            "coverage",
            triple,
            Conflict(
                first=setting.fact(template, triple, first, triple.object),
                second=setting.fact(template, triple, second, first),
                old=Scored(prompts, first),
                new=Scored(prompts, second),
            ),
        )


def reverse(setting: Setting) -> Iterator[Case]:
    """A fact is edited, and then the same relation from the other end."""
    world = setting.world
    usable = [one for one in world.triples() if one.relation in INVERSE]
    setting.draw.shuffle(usable)
    for triple in usable:
        first = new_object(setting, triple)
        if first is None:
            continue
        inverse = INVERSE[triple.relation]
        back = Triple(first, inverse, (triple.subject,))
        known = world.get(first, inverse)
        second = new_object(
            setting, Triple(first, inverse, (triple.subject, *(known.objects if known else ())))
        )
        if second is None:
            continue
        template, prompts = _asked(setting, triple)
        template_back, prompts_back = _asked(setting, back)
        implied = tuple(_moved(setting, triple.relation, prompts, triple.subject, second))
        yield _conflict(
            "reverse",
            triple,
            Conflict(
                first=setting.fact(template, triple, first, triple.object),
                second=setting.fact(template_back, back, second, triple.subject),
                old=Scored(prompts, first),
                new=Scored(prompts_back, second),
                implied=Scored(implied, first),
            ),
        )


def composite(setting: Setting) -> Iterator[Case]:
    """A city lies in a country; what the city has from it is edited for one, then the other."""
    world = setting.world
    usable = [
        (tie, has)
        for tie in world.of_relation(_LIES_IN)
        for relation in _INHERITED
        if (has := world.get(tie.object, relation)) is not None and len(has.objects) == 1
    ]
    setting.draw.shuffle(usable)
    for tie, has in usable:
        first = new_object(setting, has)
        assert first is not None
        of_city = Triple(tie.subject, has.relation, has.objects)
        second = new_object(setting, Triple(tie.subject, has.relation, (*has.objects, first)))
        if second is None or second == tie.subject:
            continue
        template, prompts = _asked(setting, has)
        template_city, prompts_city = _asked(setting, of_city)
        yield _conflict(
            "composite",
            of_city,
            Conflict(
                first=setting.fact(template, has, first, has.object),
                second=setting.fact(template_city, of_city, second, has.object),
                old=Scored(prompts, first),
                new=Scored(prompts_city, second),
                implied=Scored(prompts, second),
                tied=Scored(_asked(setting, tie)[1], tie.object),
            ),
        )


def there_and_back(setting: Setting) -> Iterator[Case]:
    """One of several true objects is replaced and restored."""
    usable = [one for one in setting.world.triples() if len(one.objects) > 1]
    setting.draw.shuffle(usable)
    for triple in usable:
        middle = new_object(setting, triple)
        if middle is None:
            continue
        start = setting.draw.choice(triple.objects)
        template, prompts = _asked(setting, triple)
        yield round_case(
            f"round/{triple.subject}/{triple.relation}",
            setting.fact(template, triple, middle, start),
            [setting.fact(template, triple, start, middle)],
            prompts,
            triple.objects,
            {
                "kind": "round",
                "relation": triple.relation,
                "true_objects": len(triple.objects),
            },
        )


def _conflict(kind: str, triple: Triple, one: Conflict) -> Case:
    return conflict_case(
        f"{kind}/{triple.subject}/{triple.relation}",
        one,
        {"kind": kind, "relation": triple.relation},
    )


def _asked(setting: Setting, triple: Triple) -> tuple[str, tuple[str, ...]]:
    """The cloze that is edited, and every prompt that asks for the object, that one first."""
    clozes = setting.world.relations[triple.relation].clozes
    template, *others = setting.draw.sample(clozes, 1 + _PARAPHRASES)
    return template, tuple(prompt_of(text, triple.subject) for text in (template, *others))


def _moved(
    setting: Setting, relation: str, prompts: tuple[str, ...], subject: str, other: str
) -> Iterator[str]:
    """The same prompts about another subject."""
    for template in setting.world.relations[relation].clozes:
        if prompt_of(template, subject) in prompts:
            yield prompt_of(template, other)


def _objects(setting: Setting, triple: Triple) -> int:
    return len(setting.world.objects(triple.relation))
