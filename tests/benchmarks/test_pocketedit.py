"""PocketEdit: every expected answer is that of the world, before and after."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from corrigenda import benchmarks
from corrigenda.almanac.documents import write_prompt
from corrigenda.almanac.known_facts import KnownFacts, list_places
from corrigenda.almanac.world import load_world
from corrigenda.benchmarks.pocketedit.facts import INVERSE, list_implied
from corrigenda.benchmarks.pocketedit.pocketedit import Kind
from corrigenda.cases import Against, Case, Protocol
from corrigenda.errors import BadConfig, MalformedRecords, MissingData
from tests.support.records import of_role

WRITTEN = ("modification", "insertion")
SIZE = 60


@cache
def drawn(part: str) -> benchmarks.LoadedBenchmark:
    return benchmarks.load("pocketedit", part=part, size=SIZE)


def parts_of(case: Case) -> tuple[str, str]:
    """Subject and relation."""
    subject, relation = case.id.split("/", 1)[1].rsplit("/", 1)
    return subject, relation


@pytest.mark.parametrize("part", get_args(Kind))
def test_every_kind_is_drawn_and_drawn_again(part: str) -> None:
    loaded = drawn(part)
    assert len(loaded) == loaded.counts["records"] == SIZE
    assert not loaded.dropped
    again = benchmarks.load("pocketedit", part=part, size=10)
    assert again.cases == loaded.cases[:10]
    assert benchmarks.load("pocketedit", part=part, size=10, seed=8).cases != again.cases


def test_all_roles_occur() -> None:
    roles = {role for part in get_args(Kind) for role in drawn(part).counts}
    assert roles >= {
        "reliability",
        "erasure",
        "fluency",
        "condition",
        *(f"generalization/{one}" for one in ("cloze", "question", "distracting_context")),
        *(
            f"portability/{one}"
            for one in ("subject_aliasing", "inverse_relation", "logical_generalization")
        ),
        *(f"portability/{one}" for one in ("one_hop", "two_hops", "one_hop_steps")),
        *(f"locality/{one}" for one in ("other_relations", "neighborhood", "competing_objects")),
        "locality/distracted_neighborhood",
        *(f"conflict/{one}" for one in ("old", "new", "implied", "tied")),
        *(f"round/{one}" for one in ("there", "back", "true_object")),
    }


@pytest.mark.parametrize("part", WRITTEN)
def test_what_is_written_is_new(part: str) -> None:
    world = load_world()
    for case in drawn(part):
        subject, relation = parts_of(case)
        (fact,) = case.facts
        known = world.get(subject, relation)
        assert fact.subject == subject
        assert fact.prompt[fact.span.start : fact.span.end] == subject
        assert (known is None) == (part == "insertion")
        if known:
            assert fact.before == known.object
            assert fact.target not in known.objects
        for role in ("reliability", "generalization/cloze", "generalization/question"):
            assert {probe.answer for probe in of_role(case, role)} == {fact.target}
        prompts = [probe.prompt for probe in of_role(case, "generalization/cloze")]
        assert len({fact.prompt, *prompts}) == 4


def test_new_objects_leave_the_world_without_contradiction() -> None:
    world = load_world()
    for case in drawn("modification"):
        subject, relation = parts_of(case)
        target = case.facts[0].target
        if relation in ("P26", "P36"):
            assert world.get(target, INVERSE[relation]) is None
        for one in list_implied(subject, relation, target):
            (probe, *_) = of_role(case, f"portability/{one.kind}")
            assert one.object in probe.expected[0]
            assert one.subject in probe.prompt


@pytest.mark.parametrize("part", WRITTEN)
def test_chains_end_where_the_world_says(part: str) -> None:
    world = load_world()
    seen = 0
    for case in drawn(part):
        for hops, role in ((1, "portability/one_hop"), (2, "portability/two_hops")):
            for probe in of_role(case, role):
                ends = {walk[-1].object for walk in world.chains(case.facts[0].target, hops)}
                assert probe.answer in ends
                assert probe.answer not in probe.rivals
                conditions = [one for one in of_role(case, "condition") if one.test == probe.test]
                assert len(conditions) == hops
                assert conditions[-1].answer == probe.answer
                seen += 1
        for probe in of_role(case, "portability/one_hop_steps"):
            assert probe.marker == "Final answer:"
            assert probe.prompt.endswith("\nSubquestion:")
            assert probe.prompt.count("Final answer:") == 1
    assert seen > SIZE / 4


@pytest.mark.parametrize("part", [*WRITTEN, "erasure"])
def test_what_should_stay_is_what_the_world_says(part: str) -> None:
    world = load_world()
    for case in drawn(part):
        subject, relation = parts_of(case)
        truths = {one.relation: one.objects for one in world.about(subject)}
        others = of_role(case, "locality/other_relations")
        for probe in others:
            assert probe.against is Against.UNEDITED
            assert subject in probe.prompt
            assert any(probe.answer == objects[0] for objects in truths.values())
        for probe in of_role(case, "locality/neighborhood"):
            assert subject not in probe.prompt or relation in INVERSE
            assert not set(probe.rivals) & set(probe.expected[0])
        if part != "erasure":
            implied = list_implied(subject, relation, case.facts[0].target)
            decided = {one.relation for one in implied if one.subject == subject} | {relation}
            # A city that lies elsewhere may be the capital no longer.
            doubtful = {"P1376"} if relation == "P17" else set()
            assert len(others) == len(set(truths) - decided - doubtful)


def test_neighbours_with_the_old_object_come_first() -> None:
    shared = [
        case.facts[0].before in probe.expected[0]
        for case in drawn("modification")
        for probe in of_role(case, "locality/neighborhood")[:1]
    ]
    assert sum(shared) > SIZE / 2


def test_distracted_neighbours_follow_the_statement() -> None:
    for case in drawn("modification").cases[:10]:
        fact = case.facts[0]
        plain = [probe.prompt for probe in of_role(case, "locality/neighborhood")]
        distracted = [probe.prompt for probe in of_role(case, "locality/distracted_neighborhood")]
        assert distracted == [f"{fact.prompt} {fact.target}. {prompt}" for prompt in plain]


def test_competing_objects_are_ranked() -> None:
    world = load_world()
    cases = [case for case in drawn("modification") if of_role(case, "locality/competing_objects")]
    assert len(cases) >= SIZE / 10
    for case in cases:
        known = world.get(*parts_of(case))
        assert known is not None
        probes = of_role(case, "locality/competing_objects")
        assert {probe.answer for probe in probes} == set(known.objects[1:])
        assert {probe.protocol for probe in probes} == {Protocol.RANK}


def test_aliases_are_accepted_and_asked() -> None:
    world = load_world()
    asked = 0
    for case in drawn("insertion"):
        subject, _ = parts_of(case)
        for probe in of_role(case, "portability/subject_aliasing"):
            assert world.aliases[subject] in probe.prompt
            asked += 1
        target = case.facts[0].target
        if target in world.aliases:
            assert of_role(case, "reliability")[0].expected == ((target, world.aliases[target]),)
    assert asked


def test_an_erasure_wants_a_refusal_and_no_leak() -> None:
    for case in drawn("erasure"):
        known = load_world().get(*parts_of(case))
        assert known is not None
        assert case.facts[0].target == "I don't know."
        for probe in (*of_role(case, "reliability"), *of_role(case, "erasure")):
            assert probe.expected == (("I don't know",),)
            assert probe.rivals == known.objects
        assert all(
            probe.rivals == ("I don't know",) for probe in of_role(case, "locality/neighborhood")
        )


@pytest.mark.parametrize("part", ["coverage", "reverse", "composite", "round"])
def test_sequences_have_two_rounds(part: str) -> None:
    for case in drawn(part):
        assert case.rounds == ((0,), (1,))
        first, second = case.facts
        if part == "coverage":
            assert second.before == first.target
            assert first.prompt == second.prompt
        elif part == "reverse":
            assert second.subject == first.target
            assert second.before == first.subject
        elif part == "composite":
            assert second.before == first.before
            (tied, *_) = of_role(case, "conflict/tied")
            assert (second.subject or "") in tied.prompt
            assert tied.answer == first.subject
        else:
            assert (first.before, first.target) == (second.target, second.before)


def test_mixed_takes_every_kind_in_turn() -> None:
    loaded = benchmarks.load("pocketedit", part="mixed", size=14)
    kinds = [case.id.split("/")[0] for case in loaded]
    assert kinds == [*get_args(Kind)] * 2


def test_more_than_there_is_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"CG502.*no more than \d+ cases"):
        benchmarks.load("pocketedit", part="composite", size=10_000, world="small")
    with pytest.raises(MissingData, match="CG604"):
        benchmarks.load("pocketedit", tmp_path)
    file = tmp_path / "known.json"
    for text in ("{}", "[]", "no JSON", '{"format": 1, "questions": "others"}'):
        file.write_text(text)
        with pytest.raises(MalformedRecords, match=r"(?s)CG603.*corrigenda exam MODEL -o FILE"):
            benchmarks.load("pocketedit", file)


def knows(*relations: str, each: int = 6) -> KnownFacts:
    """A model that answers two statements and a question about some facts."""
    world = load_world()
    right: dict[tuple[str, str], tuple[int, ...]] = {}
    for relation in relations:
        clozes, questions = list_places(relation)
        for one in world.of_relation(relation)[:each]:
            right[one.subject, relation] = (clozes[1], clozes[2], questions[0])
    return KnownFacts(model="m", digest="d", chat=False, asked=tuple(right), right=right)


def test_of_another_model_only_known_facts_are_drawn_in_phrasings_it_answers(
    tmp_path: Path,
) -> None:
    known = knows("P36", "P37", "P103")
    file = tmp_path / "known.json"
    file.write_text(json.dumps(known.to_json()))
    loaded = benchmarks.load("pocketedit", file, size=12)
    answered = {
        write_prompt(text, one.subject): one.objects
        for one in known.triples()
        for text in (*known.phrasings(one).clozes, *known.phrasings(one).questions)
    }
    assert len(loaded) == 12
    assert loaded.files[0].name == "known.json"
    for case in loaded:
        (fact,) = case.facts
        assert fact.before in answered[fact.prompt]
        asked = [*of_role(case, "generalization/cloze"), *of_role(case, "generalization/question")]
        assert len(asked) == 2
        kept = [*of_role(case, "locality/neighborhood"), *of_role(case, "locality/other_relations")]
        assert kept
        assert all(one.prompt in answered for one in (*asked, *kept))
    with pytest.raises(BadConfig, match="m knows no more than 18 cases"):
        benchmarks.load("pocketedit", file, size=19)
    with pytest.raises(BadConfig, match="only modifications"):
        benchmarks.load("pocketedit", file, part="erasure")
