"""KnowEdit's six data sets, and Sanitation in its original form."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from corrigenda import benchmarks
from corrigenda.cases import Against, Protocol
from corrigenda.errors import MalformedRecords, MissingData
from tests.support.records import (
    CONVSENT,
    COUNTERFACT_WIKI,
    RECENT,
    SANITATION,
    TRIVIA_TEST,
    TRIVIA_TRAIN,
    WIKIBIO,
    ZSRE_WIKI,
    changed,
    of_role,
    only,
    roles,
    write,
)


def test_recent_answers_are_objects_with_aliases(tmp_path: Path) -> None:
    loaded = benchmarks.load("knowedit-recent", write(tmp_path / "r.json", [RECENT]))
    case = only(loaded)
    assert case.meta["edit"] == "insertion"
    assert case.facts[0].before is None
    assert roles(case) == {
        "reliability": 1,
        "portability/reasoning": 1,
        "locality/relation_specificity": 1,
        "locality/forgetfulness": 1,
        "fluency": 1,
    }
    (specific,) = of_role(case, "locality/relation_specificity")
    assert specific.expected == (("printer", "typographer", "poet"),)
    assert specific.protocol is Protocol.TEACHER_FORCED
    assert specific.against is Against.UNEDITED
    assert loaded.skipped == {
        "portability/subject_aliasing: no answer": 1,
        "locality/forgetfulness: the only answer is the one excluded": 1,
    }


def test_what_is_not_x_is_never_x(tmp_path: Path) -> None:
    case = only(benchmarks.load("knowedit-recent", write(tmp_path / "r.json", [RECENT])))
    (forgotten,) = of_role(case, "locality/forgetfulness")
    assert forgotten.expected == (("Sweden",),)
    assert forgotten.answer == "Sweden"


def test_counterfact_has_an_old_answer(tmp_path: Path) -> None:
    further = {"target_new": "peru", "portability": RECENT["portability"]}
    records = [COUNTERFACT_WIKI, changed(COUNTERFACT_WIKI, **further)]
    loaded = benchmarks.load("knowedit-counterfact", write(tmp_path / "c.json", records))
    first, second = loaded
    assert first.facts[0].before == "Peru"
    assert of_role(first, "reliability")[0].rivals == ("Peru",)
    assert of_role(second, "reliability")[0].rivals == ()
    assert loaded.flagged == {
        "the target is among the old answers": 1,
        "another record has the same prompt": 2,
    }


def test_zsre_asks_the_rephrasing_apart(tmp_path: Path) -> None:
    case = only(benchmarks.load("knowedit-zsre", write(tmp_path / "z.json", [ZSRE_WIKI])))
    assert roles(case) == {
        "reliability": 1,
        "generalization": 1,
        "portability/logical_generalization": 1,
        "locality/relation_specificity": 1,
        "fluency": 1,
    }
    assert of_role(case, "generalization")[0].answer == "1931"
    assert of_role(case, "portability/logical_generalization")[0].answer == "yes"
    assert of_role(case, "fluency")[0].expected == ()


def test_wikibio_writes_a_sentence(tmp_path: Path) -> None:
    case = only(benchmarks.load("knowedit-wikibio", write(tmp_path / "w.json", [WIKIBIO])))
    (fact,) = case.facts
    assert (fact.subject, fact.prompt) == ("ada quill", WIKIBIO["text"])
    assert roles(case) == {"reliability": 1, "locality/relation_specificity": 1, "fluency": 1}


def test_convsent_compares_with_the_next_topic(tmp_path: Path) -> None:
    path = write(tmp_path / "blender_test.json", CONVSENT)
    tea, chess = benchmarks.load("knowedit-convsent", path)
    assert benchmarks.load("knowedit-convsent", path).cases == (tea, chess)
    fact = tea.facts[0]
    assert fact.prompt[fact.span.start : fact.span.end] == "Tea"
    assert fact.prompt.startswith(f"Give a {tea.meta['sentiment']} answer. ")
    wanted = {probe.answer for probe in of_role(tea, "sentiment/wanted")}
    opposite = {probe.answer for probe in of_role(tea, "sentiment/opposite")}
    assert fact.target in wanted
    sides = {frozenset(CONVSENT[0][key]) for key in ("pos", "neg")}  # type: ignore[arg-type]
    assert {frozenset(wanted), frozenset(opposite)} == sides
    other = of_role(tea, "locality/other_topic")
    assert {probe.answer for probe in other} == {"A fine game.", "So slow.", "Never again."}
    assert all(probe.divergence and "Chess" in probe.prompt for probe in other)
    assert {probe.prompt.count("Tea") for probe in of_role(chess, "locality/other_topic")} == {1}
    (limited, _) = benchmarks.load("knowedit-convsent", path, answers=1)
    assert roles(limited)["locality/other_topic"] == 2


def test_convsent_draws_other_questions_with_another_seed(tmp_path: Path) -> None:
    records = [changed(CONVSENT[index % 2], ent=f"Topic {index}") for index in range(40)]
    path = write(tmp_path / "c.json", records)
    one, two = (benchmarks.load("knowedit-convsent", path, seed=seed) for seed in (0, 1))
    assert one.cases != two.cases
    sentiments = collections.Counter(case.meta["sentiment"] for case in one)
    assert min(sentiments.values()) > 10


def test_sanitation_edits_all_questions_of_an_answer(tmp_path: Path) -> None:
    write(tmp_path / "trivia_qa_train.json", TRIVIA_TRAIN)
    write(tmp_path / "trivia_qa_test.json", TRIVIA_TEST)
    loaded = benchmarks.load("knowedit-sanitation", tmp_path)
    cheese, caesar = loaded
    assert loaded.counts["records"] == 4
    assert loaded.dropped == {"the question has no answer": 1}
    assert (cheese.id, len(cheese.facts), caesar.id) == ("cheese", 2, "julius caesar")
    assert cheese.facts[0].prompt == "Question:What is made of curd?\nAnswer:"
    assert cheese.facts[0].target == "I don't know."
    assert cheese.facts[0].subject == "What is made of curd?"
    (unseen,) = of_role(cheese, "erasure")
    assert unseen.expected == (("I don't know",),)
    assert unseen.rivals == ("Cheese",)
    assert of_role(caesar, "erasure") == []
    (kept,) = of_role(cheese, "locality/retained")
    assert (kept.expected, kept.rivals) == ((("a bird", "bird"),), ("I don't know",))
    assert kept.against is Against.UNEDITED
    bare = benchmarks.load("knowedit-sanitation", tmp_path, question_is_subject=False)
    assert next(iter(bare)).facts[0].subject is None


def test_sanitation_needs_both_files_and_their_lists(tmp_path: Path) -> None:
    train = write(tmp_path / "trivia_qa_train.json", TRIVIA_TRAIN)
    with pytest.raises(MissingData, match=r"trivia_qa_test\.json"):
        benchmarks.load("knowedit-sanitation", train)
    write(tmp_path / "trivia_qa_test.json", {"success": []})
    with pytest.raises(MalformedRecords, match="success and locality"):
        benchmarks.load("knowedit-sanitation", train)


def test_original_sanitation_groups_by_split_and_answer(tmp_path: Path) -> None:
    for name, records in SANITATION.items():
        write(tmp_path / name, records)
    loaded = benchmarks.load("sanitation", tmp_path)
    assert [case.id for case in loaded] == ["1/cheese", "2/ada"]
    assert loaded.counts["records"] == 8
    assert loaded.dropped == {"the answer to forget is the refusal itself": 1}
    assert loaded.skipped == {"erasure: no other question has this answer": 1}
    cheese = loaded.cases[0]
    assert roles(cheese) == {"reliability": 1, "erasure": 2, "locality/retained": 1}
    assert of_role(cheese, "erasure")[1].rivals == ("Cheese", "cheeses")
    assert roles(next(iter(benchmarks.load("sanitation", tmp_path, fluency=True))))["fluency"] == 1
