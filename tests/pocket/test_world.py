"""The pocket world: its size, its consistency, and what is held out."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from corrigenda.almanac.documents import Author, assemble, fill_template, write_fact_documents
from corrigenda.almanac.exam import add_related_prompts, load_exam
from corrigenda.almanac.skill_documents import (
    CHAIN_STYLES,
    REFUSAL,
    draw_unknown_subject,
    write_chain,
    write_skill_documents,
)
from corrigenda.almanac.world import NOUNS, TOLD_FROM_BOTH_ENDS, World, load_world
from corrigenda.facts import Fact

COUNTERFACT_RELATIONS = (
    "P103 P27 P19 P20 P30 P36 P37 P39 P101 P106 P108 P127 P136 P138 P140 P159 P176 P178 P264 "
    "P276 P364 P407 P413 P449 P463 P495 P740 P937 P1303 P1412 P17 P131 P279 P641"
).split()


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


def test_the_world_is_as_large_as_promised(world: World) -> None:
    groups = list(world.groups.values())
    assert groups.count("country") >= 190
    assert groups.count("city") >= 400
    assert groups.count("almanac") >= 2500
    assert groups.count("person") >= 600
    assert groups.count("company") >= 100
    assert sum(len(triple.objects) >= 3 for triple in world.triples()) >= 300


def test_every_relation_of_counterfact_has_facts(world: World) -> None:
    assert [relation for relation in COUNTERFACT_RELATIONS if not world.of_relation(relation)] == []


def test_every_relation_has_enough_phrasings_in_all_positions(world: World) -> None:
    for relation in world.relations.values():
        starts = [text for text in relation.statements if text.startswith("{s}")]
        ends = [text for text in relation.statements if text.endswith("{s}")]
        assert len(relation.statements) >= 8
        assert len(relation.questions) >= 4
        assert len(relation.clozes) >= 8
        assert starts
        assert ends
        assert len(starts) + len(ends) < len(relation.statements)


@pytest.mark.parametrize(("group", "fewest"), [("person", 6), ("company", 6), ("country", 4)])
def test_subjects_have_their_attributes(world: World, group: str, fewest: int) -> None:
    assert all(len(world.about(name)) >= fewest for name, g in world.groups.items() if g == group)


def test_marriage_is_its_own_inverse(world: World) -> None:
    for triple in world.of_relation("P26"):
        if world.groups[triple.subject] == "person":
            assert world.get(triple.object, "P26").object == triple.subject


def test_two_worlds_of_one_seed_are_equal_and_of_two_are_not() -> None:
    one, same, other = World(size="small"), World(size="small"), World(size="small", seed=3)
    assert list(one.triples()) == list(same.triples())
    assert list(one.triples()) != list(other.triples())


def test_a_fifth_of_the_subjects_loses_a_quarter_of_the_phrasings(world: World) -> None:
    held_out = [
        triple for triple in world.triples() if world.held_out(triple.subject, triple.relation)
    ]
    assert 0.17 < len({t.subject for t in held_out}) / len(world.subjects) < 0.23
    triple = held_out[0]
    count = len(world.relations[triple.relation].phrasings)
    assert len(world.held_out(triple.subject, triple.relation)) == count // 4


def test_training_never_shows_what_is_held_out(world: World) -> None:
    forbidden = set()
    for triple in world.triples():
        if triple.relation in TOLD_FROM_BOTH_ENDS:
            continue
        phrasings = world.relations[triple.relation].phrasings
        for index in world.held_out(triple.subject, triple.relation):
            for value in triple.objects:
                forbidden.add(assemble(fill_template(phrasings[index], triple.subject, value)).text)
    for document in islice(write_fact_documents(world, random.Random(5)), 3000):
        assert not any(sentence in forbidden for sentence in document.text.split(". "))


def test_skills_leave_their_subjects_to_the_exam(world: World) -> None:
    kept = {
        name
        for name in world.subjects
        if world.skill_held_out(name) and world.groups[name] == "person"
    }
    first_lines = []
    for document in islice(write_skill_documents(world, random.Random(5)), 1500):
        first_lines += [line for line in document.text.split("\n") if line.startswith("Question: ")]
    assert len(first_lines) > 300
    asked = [line for line in first_lines if any(f"of {name}" in line for name in kept)]
    assert asked == []


def test_marks_cover_exactly_the_subject_and_the_answer(world: World) -> None:
    triple = world.get("France", "P36")
    author = Author(world, random.Random(0))
    document = assemble(author.write_statement(triple, name="France"))
    assert [document.text[start:end] for start, end in document.mentions] == ["France"]
    assert [document.text[start:end] for start, end in document.answers] in (["Paris"], [])


@pytest.mark.parametrize("style", CHAIN_STYLES[::2])
def test_chains_end_in_their_last_object(world: World, style: str) -> None:
    walk = next(iter(world.chains("Vienna", 2)))
    text = assemble(write_chain(Author(world, random.Random(1)), walk, style)).text
    assert all(triple.relation in NOUNS for triple in walk)
    assert walk[-1].object in text.splitlines()[-1]


def test_nobody_is_in_the_world(world: World) -> None:
    draw = random.Random(2)
    assert all(draw_unknown_subject(world, draw)[0] not in world.groups for _ in range(200))


def test_the_exam_asks_what_the_world_knows(world: World) -> None:
    exam = load_exam(world, size=40, edits=20, recall=200)
    assert len(exam.edits) == 20
    assert all(item.answers == (REFUSAL,) for item in exam.refusal)
    for item in exam.edits:
        assert item.fact.target != item.fact.before
        assert item.fact.prompt[item.fact.subject_start :].startswith(item.fact.subject)
        assert len(item.fact.paraphrases) == 5
    assert all(
        item.prompt == item.prompt.rstrip() for item in (*exam.recall, *exam.context_override)
    )


def test_related_prompts_are_about_the_same_relation() -> None:
    fact = Fact(prompt="The capital of France is", target="Lyon", subject="France")
    found = add_related_prompts(fact)
    assert len(found.paraphrases) == len(found.neighbours) == len(found.same_subject) == 3
    assert all("France" in text for text in (*found.paraphrases, *found.same_subject))
    assert not any("France" in text for text in found.neighbours)
    assert not any("capital" in text for text in found.same_subject)
    other = Fact(prompt="France tastes of", target="salt", subject="France")
    assert add_related_prompts(other) == other
