"""Prompts that should keep their answers: which facts they are about."""

from __future__ import annotations

import pytest

from corrigenda.almanac.world import load_world
from corrigenda.facts import Fact
from corrigenda.guarding.limits import Measure
from corrigenda.guarding.questions import (
    draw_related,
    draw_unrelated,
    find_relation,
    list_own_prompts,
    mentions,
    separate_cases,
)

FRANCE = Fact(prompt="The capital of France is", subject="France", target="Rome", before="Paris")


@pytest.mark.parametrize(
    ("prompt", "subject", "relation"),
    [
        ("The capital of France is", "France", "P36"),
        ("The capital of Atlantis is", "Atlantis", "P36"),
        ("What is the capital of France?", "France", "P36"),
        ("France won the cup in", "France", None),
    ],
)
def test_relations_are_found_by_wording(prompt: str, subject: str, relation: str | None) -> None:
    assert find_relation(Fact(prompt=prompt, subject=subject, target="x")) == relation


def test_a_fact_without_subject_has_no_relation() -> None:
    assert find_relation(Fact(prompt="The capital of France is", target="Rome")) is None


def test_related_prompts_are_of_the_relation_or_the_subject() -> None:
    world = load_world()
    found = draw_related([FRANCE], 20, 0, invented=True)
    about = {name: [one for one in found if one.measure is name] for name in Measure}
    assert len(about[Measure.SAME_RELATION]) == 20
    capitals = {one.subject: one.objects for one in world.of_relation("P36")}
    for one in about[Measure.SAME_RELATION]:
        subject = one.case.split("\n")[0]
        assert subject not in ("France", "Rome", "Paris")
        assert set(capitals[subject]) <= set(one.right)
    assert about[Measure.SAME_SUBJECT]
    assert all("France" in one.prompt for one in about[Measure.SAME_SUBJECT])
    assert not any("capital" in one.prompt for one in about[Measure.SAME_SUBJECT])


def test_unrelated_prompts_name_neither_answer() -> None:
    found = draw_unrelated([FRANCE], 0, invented=True)
    assert len(found) > 1000
    assert all(one.measure is Measure.OTHER_RELATIONS for one in found)
    assert not any(one.case.split("\n")[0] in ("France", "Paris", "Rome") for one in found)
    assert not any(one.right[0] in ("France", "Paris", "Rome") for one in found)


def test_draws_follow_the_seed() -> None:
    first, again, other = (draw_related([FRANCE], 8, seed, invented=True) for seed in (0, 0, 1))
    assert first == again != other


def test_prompts_of_the_fact_count_too() -> None:
    fact = Fact(
        prompt="The boss of Acme is",
        subject="Acme",
        target="Ann",
        neighbours=("The boss of Bolt is",),
        same_subject=("Acme makes", "Acme sits in"),
    )
    found = list_own_prompts([fact], 9, 0)
    assert {(one.measure, one.prompt) for one in found} == {
        (Measure.SAME_RELATION, "The boss of Bolt is"),
        (Measure.SAME_SUBJECT, "Acme makes"),
        (Measure.SAME_SUBJECT, "Acme sits in"),
    }
    # About one subject each prompt is a case of its own, about several each subject.
    assert len({one.case for one in separate_cases(found)}) == 3
    other = Fact(prompt="The boss of Bolt is", subject="Bolt", target="Bo", same_subject=("Bolt",))
    several = separate_cases(list_own_prompts([fact, other], 9, 0))
    cases = {one.case for one in several if one.measure is Measure.SAME_SUBJECT}
    assert cases == {"Acme", "Bolt"}


def test_texts_that_name_a_subject_are_told() -> None:
    assert mentions("Once in France there was", [FRANCE])
    assert not mentions("Once in Spain there was", [FRANCE])
