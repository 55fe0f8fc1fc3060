"""UnKE, AKEW, MQuAKE-Remastered, KnowEdit in other forms, and cases of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from corrigenda import benchmarks
from corrigenda.cases import Against, Protocol
from corrigenda.errors import MalformedRecords
from tests.support.newer_records import (
    AKEW,
    OWN,
    OWN_TABLE,
    REMASTERED,
    REMASTERED_NESTED,
    UNKE,
)
from tests.support.records import COUNTERFACT_WIKI, ZSRE_WIKI, of_role, only, roles, write


def test_unke_asks_for_the_text_and_its_parts(tmp_path: Path) -> None:
    loaded = benchmarks.load("unke", write(tmp_path / "u.json", UNKE))
    first, second = loaded
    assert roles(first) == {"reliability": 1, "generalization": 1, "portability/part": 2}
    assert {probe.max_new_tokens for probe in first.probes} == {512}
    assert first.facts[0].subject == "Ada Quill"
    assert second.facts[0].subject is None
    assert loaded.flagged == {"no subject is certain: methods that need one cannot edit it": 1}
    assert loaded.dropped == {"questions about parts and their answers differ in number": 1}
    assert loaded.skipped == {"generalization: no prompt": 1, "portability/part: no answer": 1}


@pytest.mark.parametrize(
    ("setting", "prompts", "dropped"),
    [
        ("structured", ["Ada Quill works for"], "there is no edit"),
        ("text", ["Whom does Ada Quill work for?"], "the record has no text of the change"),
        (
            "triples",
            ["Ada Quill was taken on in", "Vero Works is a firm of"],
            "the record has no triples of its text",
        ),
    ],
)
def test_akew_edits_one_change_in_three_ways(
    setting: str, prompts: list[str], dropped: str, tmp_path: Path
) -> None:
    loaded = benchmarks.load("akew", write(tmp_path / "a.json", AKEW), setting=setting)
    first = loaded.cases[0]
    assert [fact.prompt for fact in first.facts] == prompts
    (asked,) = of_role(first, "reliability")
    assert asked.prompt == "Whom does Ada Quill work for?"
    assert asked.expected == (("Vero Works", "Vero Works Ltd"),)
    assert dropped in loaded.dropped
    assert len(of_role(first, "generalization")) == 1
    if setting == "structured":
        second = loaded.cases[1]
        assert of_role(second, "portability/multi_hop")[0].expected == (("Oslo", "Christiania"),)
        assert of_role(first, "portability/part")[1].answer == "printers"


def test_a_memory_never_contradicts_the_path_of_its_question(tmp_path: Path) -> None:
    """Case 2 passes through the old head of UK, which case 1 edits."""
    path = write(tmp_path / "m.json", REMASTERED)
    loaded = benchmarks.load("mquake-remastered", path, edited=2)
    cases = {case.id: case for case in loaded}
    targets = {name: [fact.target for fact in case.facts] for name, case in cases.items()}
    assert targets == {"1": ["Ann", "Cat"], "2": ["Cat"], "3": ["Ann", "Cat"]}
    asked = {name: case.probes[0].answer for name, case in cases.items()}
    assert asked == {"1": "Ann's spouse", "2": "Sun's spouse", "3": "Ann's spouse"}
    assert [case.meta["is_edited"] for case in loaded] == [True, False, True]
    skipped = "edits left out of a memory, as they contradict its question"
    assert loaded.skipped == {skipped: 1}


def test_every_case_alone_has_its_own_edits(tmp_path: Path) -> None:
    loaded = benchmarks.load("mquake-remastered", write(tmp_path / "m.json", REMASTERED))
    assert [[fact.target for fact in case.facts] for case in loaded] == [["Ann"], ["Bob"], ["Cat"]]
    (test,) = {probe.test for probe in loaded.cases[0].probes}
    assert test == "question"
    assert not any(probe.every for probe in loaded.cases[0].probes)
    assert loaded.unknown_fields == {"single_hops": 3}


def test_remastered_reads_the_nested_form(tmp_path: Path) -> None:
    path = write(tmp_path / "m.json", [REMASTERED_NESTED])
    case = only(benchmarks.load("mquake-remastered", path, part="cf-6334", edited=100))
    assert (case.facts[0].target, case.facts[0].before) == ("Ann", "Sun")
    assert case.probes[0].rivals == ("Sun's spouse",)
    assert (case.meta["hops"], case.meta["split"]) == (2, "train_edited")


def test_knowedit_in_the_forms_of_other_programs(tmp_path: Path) -> None:
    plain = only(benchmarks.load("knowedit-zsre", write(tmp_path / "z.json", [ZSRE_WIKI])))
    kinds = {
        family: {
            kind: {
                "prompt": [one["prompt"] for one in items],
                "ground_truth": [one["ground_truth"] for one in items],
            }
            for kind, items in ZSRE_WIKI[family].items()
        }
        for family in ("locality", "portability")
    }
    lists = only(
        benchmarks.load("knowedit-zsre", write(tmp_path / "l.json", [{**ZSRE_WIKI, **kinds}]))
    )
    assert lists == plain
    nested = {
        "case_id": 3,
        "requested_rewrite": {
            "prompt": "The name of the country which {} is associated with is",
            "subject": "Lake Vero",
            "target_new": {"str": "Chile"},
            "target_true": {"str": "Peru"},
        },
        "paraphrase_prompts": ["Lake Vero lies in"],
        "portability": COUNTERFACT_WIKI["portability"],
        "locality": COUNTERFACT_WIKI["locality"],
    }
    loaded = benchmarks.load("knowedit-counterfact", write(tmp_path / "n.json", [nested]))
    case = only(loaded)
    assert case.facts[0].prompt == COUNTERFACT_WIKI["prompt"]
    assert case.facts[0].before == "Peru"
    assert of_role(case, "generalization")[0].prompt == "Lake Vero lies in"
    assert loaded.unknown_fields == {"case_id": 1}


def test_own_cases_need_a_prompt_and_a_target(tmp_path: Path) -> None:
    loaded = benchmarks.load("cases", write(tmp_path / "own.jsonl", OWN))
    first, second = loaded
    assert first.id == "a"
    assert roles(first) == {
        "reliability": 1,
        "generalization": 1,
        "locality/question": 1,
        "locality/same_subject": 1,
        "portability/question": 1,
    }
    assert first.probes[0].expected == (("Rome", "Roma"),)
    assert of_role(first, "portability/question")[0].expected == (("Tiber", "Tevere"),)
    assert of_role(first, "locality/question")[0].against is Against.UNEDITED
    assert roles(second) == {"reliability": 1, "locality/neighbour": 1}
    assert second.facts[0].target == "Oslo"
    assert loaded.dropped == {"the subject is not in the prompt": 1}
    assert loaded.unknown_fields == {"note": 1}


def test_own_cases_as_a_table(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(OWN_TABLE)
    first, second = benchmarks.load("cases", path)
    assert roles(first) == {
        "reliability": 1,
        "generalization": 2,
        "locality/question": 1,
        "portability/question": 2,
    }
    assert of_role(first, "portability/question")[1].answer == "Ligurian Sea"
    assert of_role(second, "locality/question")[0].answer == "Peru"


def test_own_cases_under_a_protocol_that_feeds_the_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "own.json", OWN[:1])
    case = only(benchmarks.load("cases", path, protocol="teacher_forced"))
    found = {probe.role: probe.protocol for probe in case.probes}
    assert found["reliability"] is Protocol.TEACHER_FORCED
    assert found["locality/same_subject"] is Protocol.TEACHER_FORCED
    # Nothing to feed: what is generated is compared.
    assert found["locality/question"] is Protocol.GENERATE


def test_a_question_without_answer_drops_its_record(tmp_path: Path) -> None:
    bad = [{"prompt": "Ann is in", "target": "Oslo", "portability": ["Her land is"]}, "text"]
    loaded = benchmarks.load("cases", write(tmp_path / "own.json", bad))
    assert loaded.dropped == {
        "a question of `portability` has no answer": 1,
        "the record is no table of fields": 1,
    }
    with pytest.raises(MalformedRecords, match="no list"):
        benchmarks.load("cases", write(tmp_path / "n.json", 3))
