"""Newer benchmarks: natural answers, choices, long targets, memories of edits."""

from __future__ import annotations

from pathlib import Path

import pytest

from corrigenda import benchmarks
from corrigenda.benchmarks.hallueditbench import read_options
from corrigenda.cases import Against, Protocol
from corrigenda.errors import MalformedRecords
from tests.support.newer_records import (
    HALLU,
    PEAK,
    QAEDIT,
    TAXI,
    WIKIBIGEDIT,
    WISE,
    WISE_TEMPORAL,
)
from tests.support.records import changed, of_role, only, roles, write


def test_qaedit_asks_for_natural_answers(tmp_path: Path) -> None:
    loaded = benchmarks.load("qaedit", write(tmp_path / "q.json", QAEDIT))
    first, second = loaded
    assert [case.id for case in loaded] == ["NQ-7", "TQA-7"]
    assert roles(first) == {
        "reliability": 1,
        "generalization": 1,
        "locality/unrelated_question": 4,
    }
    assert {probe.protocol for probe in first.probes} == {Protocol.GENERATE}
    assert {probe.max_new_tokens for probe in first.probes} == {None}
    kept = of_role(first, "locality/unrelated_question")
    assert {probe.against for probe in kept} == {Against.UNEDITED}
    assert kept[3].expected == ()
    # The subject occurs three times; the fact is about the last.
    assert second.facts[0].span.start == QAEDIT[1]["prompt"].rindex("tower")
    assert loaded.flagged == {"the target has a full stop inside, where WILD cuts the answer": 1}
    assert loaded.dropped == {"the subject is not in the prompt": 1}
    assert loaded.skipped == {
        "generalization: no prompt": 1,
        "locality/unrelated_question: no prompt": 1,
    }
    one = benchmarks.load("qaedit", tmp_path / "q.json", unrelated=1)
    assert one.counts["locality/unrelated_question"] == 2


def test_hallueditbench_has_five_dimensions(tmp_path: Path) -> None:
    loaded = benchmarks.load("hallueditbench", write(tmp_path / "h.jsonl", HALLU))
    first, second = loaded
    assert roles(first) == {
        "reliability": 1,
        **{f"generalization/{kind}": 1 for kind in ("rephrased", "yes", "no", "choice")},
        "generalization/reversed": 1,
        **{f"portability/{hop}_hops": 1 for hop in range(2, 7)},
        "locality/question": 1,
    }
    assert first.facts[0].before == "Chile"
    (choice,) = of_role(first, "generalization/choice")
    assert choice.expected == (("B",),)
    assert "B. Norway" in choice.prompt
    assert {probe.max_new_tokens for probe in first.probes} == {16}
    assert first.meta["topic"] == "art_sculpture"
    # What is no list is no options, and is not run.
    assert roles(second) == {"reliability": 1}
    assert loaded.skipped["generalization/choice: no options, or none is right"] == 1
    assert loaded.dropped == {"the subject is not in the prompt": 1}
    assert loaded.unknown_fields == {"eval_small_chat": 1}


def test_doubts_follow_the_models_own_answers(tmp_path: Path) -> None:
    path = write(tmp_path / "h.jsonl", HALLU[:1])
    case = only(benchmarks.load("hallueditbench", path, turns=3))
    doubted = [probe for probe in case.probes if probe.family == "doubted"]
    assert [len(probe.turns) for probe in doubted] == [1, 2, 3]
    assert HALLU[0]["yes_question"] in doubted[0].turns[0]
    assert doubted[0].expected == (("Yes",),)


def test_hallueditbench_reads_the_tables_of_its_authors(tmp_path: Path) -> None:
    path = tmp_path / "places_city.csv"
    path.write_text(
        "subject,object,question,yes_question\nVero,Peru,Where is Vero?,Is Vero in Peru?\n"
    )
    with pytest.raises(MalformedRecords, match="portability"):
        benchmarks.load("hallueditbench", path)
    path.write_text(
        "subject,object,question,yes_question,locality_question,question_2hop,answer_2hop\n"
        'Vero,Peru,Where is Vero?,Is Vero in Peru?,"Who, then?",Where?,Lima\n'
    )
    case = only(benchmarks.load("hallueditbench", path))
    assert case.meta["topic"] == "places_city"
    assert of_role(case, "locality/question")[0].prompt == "Who, then?"
    path.write_text("subject,object,question\nVero,Peru\n")
    with pytest.raises(MalformedRecords, match="CG603"):
        benchmarks.load("hallueditbench", path)


def test_options_are_read_as_a_literal() -> None:
    assert read_options(HALLU[0]["multiple_choices"]) == ["Norway", "Chile", "L'Aquila", "Peru"]
    assert read_options("[" * 3000) == []
    assert read_options("[1, 'a']") == ["a"]


def test_taxi_is_one_case_an_edit(tmp_path: Path) -> None:
    loaded = benchmarks.load("taxi", write(tmp_path / "t.json", TAXI))
    case = only(loaded)
    assert loaded.counts["records"] == 3
    assert case.facts[0].prompt == "A Moggy is a kind of"
    assert roles(case) == {
        "reliability": 1,
        "reverse/membership": 1,
        "property/changed": 1,
        "reverse/property": 1,
        "property/unchanged": 1,
    }
    assert loaded.skipped == {"reverse/property: the question begins with its answer": 1}
    (member,) = of_role(case, "reliability")
    assert (member.prompt, member.answer, member.rivals) == (
        "a Moggy is a kind of",
        "dog",
        ("cat", "cow"),
    )
    # What follows the place of the thing is compared with it.
    (reverse,) = of_role(case, "reverse/membership")
    assert (reverse.prompt, reverse.answer, reverse.rivals) == (
        "a",
        "Moggy is a kind of dog",
        ("Jersey is a kind of dog",),
    )
    (back,) = of_role(case, "reverse/property")
    assert (back.prompt, back.answer) == ("one animal that makes bark is a", "Moggy")
    assert all(probe.answer not in probe.rivals for probe in case.probes)
    plain = benchmarks.load("taxi", tmp_path / "t.json", reverse=False)
    assert not any(probe.family == "reverse" for probe in only(plain).probes)


def test_peak_counts_an_answer_once(tmp_path: Path) -> None:
    loaded = benchmarks.load("peak", write(tmp_path / "p.json", PEAK))
    first, second = loaded
    # The new answer is no old one, a repeated one counts once, a right one is not wrong.
    (edited,) = of_role(first, "reliability")
    assert edited.rivals == ("Chile", "Peru", "Oslo", "Bergen", "tea", "chess")
    assert [first.meta[name] for name in ("right", "hard", "random")] == [2, 2, 2]
    assert roles(first) == {
        "reliability": 1,
        "generalization": 1,
        "locality/neighborhood": 1,
    }
    assert second.meta["right"] == 1
    assert loaded.dropped == {"there is no right answer, or none of the wrong ones is left": 1}
    assert loaded.skipped == {"locality/neighborhood: no answer, or the new one": 2}


def test_wise_texts_join_where_they_were_cut(tmp_path: Path) -> None:
    loaded = benchmarks.load("wise", write(tmp_path / "w.json", WISE))
    first, second = loaded
    (web,) = of_role(first, "locality/web_text")
    assert web.separator == ""
    assert f"{web.prompt}{web.answer}".endswith("historical print or plan?")
    assert {probe.protocol for probe in of_role(first, "reliability")} == {
        Protocol.TEACHER_FORCED,
        Protocol.GENERATE,
    }
    assert roles(second) == {"reliability": 2}
    assert loaded.dropped == {"the subject is not in the prompt": 1}
    path = write(tmp_path / "t.json", [WISE_TEMPORAL])
    case = only(benchmarks.load("wise", path, part="temporal", generated=False))
    (text,) = of_role(case, "unseen_text")
    assert (text.prompt, text.answer) == ("", WISE_TEMPORAL["ood_rephrase"])
    assert case.meta["edit"] == "insertion"
    assert case.under(Protocol.GREEDY).probes[1] == text


def test_wikibigedit_tolerates_what_is_missing(tmp_path: Path) -> None:
    import json

    path = tmp_path / "w.json"
    path.write_text(json.dumps(WIKIBIGEDIT).replace("NaN", "null"))
    loaded = benchmarks.load("wikibigedit", path)
    first, second = loaded
    assert roles(first) == {
        "reliability": 1,
        "generalization/rephrase": 1,
        "generalization/personas": 1,
        "portability/two_hops": 1,
        "locality/similar": 1,
    }
    assert first.probes[0].prompt == "Q: Who employs Ada Quill? A:"
    assert roles(second) == {"reliability": 1, "generalization/rephrase": 1}
    assert (first.meta["edit"], second.meta["edit"]) == ("insertion", "modification")
    assert loaded.flagged == {"another record has the same question": 2}
    assert loaded.dropped == {"the subject is not in the prompt": 1}
    plain = benchmarks.load("wikibigedit", path, form=False)
    assert plain.cases[0].facts[0].prompt == "Who employs Ada Quill?"


def test_lengths_of_greedy_answers_do_not_reach_natural_ones(tmp_path: Path) -> None:
    case = benchmarks.load("qaedit", write(tmp_path / "q.json", QAEDIT)).cases[0]
    asked = case.under(Protocol.TEACHER_FORCED, Protocol.GREEDY, Protocol.CHAT)
    edited = [probe for probe in asked.probes if probe.role == "reliability"]
    assert [probe.protocol for probe in edited] == [
        Protocol.TEACHER_FORCED,
        Protocol.GREEDY,
        Protocol.CHAT,
    ]
    # What expects no answer can only be generated.
    last = [probe.protocol for probe in asked.probes if not probe.expected]
    assert last == [Protocol.GREEDY, Protocol.CHAT]
    short = changed(QAEDIT[0])
    assert short == QAEDIT[0]


def test_a_field_that_is_missing_is_an_error(tmp_path: Path) -> None:
    bad = {name: value for name, value in QAEDIT[0].items() if name != "target"}
    with pytest.raises(MalformedRecords, match=r"CG603(.|\n)*record 0: target"):
        benchmarks.load("qaedit", write(tmp_path / "q.json", [bad]))
