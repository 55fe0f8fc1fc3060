"""Conflicting edits, and edits with their reversal, drawn from the pocket world."""

from __future__ import annotations

from collections.abc import Iterator

from corrigenda.almanac.documents import write_prompt
from corrigenda.almanac.world import Triple
from corrigenda.benchmarks.pocketedit.facts import (
    INVERSE,
    CaseSampler,
    draw_new_object,
)
from corrigenda.benchmarks.sequences import (
    EditConflict,
    ScoredAnswer,
    make_conflict_case,
    make_round_case,
)
from corrigenda.cases import Case

_PARAPHRASES = 5
_LIES_IN = "P17"
_INHERITED = ("P30", "P37")
"""What a city has from its country: continent, official language."""


def make_coverage_cases(sampler: CaseSampler) -> Iterator[Case]:
    """Make cases in which a fact is edited twice."""
    world = sampler.world
    usable = [
        one
        for one in world.triples()
        if len(one.objects) == 1
        and one.relation not in INVERSE
        and _count_objects(sampler, one) > 2
    ]
    sampler.draw.shuffle(usable)
    for triple in usable:
        first = draw_new_object(sampler, triple)
        assert first is not None
        second = draw_new_object(
            sampler, Triple(triple.subject, triple.relation, (*triple[2], first))
        )
        assert second is not None
        template, prompts = _draw_prompts(sampler, triple)
        yield _make_case(
            "coverage",
            triple,
            EditConflict(
                first=sampler.make_fact(template, triple, first, triple.object),
                second=sampler.make_fact(template, triple, second, first),
                old=ScoredAnswer(prompts, first),
                new=ScoredAnswer(prompts, second),
            ),
        )


def make_reverse_cases(sampler: CaseSampler) -> Iterator[Case]:
    """Make cases in which a fact is edited, then its inverse relation."""
    world = sampler.world
    usable = [one for one in world.triples() if one.relation in INVERSE]
    sampler.draw.shuffle(usable)
    for triple in usable:
        first = draw_new_object(sampler, triple)
        if first is None:
            continue
        inverse = INVERSE[triple.relation]
        back = Triple(first, inverse, (triple.subject,))
        known = world.get(first, inverse)
        second = draw_new_object(
            sampler, Triple(first, inverse, (triple.subject, *(known.objects if known else ())))
        )
        if second is None:
            continue
        template, prompts = _draw_prompts(sampler, triple)
        template_back, prompts_back = _draw_prompts(sampler, back)
        implied = tuple(_move_prompts(sampler, triple.relation, prompts, triple.subject, second))
        yield _make_case(
            "reverse",
            triple,
            EditConflict(
                first=sampler.make_fact(template, triple, first, triple.object),
                second=sampler.make_fact(template_back, back, second, triple.subject),
                old=ScoredAnswer(prompts, first),
                new=ScoredAnswer(prompts_back, second),
                implied=ScoredAnswer(implied, first),
            ),
        )


def make_composite_cases(sampler: CaseSampler) -> Iterator[Case]:
    """Make cases of an attribute that a city inherits, edited for its country, then the city."""
    world = sampler.world
    usable = [
        (tie, has)
        for tie in world.of_relation(_LIES_IN)
        for relation in _INHERITED
        if (has := world.get(tie.object, relation)) is not None and len(has.objects) == 1
    ]
    sampler.draw.shuffle(usable)
    for tie, has in usable:
        first = draw_new_object(sampler, has)
        assert first is not None
        of_city = Triple(tie.subject, has.relation, has.objects)
        second = draw_new_object(sampler, Triple(tie.subject, has.relation, (*has.objects, first)))
        if second is None or second == tie.subject:
            continue
        template, prompts = _draw_prompts(sampler, has)
        template_city, prompts_city = _draw_prompts(sampler, of_city)
        yield _make_case(
            "composite",
            of_city,
            EditConflict(
                first=sampler.make_fact(template, has, first, has.object),
                second=sampler.make_fact(template_city, of_city, second, has.object),
                old=ScoredAnswer(prompts, first),
                new=ScoredAnswer(prompts_city, second),
                implied=ScoredAnswer(prompts, second),
                tied=ScoredAnswer(_draw_prompts(sampler, tie)[1], tie.object),
            ),
        )


def make_round_cases(sampler: CaseSampler) -> Iterator[Case]:
    """Make cases in which one of several true objects is replaced and restored."""
    usable = [one for one in sampler.world.triples() if len(one.objects) > 1]
    sampler.draw.shuffle(usable)
    for triple in usable:
        middle = draw_new_object(sampler, triple)
        if middle is None:
            continue
        start = sampler.draw.choice(triple.objects)
        template, prompts = _draw_prompts(sampler, triple)
        yield make_round_case(
            f"round/{triple.subject}/{triple.relation}",
            sampler.make_fact(template, triple, middle, start),
            [sampler.make_fact(template, triple, start, middle)],
            prompts,
            triple.objects,
            {
                "kind": "round",
                "relation": triple.relation,
                "true_objects": len(triple.objects),
            },
        )


def _make_case(kind: str, triple: Triple, one: EditConflict) -> Case:
    return make_conflict_case(
        f"{kind}/{triple.subject}/{triple.relation}",
        one,
        {"kind": kind, "relation": triple.relation},
    )


def _draw_prompts(sampler: CaseSampler, triple: Triple) -> tuple[str, tuple[str, ...]]:
    """Draw the cloze that is edited, and all prompts for the object, that one first."""
    clozes = sampler.world.relations[triple.relation].clozes
    template, *others = sampler.draw.sample(clozes, 1 + _PARAPHRASES)
    return template, tuple(write_prompt(text, triple.subject) for text in (template, *others))


def _move_prompts(
    sampler: CaseSampler, relation: str, prompts: tuple[str, ...], subject: str, other: str
) -> Iterator[str]:
    """Return the same prompts about another subject."""
    for template in sampler.world.relations[relation].clozes:
        if write_prompt(template, subject) in prompts:
            yield write_prompt(template, other)


def _count_objects(sampler: CaseSampler, triple: Triple) -> int:
    return len(sampler.world.objects(triple.relation))
