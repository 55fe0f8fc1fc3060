"""DeepEdit: constraints decide which edit takes the place of a step; the search always ends."""

from __future__ import annotations

import pytest

import corrigenda
from corrigenda.engines.edit_store import fit_examples, write_sentence
from corrigenda.errors import BadConfig
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.deepedit import editor as deepedit
from corrigenda.methods.deepedit.editor import DeepEdit, _find_last_name
from corrigenda.methods.deepedit.prompts import THREE_QUESTIONS
from corrigenda.testing.tiny import tiny_model
from tests.support.edit_stores import (
    ASKED,
    EMPLOYER,
    FACTS,
    UNRELATED,
    Script,
    require_consequences,
    require_logits_stay,
    require_records,
    roomy_model,
    said_alone,
    store,
)

CHAIN = "Question: {question}\nReasoning:"
BARE = {
    "prompts": {"chain": CHAIN, "question_entity": "", "new_entity": "", "strip": "", "exists": ""},
    "conflict": "reading",
    "retriever": "states:0",
}
# What a model would write that believes in "Old Inc" and "Cy Ek", and continues from what stands.
LINES = {
    "Reasoning:": " Ann Lee works for Old Inc.",
    "The employer of Ann Lee is Zed Mills.#": " Zed Mills was set up by Cy Ek.",
    "The founder of Zed Mills is Bo Dahl.#": " Bo Dahl is the answer.",
    "Ann Lee works for Old Inc.#": " Old Inc was set up by Gus Orr",
    "Old Inc was set up by Gus Orr.#": " Gus Orr is the answer",
}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return roomy_model()


def editor(**options: object) -> DeepEdit:
    return DeepEdit(**{**BARE, **options})


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script(LINES)
    said_alone(deepedit, monkeypatch, greedy=script)
    monkeypatch.setattr("corrigenda.engines.edit_store.answer", Script({}))
    return script


def test_accepted_edits_take_the_place_of_steps_word_for_word(lm, spoken) -> None:
    made = editor(top_k=3)
    (found,) = made.reason(lm, store(lm), [ASKED])
    assert found.answer == "Bo Dahl"
    assert found.working == ".# ".join([*map(write_sentence, FACTS[:2]), "Bo Dahl is the answer"])
    assert len(spoken.asked) == 3
    with made.edit(lm, FACTS).patch.apply(lm):
        assert corrigenda.answer(lm, [ASKED]) == ["Bo Dahl"]


def test_without_an_edit_that_fits_the_chain_is_the_models_own(lm, spoken) -> None:
    (found,) = editor().reason(lm, store(lm, (UNRELATED,)), [ASKED])
    assert found.answer == "Gus Orr"
    assert write_sentence(UNRELATED) not in found.working


def test_the_most_similar_accepted_edit_is_followed_first(lm, spoken) -> None:
    other = Fact(prompt="The sport of Ann Lee is", subject="Ann Lee", target="chess")
    facts = (other, EMPLOYER)
    made = editor()
    (hits,) = store(lm, facts).nearest(lm, ["Ann Lee works for"], k=2)
    made.reason(lm, store(lm, facts), [ASKED])
    assert spoken.asked[1].endswith(f" {write_sentence(facts[hits[0].place])}.#")


def test_no_chain_is_too_deep_or_uses_an_edit_twice(lm, monkeypatch) -> None:
    class Endless(Script):
        def say(self, prompt: str) -> str:
            return f" Step {len(self.asked)} is about Name{prompt.count('#')}"

    for depth in (2, 4):
        said_alone(deepedit, monkeypatch, greedy=(script := Endless({})))
        monkeypatch.setattr("corrigenda.engines.edit_store.answer", Script({}))
        assert editor(depth=depth).reason(lm, store(lm), [ASKED]) == [None]
        assert max(prompt.count("#") for prompt in script.asked) == depth
        for prompt in script.asked:
            assert all(prompt.count(write_sentence(fact)) <= 1 for fact in FACTS)
    said_alone(deepedit, monkeypatch, greedy=(script := Endless({})))
    assert editor(most_states=3).edit(lm, FACTS).patch.answers(lm, [ASKED]) == [None]
    assert len(script.asked) == 3
    said_alone(deepedit, monkeypatch, greedy=Script({"Reasoning:": " On.", "#": " On."}))
    assert editor().reason(lm, store(lm), [ASKED]) == [None]


def test_a_chain_does_not_return_to_the_entity_before(lm, monkeypatch) -> None:
    lines = {
        "Reasoning:": " Ann Lee works for Old Inc",
        "Old Inc.#": " Old Inc is led by Cy Ek",
        "Cy Ek.#": " Cy Ek once met Old Inc and Ann Lee and Old Inc",
    }
    said_alone(deepedit, monkeypatch, greedy=(script := Script(lines)))
    monkeypatch.setattr("corrigenda.engines.edit_store.answer", Script({}))
    assert editor().reason(lm, store(lm, (UNRELATED,)), [ASKED]) == [None]
    assert len(script.asked) <= 4


def test_searches_run_in_step_and_the_order_of_edits_does_not_count(lm, spoken) -> None:
    asked = [ASKED, "Who is nobody?", ASKED]
    for facts in (FACTS, FACTS[::-1]):
        said = editor(top_k=3).edit(lm, facts).patch.answers(lm, asked)
        assert said[0] == said[2] == "Bo Dahl"


def test_yes_is_what_is_likelier_than_no_and_all_questions_must_agree(lm, monkeypatch) -> None:
    made = DeepEdit(retriever="states:0")
    asked: list[str] = []

    class Rated:
        def __init__(self, mean: float) -> None:
            self.mean = mean

    def score(lm: LanguageModel, pairs: list[tuple[str, str]]) -> list[Rated]:
        asked.extend(prompt for prompt, _ in pairs[::2])
        contrary = [(prompt.count("Zed Mills") > 0) == (word == "Yes") for prompt, word in pairs]
        return [Rated(float(one)) for one in contrary]

    said_alone(deepedit, monkeypatch, score=score)
    checks = [
        deepedit._EditCheck(0, place, fact, "Ann Lee works for Old Inc", "", "Old Inc")
        for place, fact in enumerate((EMPLOYER, UNRELATED))
    ]
    assert made._find_conflicts(lm, checks) == [True, False]
    assert made._find_entities(lm, ["Rome", None, "Cy"], ["It is in Rome"] * 3) == [
        True,
        False,
        False,
    ]
    three = DeepEdit(retriever="states:0", prompts={"conflict": THREE_QUESTIONS})
    asked.clear()
    assert three._find_conflicts(lm, checks) == [True, False]
    assert len(asked) == 6
    assert "{" not in "".join(asked)


@pytest.mark.parametrize(
    ("previous", "step", "name"),
    [
        ("", "What is the founder of the employer of Tamsin Orlov?", "Tamsin Orlov"),
        ("", "Tell me the country of the spouse of Zelda Fostyard.", "Zelda Fostyard"),
        ("of Tamsin Orlov?", "Merrow Yards employs Tamsin Orlov", "Merrow Yards"),
        ("Ann Lee", "Ann Lee went to the University of Basel", "University of Basel"),
        ("Zed Mills", "Zed Mills's founder is Bo Dahl", "Bo Dahl"),
        ("Ann Lee", "The trade of Ann Lee is banker", ""),
        ("Ann Lee", "", ""),
    ],
)
def test_new_entities_by_name(previous: str, step: str, name: str) -> None:
    assert _find_last_name(previous, step) == name


def test_logits_stay_and_an_empty_memory_answers_nothing(lm) -> None:
    require_logits_stay(lm, DeepEdit(retriever="states:0", new_tokens=3, most_states=2))


def test_prompts_leave_out_examples_that_do_not_fit() -> None:
    small = tiny_model("gpt2", seed=0)
    prompt = "Name it.\n\nA: 1\nB: 2\n\nA: 3\nB: 4\n\nA: 5\nB:"
    length = len(small.tokenizer(prompt).input_ids)
    room = small.context_length
    assert fit_examples(small, prompt, room - length) == prompt
    assert fit_examples(small, prompt, room - length + 1) == "Name it.\n\nA: 3\nB: 4\n\nA: 5\nB:"
    assert fit_examples(small, prompt, room) is None
    made = DeepEdit(retriever="states:0", new_tokens=3, most_states=2)
    (said,) = made.edit(small, FACTS).patch.answers(small, [ASKED])
    assert said is None or isinstance(said, str)


def test_options_are_checked() -> None:
    with pytest.raises(BadConfig, match="depth"):
        DeepEdit(depth=0)
    with pytest.raises(BadConfig, match="prompts"):
        DeepEdit(prompts={"steps": ""})


def test_on_the_pocket_model_consequences_follow(tmp_path) -> None:
    require_consequences("deepedit", tmp_path)


@pytest.mark.slow
def test_records_of_mquake_can_be_edited_and_asked() -> None:
    quick = {"retriever": "states:0", "new_tokens": 24, "most_states": 3}
    require_records(DeepEdit(**quick), editor(**quick))
