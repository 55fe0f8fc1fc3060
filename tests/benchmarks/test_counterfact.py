"""CounterFact in three forms, and zsRE."""

from __future__ import annotations

from pathlib import Path

import pytest

from corrigenda import benchmarks
from corrigenda.cases import Against, Protocol
from corrigenda.errors import MalformedRecords, MissingData
from tests.support.all_benchmarks import SNIPPETS
from tests.support.records import COUNTERFACT, FLAT, ZSRE, changed, of_role, only, roles, write


def test_counterfact_is_a_contest(tmp_path: Path) -> None:
    case = only(benchmarks.load("counterfact", write(tmp_path / "c.json", [COUNTERFACT])))
    assert roles(case) == {
        "reliability": 1,
        "generalization": 2,
        "locality/neighborhood": 2,
        "fluency": 2,
    }
    fact = case.facts[0]
    assert (fact.prompt, fact.subject_start) == ("Mount Vero is located in", 0)
    (reliability,) = of_role(case, "reliability")
    assert (reliability.answer, reliability.rivals) == ("Asia", ("Africa",))
    assert reliability.protocol is Protocol.RANK
    for neighbour in of_role(case, "locality/neighborhood"):
        assert (neighbour.answer, neighbour.rivals) == ("Africa", ("Asia",))
        assert neighbour.against is Against.BEFORE
    assert case.meta["relation"] == "P30"
    assert case.meta["target_new_id"] == "Q48"


def test_counterfact_asks_attributes_if_told(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", [COUNTERFACT])
    case = only(benchmarks.load("counterfact", path, attributes=True))
    assert of_role(case, "attribute")[0].answer == "Asia"


def test_counterfact_flags_edits_that_contradict_each_other(tmp_path: Path) -> None:
    other = changed(COUNTERFACT, case_id=8)
    other["requested_rewrite"]["target_new"] = {"str": "Europe", "id": "Q46"}
    same = changed(COUNTERFACT, case_id=9)
    path = write(tmp_path / "c.json", [COUNTERFACT, same])
    assert benchmarks.load("counterfact", path).flagged == {}
    path = write(tmp_path / "c.json", [COUNTERFACT, same, other])
    assert sum(benchmarks.load("counterfact", path).flagged.values()) == 3


@pytest.mark.parametrize("template", ["no place", "{} and {}"])
def test_counterfact_templates_have_one_place(tmp_path: Path, template: str) -> None:
    record = changed(COUNTERFACT)
    record["requested_rewrite"]["prompt"] = template
    path = write(tmp_path / "c.json", [record])
    with pytest.raises(MalformedRecords, match=r"one \{\} for the subject"):
        benchmarks.load("counterfact", path)


def test_counterfact_drops_what_has_no_subject(tmp_path: Path) -> None:
    record = changed(COUNTERFACT)
    record["requested_rewrite"]["subject"] = " "
    loaded = benchmarks.load("counterfact", write(tmp_path / "c.json", [record]))
    assert loaded.dropped == {"the subject is empty": 1}


def test_counterfact_plus_prefixes_the_edited_statement(tmp_path: Path) -> None:
    case = only(benchmarks.load("counterfact-plus", write(tmp_path / "c.json", [COUNTERFACT])))
    distracted = [probe.prompt for probe in of_role(case, "locality/distracted_neighborhood")]
    assert distracted == [
        "Mount Vero is located in Asia. Lake Chad is located in",
        "Mount Vero is located in Asia. Mali lies in",
    ]
    compared = of_role(case, "divergence/distracted_neighborhood")
    assert [probe.prompt for probe in compared] == distracted
    assert all(probe.divergence and probe.max_new_tokens == 1 for probe in compared)
    assert all(not probe.expected for probe in compared)


def test_counterfact_plus_of_a_record_of_languages(tmp_path: Path) -> None:
    record = changed(COUNTERFACT, neighborhood_prompts=["M is a native speaker of"])
    record["requested_rewrite"] |= {
        "prompt": "The mother tongue of {} is",
        "subject": "D",
        "target_new": {"str": "English", "id": "Q1860"},
    }
    case = only(benchmarks.load("counterfact-plus", write(tmp_path / "c.json", [record])))
    (distracted,) = of_role(case, "locality/distracted_neighborhood")
    assert distracted.prompt == "The mother tongue of D is English. M is a native speaker of"


def test_flat_form_is_scored_with_the_answer_fed(tmp_path: Path) -> None:
    path = write(tmp_path / "data" / "counterfact-edit.json", [FLAT])
    case = only(benchmarks.load("counterfact-flat", path))
    assert roles(case) == {"reliability": 1, "generalization": 1, "locality/neighborhood": 1}
    assert {probe.protocol for probe in case.probes} == {Protocol.TEACHER_FORCED}
    assert of_role(case, "locality/neighborhood")[0].against is Against.UNEDITED
    assert "relation" not in case.meta


def test_flat_form_takes_the_relation_map(tmp_path: Path) -> None:
    twice = changed(FLAT, subject="Vero", prompt="Vero, once Vero, is located in")
    path = write(tmp_path / "data" / "counterfact-edit.json", [twice])
    assert benchmarks.load("counterfact-flat", path).dropped == {
        "the subject occurs in the prompt more than once": 1
    }
    entry = {"relation_id": "P30", "prompt": "Vero, once {}, is located in", "subject": "Vero"}
    write(tmp_path / "relation_map.json", {"7": entry})
    case = only(benchmarks.load("counterfact-flat", path))
    assert case.meta["relation"] == "P30"
    assert case.facts[0].subject_start == 11


def test_zsre_towards_the_alternative(tmp_path: Path) -> None:
    case = only(benchmarks.load("zsre", write(tmp_path / "z.json", [ZSRE])))
    assert case.facts[0].target == "1931"
    assert case.facts[0].before == "1920"
    assert of_role(case, "reliability")[0].rivals == ("1920", "in 1920")
    (unrelated,) = of_role(case, "locality/unrelated_question")
    assert unrelated.prompt == "who sings the song?"
    assert unrelated.against is Against.UNEDITED


def test_zsre_towards_the_truth(tmp_path: Path) -> None:
    path = write(tmp_path / "z.json", [ZSRE])
    case = only(benchmarks.load("zsre", path, direction="truth"))
    assert (case.facts[0].target, case.facts[0].before) == ("1920", "1911")
    (unrelated,) = of_role(case, "locality/unrelated_question")
    assert unrelated.against is Against.TARGET
    assert case.meta["direction"] == "truth"


@pytest.mark.parametrize(
    ("direction", "prompt"),
    [
        ("alternative", "nq question: who sings the song"),
        ("truth", "nq question: who sings the song?"),
    ],
)
def test_zsre_as_the_references_ask(tmp_path: Path, direction: str, prompt: str) -> None:
    path = write(tmp_path / "z.json", [ZSRE])
    case = only(benchmarks.load("zsre", path, direction=direction, legacy=True))
    assert of_role(case, "locality/unrelated_question")[0].prompt == prompt


def test_zsre_portability_follows_from_the_alternative(tmp_path: Path) -> None:
    further = {"Recalled Relation": "", "New Question": "Which decade?", "New Answer": "the 1930s"}
    path = write(tmp_path / "z.json", [changed(ZSRE, portability=further)])
    case = only(benchmarks.load("zsre", path))
    assert of_role(case, "portability/one_hop")[0].answer == "the 1930s"
    case = only(benchmarks.load("zsre", path, direction="truth"))
    assert of_role(case, "portability/one_hop") == []


def test_counterfact_compares_and_scores_texts_if_told(tmp_path: Path) -> None:
    write(tmp_path / "counterfact.json", [COUNTERFACT])
    write(tmp_path / "attribute_snippets.json", SNIPPETS)
    case = only(benchmarks.load("counterfact", tmp_path, texts=True))
    first, second = of_role(case, "consistency")
    assert (first.prompt, second.prompt) == ("Near Mount Vero", "People of Mount Vero")
    assert first.expected == (("Laos is a country of Asia.", "Mongolia lies in the east of Asia."),)
    (essence,) = of_role(case, "essence")
    assert (essence.prompt, essence.answer) == ("", "Mount Vero is a mountain of Africa.")
    assert essence.protocol == Protocol.TEACHER_FORCED
    (tmp_path / "attribute_snippets.json").unlink()
    with pytest.raises(MissingData, match="attribute_snippets"):
        benchmarks.load("counterfact", tmp_path, texts=True)
