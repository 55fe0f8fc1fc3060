"""MeLLo: dialogues end in hops + 1 generations, verdicts decide, nothing else is touched."""

from __future__ import annotations

import pytest

import corrigenda
from corrigenda.engines.edit_store import AskedQuestion, is_same_entity, mentions
from corrigenda.errors import BadConfig
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.mello import editor as mello
from corrigenda.methods.mello.editor import MeLLo
from corrigenda.methods.mello.prompt import DEMONSTRATIONS
from tests.support.edit_stores import (
    ASKED,
    EMPLOYER,
    FACTS,
    FOUNDER,
    UNRELATED,
    Script,
    require_consequences,
    require_logits_stay,
    require_records,
    roomy_model,
    said_alone,
    store,
)

# What a model would write that believes in "Old Inc" and "Cy Ek", and follows verdicts.
LINES = {
    f"Question: {ASKED}\n": "Subquestion: The employer of Ann Lee is\n"
    "Generated answer: Ann Lee works for Old Inc.\n",
    "Retrieved fact: The employer of Ann Lee is Zed Mills.\n": "The retrieved fact contradicts the "
    "generated answer, so the intermediate answer is: Zed Mills\n"
    "Subquestion: The founder of Zed Mills is\nGenerated answer: Zed Mills was founded by Cy Ek.\n",
    "Retrieved fact: The founder of Zed Mills is Bo Dahl.\n": "The retrieved fact contradicts the "
    "generated answer, so the intermediate answer is: Bo Dahl\nFinal answer: Bo Dahl.\n",
}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return roomy_model()


def editor(**options: object) -> MeLLo:
    return MeLLo(**{"retriever": "states:0", **options})


def test_a_question_of_two_hops_takes_three_generations(lm, monkeypatch) -> None:
    script = Script(LINES)
    said_alone(mello, monkeypatch, greedy=script)
    with editor().edit(lm, FACTS).patch.apply(lm):
        assert corrigenda.answer(lm, [ASKED]) == ["Bo Dahl"]
    assert len(script.asked) == 3
    assert script.asked[-1].count("Retrieved fact: The founder of Zed Mills is Bo Dahl.\n") == 1
    assert editor(demonstrations="").reason(lm, store(lm), [ASKED])[0].answer == "Bo Dahl"


def test_too_few_rounds_and_lost_dialogues_leave_the_model_its_answer(lm, monkeypatch) -> None:
    plain = corrigenda.answer(lm, [ASKED])
    for options, lines in (
        ({"rounds": 2}, LINES),
        ({}, {}),
        ({}, {f"Question: {ASKED}\n": "Well, let me think.\n"}),
    ):
        said_alone(mello, monkeypatch, greedy=Script(lines))
        patch = editor(**options).edit(lm, FACTS).patch
        assert patch.answers(lm, [ASKED]) == [None]
        with patch.apply(lm):
            assert corrigenda.answer(lm, [ASKED]) == plain
    endless = {"\n": "Subquestion: The employer of Ann Lee is\nGenerated answer: Old Inc.\n"}
    said_alone(mello, monkeypatch, greedy=(script := Script(endless)))
    assert editor(rounds=5).edit(lm, FACTS).patch.answers(lm, [ASKED]) == [None]
    assert len(script.asked) <= 5


def test_many_dialogues_run_in_step_and_do_not_depend_on_each_other(lm, monkeypatch) -> None:
    said_alone(mello, monkeypatch, greedy=Script(LINES))
    asked = [ASKED, "Who is nobody?", ASKED]
    for facts in (FACTS, FACTS[::-1]):
        assert editor().edit(lm, facts).patch.answers(lm, asked) == ["Bo Dahl", None, "Bo Dahl"]


def test_a_far_fact_is_kept_away_where_a_threshold_says_so(lm, monkeypatch) -> None:
    said_alone(mello, monkeypatch, greedy=(script := Script(LINES)))
    far = editor(threshold=0.999).edit(lm, [UNRELATED]).patch
    far.answers(lm, [ASKED])
    assert script.asked[1].endswith("Retrieved fact: Ann Lee works for Old Inc.\n")
    said_alone(mello, monkeypatch, greedy=(script := Script(LINES)))
    editor().edit(lm, [UNRELATED]).patch.answers(lm, [ASKED])
    assert script.asked[1].endswith("Retrieved fact: The Space Needle is in Rome.\n")


def test_a_comparison_can_stand_for_the_verdict(lm, monkeypatch) -> None:
    lines = {
        f"Question: {ASKED}\n": "Subquestion: The employer of Ann Lee is\nGenerated answer: Old",
        "Generated answer: Zed Mills\n": "Subquestion: The founder of Zed Mills is\n"
        "Generated answer: Cy Ek\nFinal answer: Cy Ek",
        "Generated answer: Bo Dahl\n": "Final answer: Bo Dahl",
    }
    said_alone(mello, monkeypatch, greedy=Script(lines))
    read = {"employer of Ann Lee is": "Zed Mills", "founder of Zed Mills is": "Bo Dahl"}
    monkeypatch.setattr("corrigenda.engines.edit_store.answer", Script(read))
    compared = editor(verdict="reading")
    assert compared.reason(lm, store(lm), [ASKED])[0].answer == "Bo Dahl"
    monkeypatch.setattr("corrigenda.engines.edit_store.answer", Script({"is": "Ann Lee"}))
    assert compared.reason(lm, store(lm), [ASKED]) == [None]


def test_a_fact_finds_itself_and_batches_find_what_single_queries_find(lm) -> None:
    held = store(lm)
    queries = [*held.sentences, ASKED, "Where is the Needle?"]
    together = held.nearest(lm, queries, k=2)
    assert [hits[0].place for hits in together[:3]] == [0, 1, 2]
    for query, hits in zip(queries, together, strict=True):
        (alone,) = held.nearest(lm, [query], k=2)
        assert [one.place for one in alone] == [one.place for one in hits]
        assert [one.score for one in alone] == pytest.approx([one.score for one in hits], abs=1e-5)
    assert held.nearest(lm, []) == []


def test_active_patches_are_one_memory_and_leave_with_their_facts(lm, monkeypatch) -> None:
    said_alone(mello, monkeypatch, greedy=Script(LINES))
    first, second = (editor().edit(lm, [fact]).patch for fact in (EMPLOYER, FOUNDER))
    with first.apply(lm):
        with second.apply(lm):
            assert corrigenda.answer(lm, [ASKED]) == ["Bo Dahl"]
            assert corrigenda.answer(lm, [EMPLOYER.prompt]) == ["Zed Mills"]
        assert corrigenda.answer(lm, [ASKED]) != ["Bo Dahl"]
    newer = editor().edit(lm, [Fact(prompt=EMPLOYER.prompt, target="Gro Ltd")]).patch
    with first.apply(lm), newer.apply(lm):
        assert corrigenda.answer(lm, [EMPLOYER.prompt]) == ["Gro Ltd"]
    twice = editor().edit(lm, [EMPLOYER, Fact(prompt=EMPLOYER.prompt, target="Gro Ltd")]).patch
    assert twice.header.notes["status"] == ["replaced by a later fact", "stored"]
    assert twice.answers(lm, [EMPLOYER.prompt]) == ["Gro Ltd"]


def test_logits_stay_and_an_empty_memory_answers_nothing(lm) -> None:
    require_logits_stay(lm, editor(new_tokens=4, rounds=2))


def test_examples_that_do_not_fit_are_left_out_first_ones_first(lm) -> None:
    made = editor(demonstrations="One.\n\nTwo.\n\nThree.")
    shown = made._worked_examples(lm)
    assert [block for block, _ in shown] == ["One.\n\n", "Two.\n\n", "Three.\n\n"]
    assert (
        made._write_prompt(lm, shown, "Question: Who?\n")
        == "One.\n\nTwo.\n\nThree.\n\nQuestion: Who?\n"
    )
    long = [(block, length + lm.context_length // 3) for block, length in shown]
    fitting = made._write_prompt(lm, long, "Question: Who?\n")
    assert fitting.endswith("Three.\n\nQuestion: Who?\n")
    assert "One." not in fitting
    assert made._write_prompt(lm, shown, "who " * lm.context_length) is None


def test_examples_cover_hops_and_verdicts() -> None:
    blocks = DEMONSTRATIONS.split("\n\n")
    hops = [block.count("Subquestion:") for block in blocks]
    assert sorted(set(hops)) == [2, 3, 4]
    for block, count in zip(blocks, hops, strict=True):
        assert block.count("Retrieved fact:") == block.count("answer is:") == count
        assert block.count("Final answer:") == 1
    assert "does not contradict" in DEMONSTRATIONS
    assert " contradicts " in DEMONSTRATIONS


@pytest.mark.parametrize(
    ("prompt", "text", "is_open", "closing"),
    [
        ("Who leads Zed?", "Who leads Zed?", False, ""),
        ("Tell me the capital of Zed.", "Tell me the capital of Zed.", False, ""),
        ("The capital of Zed is", "The capital of Zed is", True, ""),
        ("Q: Who? A: Bo\nQ: Who leads Zed? A:", "Who leads Zed?", False, ""),
        ("Question: Who leads Zed?\nSubquestion:", "Who leads Zed?", False, "Final answer:"),
        ("Question: Who leads Zed?\nThoughts:", "Who leads Zed?", False, "Answer:"),
        ("", "", True, ""),
    ],
)
def test_the_question_of_a_prompt(prompt: str, text: str, is_open: bool, closing: str) -> None:
    assert AskedQuestion.read(prompt) == AskedQuestion(text, is_open, closing)


def test_working_is_told_where_a_field_is_left_for_it(lm, monkeypatch) -> None:
    said_alone(mello, monkeypatch, greedy=Script(LINES))
    patch = editor().edit(lm, FACTS).patch
    (told,) = patch.answers(lm, [f"Question: {ASKED}\nSubquestion:"])
    assert told.startswith("The employer of Ann Lee is\n")
    assert told.endswith("\nFinal answer: Bo Dahl")


def test_entities_are_compared_without_articles_case_and_punctuation() -> None:
    assert is_same_entity("The Hague.", "hague")
    assert not is_same_entity("Rome", "Romeo")
    assert mentions("It lies in Rome, Italy.", "rome")
    assert not mentions("Romeo", "Rome")
    assert not mentions("Rome", "")


def test_options_are_checked() -> None:
    with pytest.raises(BadConfig, match="rounds"):
        MeLLo(rounds=1)
    with pytest.raises(BadConfig, match="fields"):
        MeLLo(fields={"ending": "Done:"})


def test_on_the_pocket_model_consequences_follow(tmp_path) -> None:
    require_consequences("mello", tmp_path)


@pytest.mark.slow
def test_records_of_mquake_can_be_edited_and_asked() -> None:
    quick = {"retriever": "states:0", "new_tokens": 32, "rounds": 3}
    require_records(MeLLo(**quick), MeLLo(**quick, verdict="reading"))
