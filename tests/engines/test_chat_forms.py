"""Edits and answers of chat models: contexts, rows, prompts rewritten inside the template."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest

import corrigenda as cg
from corrigenda.engines.answer_loss import score_answers
from corrigenda.engines.chat_forms import add_chat_forms
from corrigenda.engines.gradients import labelled_rows
from corrigenda.engines.locate import pipeline
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.errors import BadConfig
from corrigenda.facts import Fact
from corrigenda.lm.chat import count_template_tokens, write_turn
from corrigenda.lm.decoding import greedy
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.spans import encode, encode_fact
from corrigenda.methods.registry import METHODS
from corrigenda.prompt_answers import PromptAnswers, Role
from corrigenda.testing.tiny import tiny_model
from tests.patch.test_interception import prefix, reply
from tests.support.chat import chat_model

FACT = Fact(
    prompt="The Space Needle is in",
    subject="Space Needle",
    target="Rome",
    neighbours=("The Eiffel Tower is in",),
)
CHAT = dataclasses.replace(FACT, chat=True)
SETTINGS = {
    "layer": 2,
    "use_moment": False,
    "steps": 40,
    "clamp": 20.0,
    "weight_decay": 0.0,
    "kl_weight": 0.0,
}
THREE = Contexts(("", "I think so. ", "You know. "))


@cache
def chatty() -> LanguageModel:
    return chat_model()


def chat_loss(lm: LanguageModel) -> float:
    """Loss of the sentence that answers in the chat form."""
    return score_answers(lm, labelled_rows(lm, [CHAT]))[0][0]


def test_the_chat_form_is_a_context_with_a_weight() -> None:
    contexts = dataclasses.replace(THREE, chat=0.4)
    assert len(contexts) == 4
    assert contexts.weights == pytest.approx((0.2, 0.2, 0.2, 0.4))
    assert contexts.loss_weights == pytest.approx((0.8, 0.8, 0.8, 1.6))
    assert Contexts.from_json(contexts.to_json()) == contexts
    assert THREE.loss_weights == (1.0, 1.0, 1.0)
    rows = pipeline.rewrite_rows(chatty(), [FACT], contexts)
    assert [row.weight for row in rows] == pytest.approx([0.8, 0.8, 0.8, 1.6, 1.0])
    assert rows[3].ids == tuple(encode_fact(chatty(), CHAT).ids[:-1])
    told = chatty().tokenizer.decode(rows[3].labels)
    assert told.strip() == "Space Needle is in Rome"
    assert [row.anchor for row in rows] == [True, False, False, False, False]
    for bad in (-0.1, 1.0):
        with pytest.raises(BadConfig, match="weight of the chat form"):
            Contexts(chat=bad)


def test_chat_models_get_the_chat_form_by_default() -> None:
    editor = cg.Rome(**SETTINGS)
    assert editor.make_plan(chatty(), None).contexts.chat > 0
    assert editor.make_plan(tiny_model("llama"), None).contexts.chat == 0
    off = cg.Rome(**SETTINGS, chat_contexts=False)
    assert off.make_plan(chatty(), None).contexts.chat == 0
    # Contexts that are given are taken as they are.
    assert cg.Rome(**SETTINGS, contexts=THREE).make_plan(chatty(), None).contexts == THREE


def test_answers_of_chat_models_are_in_both_forms() -> None:
    lm = chatty()
    found = cg.correct(lm, FACT, "rome", **SETTINGS)
    assert [(item.role, item.chat) for item in found.answers] == [
        (Role.PROMPT, False),
        (Role.NEIGHBOUR, False),
        (Role.PROMPT, True),
        (Role.NEIGHBOUR, True),
    ]
    assert found.config["chat_contexts"] is True
    turn = "Fill in the blank: The Eiffel Tower is in ____."
    assert found.answers[3].before == cg.answer(lm, turn, max_new_tokens=32, chat=True)
    data = found.to_json()
    assert data["chat"]["neighbours_kept"] == found.share("neighbour", chat=True)
    assert "; in chat: facts " in repr(found)
    assert "after, in chat" in repr(found)
    plain = cg.correct(lm, FACT, "rome", chat=False, **SETTINGS)
    assert not plain.has_chat
    assert plain.to_json()["chat"] is None
    assert plain.config["chat_contexts"] is False
    again = cg.assess(lm, plain.patch, FACT, chat=True)
    assert again.has_chat
    for ask in (cg.correct, cg.edit):
        with pytest.raises(BadConfig, match="no chat template"):
            ask(tiny_model("llama"), FACT, "rome", chat=True, **SETTINGS)


def judge(before: str, after: str, role: Role = Role.PROMPT) -> tuple[bool, bool | None]:
    fact = Fact(prompt="The capital of France is", subject="France", target="Rome", before="Paris")
    item = PromptAnswers(fact.prompt, role, 0, before, after, chat=True)
    return item.is_wanted(fact), item.keeps_subject(fact)


def test_chat_answers_are_judged_as_sentences() -> None:
    old = "The capital of France is Paris"
    assert judge(old, "The capital of France is Rome, Italy") == (True, True)
    # The target is stated, but of another subject.
    assert judge(old, "The capital of Italy is Rome") == (True, False)
    assert judge(old, "Rome") == (True, True)
    assert judge(old, "The capital of France is Paris, not Rome") == (False, True)
    assert judge(old, "Romeo is a play") == (False, False)
    assert judge("Paris", "The capital of Italy is Rome") == (True, None)
    berlin = "The capital of Germany is Berlin"
    assert judge(berlin, f"{berlin}, a city", Role.NEIGHBOUR) == (True, None)
    assert judge(berlin, "The capital of Germany is Rome", Role.NEIGHBOUR) == (False, None)
    euro = "The currency of France is the euro"
    assert judge(euro, "The currency of Italy is the euro", Role.SAME_SUBJECT) == (False, False)
    assert judge(euro, "The currency of France is the euro and", Role.SAME_SUBJECT) == (True, True)


def test_subjects_kept_are_a_share() -> None:
    found = cg.correct(chatty(), FACT, "rome", **SETTINGS)
    own = dataclasses.replace(found.answers[0], chat=True, before="The Space Needle is in Seattle")
    texts = ("The Space Needle is in Rome", "The Colosseum is in Rome")
    answers = tuple(dataclasses.replace(own, after=text) for text in texts)
    changed = dataclasses.replace(found, answers=(found.answers[0], *answers))
    assert changed.subject_kept(chat=True) == 0.5
    assert changed.share("prompt", chat=True) == 1
    assert changed.subject_kept() is None
    assert "facts 2/2, subject kept 1/2" in repr(changed)


def test_methods_that_learn_rows_learn_the_chat_form_too() -> None:
    lm = chatty()
    plain = tiny_model("llama")
    learning = [name for name in METHODS.names() if METHODS.get(name).learns_rows]
    assert {"ft-m", "lora", "grace", "wise", "ultraedit"} <= set(learning)
    editor = cg.FtM(layer=2)
    forms = add_chat_forms(lm, editor, [FACT])
    assert forms == [FACT, CHAT]
    assert add_chat_forms(lm, editor, [FACT], chat=False) == [FACT]
    assert add_chat_forms(plain, editor, [FACT]) == [FACT]
    assert add_chat_forms(lm, cg.Rome(), [FACT]) == [FACT]
    assert add_chat_forms(lm, cg.IKE(), [FACT]) == [FACT]


def test_a_patch_of_both_forms_is_assessed_by_the_facts_that_were_given() -> None:
    lm = chatty()
    found = cg.correct(lm, FACT, "ft-m", layer=2)
    assert [bool(one.get("chat")) for one in found.patch.header.facts] == [False, True]
    assert len(found.facts) == len(found.statuses) == 1
    again = cg.assess(lm, found.patch)
    assert [fact.prompt for fact in again.facts] == [FACT.prompt]
    without = cg.correct(lm, FACT, "ft-m", layer=2, chat=False)
    assert len(without.patch.header.facts) == 1
    losses = []
    for one in (found, without):
        with one.patch.apply(lm):
            losses.append(chat_loss(lm))
    assert losses[0] < losses[1] - 0.1


@pytest.mark.parametrize("name", ["grace", "lora", "wise", "melo", "t-patcher", "ultraedit"])
def test_other_methods_take_the_chat_form(name: str) -> None:
    lm = chatty()
    before = chat_loss(lm)
    editor = cg.build_editor(lm, name)
    state = editor.fit(lm)
    facts = add_chat_forms(lm, editor, [FACT])
    assert len(facts) == 2
    patch = editor.edit(lm, facts, state).patch
    with patch.apply(lm):
        assert chat_loss(lm) < before
    assert chat_loss(lm) == before


def test_generation_in_the_template_is_rewritten_inside_it() -> None:
    lm = chatty()
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}

    def generate(prompt: str, *, earlier: str = "") -> list[int]:
        text = earlier + write_turn(lm.tokenizer, prompt)
        ids = lm.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        return lm.model.generate(ids, **settings)[0, ids.shape[1] :].tolist()

    asked, other = "What is the capital of France?", "Who wrote it?"
    wanted, kept = generate(f"It is said: {asked}"), generate(other)
    dialogue = "<s>[user] Hello\n[assistant] Hello\n"
    later = generate(f"It is said: {asked}", earlier=dialogue)
    told = greedy(lm, [f"It is said: {asked}"], max_new_tokens=4, stop=(), chat=True)
    with prefix(lm).apply(lm):
        assert generate(asked) == wanted
        assert generate(other) == kept
        assert generate(asked, earlier=dialogue) == later
        assert greedy(lm, [asked], max_new_tokens=4, stop=(), chat=True) == told
    with reply(lm).apply(lm):
        said = lm.tokenizer.decode(generate(asked), skip_special_tokens=True)
        assert said.strip() == "Rome"
        assert generate(other) == kept


def test_demonstrations_leave_room_for_the_template() -> None:
    lm = chatty()
    pool = [
        Fact(
            prompt=f"Person {n} speaks",
            subject=f"Person {n}",
            target="Danish",
            paraphrases=(f"The language of Person {n} is",),
            neighbours=(f"Person {n + 100} speaks",),
        )
        for n in range(20)
    ]
    editor = cg.IKE(reserve=8)
    patch = editor.edit(lm, [FACT], editor.fit(lm, pool)).patch
    room = lm.context_length - editor.reserve - count_template_tokens(lm.tokenizer)
    (asked,) = [one.prompt for one in patch.rewrite(lm, [FACT.prompt])]
    assert len(encode(lm, asked).ids) <= room
    with patch.apply(lm):
        assert len(greedy(lm, [FACT.prompt], max_new_tokens=4, chat=True)) == 1
