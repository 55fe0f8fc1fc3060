"""MQuAKE and RippleEdits."""

from __future__ import annotations

from pathlib import Path

import pytest

from corrigenda import benchmarks
from corrigenda.benchmarks.labels import EntityLabels, split_statement
from tests.support.records import (
    MQUAKE,
    RIPPLE,
    changed,
    of_role,
    only,
    query,
    ripple_test,
    roles,
    write,
)


def test_mquake_asks_edits_chain_and_question(tmp_path: Path) -> None:
    case = only(benchmarks.load("mquake", write(tmp_path / "m.json", [MQUAKE])))
    assert roles(case) == {
        "reliability": 1,
        "portability/chain": 2,
        "portability/multi_hop": 3,
        "before/chain": 2,
        "before/multi_hop": 3,
    }
    assert case.facts[0].aliases == ("Norge",)
    assert case.facts[0].subject_start == 0
    chain = of_role(case, "portability/chain")
    assert {(probe.test, probe.every) for probe in chain} == {("chain", True)}
    questions = of_role(case, "portability/multi_hop")
    assert {(probe.test, probe.every) for probe in questions} == {("question", False)}
    assert questions[0].expected == (("Oslo", "Christiania"),)
    assert questions[0].rivals == ("Stockholm", "Sthlm")
    assert questions[0].prompt == "Q: What is the capital of the country of Ada Quill? A:"
    before = of_role(case, "before/multi_hop")
    assert {probe.after for probe in before} == {(0,)}
    assert before[0].expected == (("Stockholm", "Sthlm"),)
    assert (case.meta["hops"], case.meta["edits"], case.meta["edited_hops"]) == (2, 1, (1,))


def test_mquake_takes_the_prompts_of_the_authors(tmp_path: Path) -> None:
    path = write(tmp_path / "datasets" / "MQuAKE-T.json", [MQUAKE])
    write(tmp_path / "prompts" / "rel-prompts.json", {"P36": "Q: Capital of Peru? A: Lima"})
    (tmp_path / "prompts" / "multihop-prompts.txt").write_text("Q: One? A: Two\n")
    (tmp_path / "prompts" / "multihop-cot-prompts.txt").write_text("Question: One?\nAnswer: Two\n")
    loaded = benchmarks.load("mquake", tmp_path, part="t")
    case = only(loaded)
    assert [file.name for file in loaded.files] == [
        path.name,
        "multihop-prompts.txt",
        "multihop-cot-prompts.txt",
        "rel-prompts.json",
    ]
    edited, unedited = of_role(case, "portability/chain")
    assert edited.prompt == "Ada Quill is a citizen of"
    assert unedited.prompt == "Q: Capital of Peru? A: Lima\nQ: q3 A:"
    asked = of_role(case, "portability/multi_hop")[0]
    assert asked.prompt.startswith("Q: One? A: Two\nQ: What is the capital")
    thoughts = of_role(case, "portability/multi_hop_thoughts")
    assert thoughts[0].marker == "Answer:"
    assert thoughts[0].prompt.endswith("\nThoughts:")


def test_mquake_flags_contradictions_and_answers_that_stay(tmp_path: Path) -> None:
    other = changed(MQUAKE, case_id=4, new_answer="stockholm", new_answer_alias=[])
    other["requested_rewrite"][0]["target_new"] = {"str": "Chad", "id": "Q1"}
    loaded = benchmarks.load("mquake", write(tmp_path / "m.json", [MQUAKE, other]))
    assert sorted(loaded.flagged.values()) == [1, 2]
    assert of_role(loaded.cases[1], "portability/multi_hop")[0].rivals == ("Sthlm",)


def test_mquake_drops_what_cannot_be_asked(tmp_path: Path) -> None:
    records = [
        changed(MQUAKE, case_id=1, requested_rewrite=[]),
        changed(MQUAKE, case_id=2, new_single_hops=[]),
        changed(MQUAKE, case_id=3, questions=[]),
    ]
    loaded = benchmarks.load("mquake", write(tmp_path / "m.json", records))
    assert len(loaded) == 0
    assert sum(loaded.dropped.values()) == len(loaded.dropped) == 3


def test_ripple_reads_names_off_the_statement(tmp_path: Path) -> None:
    case = only(benchmarks.load("rippleedits", write(tmp_path / "r.json", [RIPPLE])))
    (fact,) = case.facts
    assert fact.prompt == "The name of the spouse of Ada Quill is"
    assert (fact.subject, fact.target, fact.before) == ("Ada Quill", "Bo Lund", "Cy Holm")
    assert of_role(case, "reliability")[0].rivals == ("Cy Holm",)


def test_ripple_tests_have_conditions(tmp_path: Path) -> None:
    loaded = benchmarks.load("rippleedits", write(tmp_path / "r.json", [RIPPLE]))
    case = only(loaded)
    assert roles(case) == {
        "reliability": 1,
        "portability/logical_generalization": 2,
        "portability/compositionality_1": 1,
        "portability/subject_aliasing": 1,
        "locality/relation_specificity": 1,
        "locality/forgetfulness": 1,
        "condition": 3,
    }
    assert loaded.skipped == {
        "portability/logical_generalization: asks for a sibling where a spouse was edited": 1,
        "portability/compositionality_1: no answer": 1,
    }
    both = of_role(case, "portability/logical_generalization")
    assert both[0].every
    assert both[0].test == both[1].test
    assert both[0].expected == (("Ada Quill", "A. Quill"),)
    composed = of_role(case, "portability/compositionality_1")[0]
    assert composed.expected == (("Oslo", "Bergen"),)
    assert not composed.every
    conditions = {probe.test: probe for probe in of_role(case, "condition")}
    assert conditions[composed.test].after == (0,)
    assert of_role(case, "locality/forgetfulness")[0].expected == (("Di",),)


def test_ripple_condition_of_an_alias(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", [RIPPLE])
    ours, released = (
        only(benchmarks.load("rippleedits", path, alias_condition=one))
        for one in ("original", "released")
    )
    name = of_role(ours, "portability/subject_aliasing")[0].test
    for case, expected in ((ours, "Cy Holm"), (released, "Bo Lund")):
        (condition,) = [one for one in of_role(case, "condition") if one.test == name]
        assert condition.answer == expected


def test_ripple_may_ask_for_every_object(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", [RIPPLE])
    case = only(benchmarks.load("rippleedits", path, multiple="all"))
    composed = of_role(case, "portability/compositionality_1")[0]
    assert composed.expected == (("Oslo",), ("Bergen",))


def test_ripple_drops_what_has_no_name(tmp_path: Path) -> None:
    recent = changed(RIPPLE, example_type="recent")
    recent["edit"] = {
        "prompt": "is a member of.",
        "subject_id": "Q9",
        "relation": "R",
        "target_id": "Q8",
    }
    nobody = changed(RIPPLE)
    nobody["edit"] |= {"prompt": "it follows Bo.", "original_fact": None, "target_id": "Q_Bo"}
    nobody["Forgetfulness"] = [ripple_test(query("a", [["Bo"]]))]
    loaded = benchmarks.load("rippleedits", write(tmp_path / "r.json", [recent, nobody]))
    assert loaded.dropped == {
        "the target is not certain from the statement": 1,
        "the subject is not certain from the statement": 1,
    }


def test_ripple_takes_labels_at_their_word(tmp_path: Path) -> None:
    record = changed(RIPPLE)
    record["edit"] |= {
        "prompt": "it follows bo.",
        "original_fact": None,
        "subject": "it",
        "target_label": "bo",
    }
    case = only(benchmarks.load("rippleedits", write(tmp_path / "r.json", [record])))
    assert (case.facts[0].subject, case.facts[0].target) == ("it", "bo")


@pytest.mark.parametrize(
    ("statement", "spellings", "original", "old", "found"),
    [
        ("A is in New York.", (), "A is in New Delhi.", (), ("A is in", "New York")),
        ("A is in New York.", ("New York",), None, (), ("A is in", "New York")),
        ("A is of the sea.", (), "A is of the air.", ("the air",), ("A is of", "the sea")),
        ("A is in York.", (), None, (), None),
        ("A is in York.", (), "B was by Ely.", (), None),
        ("A is in.", (), "A is in.", (), None),
    ],
)
def test_statements_are_split(
    statement: str,
    spellings: tuple[str, ...],
    original: str | None,
    old: tuple[str, ...],
    found: tuple[str, str] | None,
) -> None:
    assert split_statement(statement, spellings, original, old) == found


def test_a_subject_must_stand_in_all_prompts_about_it() -> None:
    labels = EntityLabels([("Q2", ("Vero tower",))])
    prompt = "The owner of Mount Vero is"
    assert labels.infer_subject(prompt, "Q1", ["Mount Vero is high", "The age of Mount Vero is"])
    assert labels.infer_subject(prompt, "Q1", ["The age of Vero is"]) == ""
    assert labels.infer_subject("Near Oslo stands Vero tower in", "Q2", []) == "Vero tower"
