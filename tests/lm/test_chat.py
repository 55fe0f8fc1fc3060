"""Chat templates: the text around a user's turn, its tokens, and facts in the chat form."""

from __future__ import annotations

import dataclasses

import pytest

from corrigenda.errors import BadConfig, PromptTooLong
from corrigenda.facts import Fact, as_facts
from corrigenda.lm.chat import chat_form, find_turn, has_chat_template, word_turn, write_turn
from corrigenda.lm.spans import encode, encode_fact, encode_turn
from corrigenda.testing.tiny import tiny_model
from tests.support.chat import REFUSING, SILENT, TEMPLATES, chat_model

FACT = Fact(prompt="The Space Needle is in", subject="Space Needle", target="Rome", chat=True)
QUESTION = "Where is the Space Needle?"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_are_those_of_the_template_alone(family: str, name: str) -> None:
    lm = chat_model(family, TEMPLATES[name])
    turn = [{"role": "user", "content": QUESTION}]
    wanted = lm.tokenizer.apply_chat_template(
        turn, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    found = encode_turn(lm, QUESTION)
    assert found.ids == wanted
    if lm.tokenizer.bos_token_id is not None:
        assert found.ids.count(lm.tokenizer.bos_token_id) == (name != "plain")
    assert found.text == write_turn(lm.tokenizer, QUESTION)
    asked = encode_turn(lm, QUESTION, target="Rome")
    assert asked.ids[: len(wanted)] == wanted
    assert lm.tokenizer.decode(asked.target_ids).strip() == "Rome"


def test_a_template_gives_the_white_space_before_an_answer() -> None:
    assert chat_form(chat_model(template=TEMPLATES["trimmed"]).tokenizer).separator == " "
    form = chat_form(chat_model(template=TEMPLATES["plain"]).tokenizer)
    assert form == ("[user] ", "\n[assistant] ", "")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_fact_in_the_chat_form_has_its_subject_in_the_turn(name: str) -> None:
    lm = chat_model(template=TEMPLATES[name])
    one = encode_fact(lm, FACT)
    form = chat_form(lm.tokenizer)
    said = "Fill in the blank: The Space Needle is in ____."
    answer = f"{form.separator}The Space Needle is in Rome"
    assert one.text == f"{form.before}{said}{form.after}{answer}"
    assert one.subject_first is not None
    assert one.subject_last is not None
    subject = one.ids[one.subject_first : one.subject_last + 1]
    assert lm.tokenizer.decode(subject).strip() == "Space Needle"
    assert lm.tokenizer.decode(one.target_ids).strip() == "The Space Needle is in Rome"
    # Asked, the prompt ends where the labels of an edit that is routed on it begin.
    asked = encode_turn(lm, FACT.prompt).ids
    assert one.ids[: one.prompt_last + 1] == asked
    assert one.subject_last < len(asked)
    found = encode_turn(lm, FACT.prompt, target="Rome", subject=FACT.span, labels="subject")
    assert found.ids == one.ids
    assert lm.tokenizer.decode(found.target_ids).strip() == "Space Needle is in Rome"
    assert list(found.labels) == list(range(len(one.ids)))[-len(found.target_ids) :]
    # As a query only the target is scored, after the sentence that leads to it.
    scored = encode_turn(lm, FACT.prompt, target="Rome")
    assert scored.text == one.text
    assert lm.tokenizer.decode(scored.target_ids).strip() == "Rome"


def test_the_answer_to_a_question_is_the_target() -> None:
    lm = chat_model()
    asked = dataclasses.replace(FACT, prompt=QUESTION)
    assert encode_fact(lm, asked).text == write_turn(lm.tokenizer, QUESTION) + "Rome"
    assert word_turn(QUESTION).write(QUESTION) == QUESTION
    assert word_turn("Name it:").write("Name it:") == "Name it:"


def test_prefixes_stay_within_the_turn() -> None:
    lm = chat_model()
    found = encode_fact(lm, FACT, prefix="I think so. ")
    assert "[user] I think so. Fill in the blank: The Space Needle" in found.text


def test_facts_say_whether_they_are_in_the_chat_form() -> None:
    assert not dataclasses.replace(FACT, chat=False).chat
    assert as_facts({"prompt": "a", "target": "b", "chat": True})[0].chat
    with pytest.raises(ValueError, match=r"CG101 .*chat"):
        as_facts({"prompt": "a", "target": "b", "chat": "perhaps"})


def test_templates_that_cannot_be_used_are_refused() -> None:
    lm = tiny_model("llama")
    assert not has_chat_template(lm.tokenizer)
    with pytest.raises(BadConfig, match=r"CG502 .*no chat template"):
        encode_fact(lm, FACT)
    with pytest.raises(BadConfig, match=r"refuses these turns .a system prompt"):
        encode_fact(chat_model(template=REFUSING), FACT)
    with pytest.raises(BadConfig, match="leaves out what the user says"):
        encode_fact(chat_model(template=SILENT), FACT)
    with pytest.raises(PromptTooLong, match="CG105"):
        encode_turn(chat_model(), "long " * 200)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_last_turn_of_a_dialogue_is_found(name: str) -> None:
    tokenizer = chat_model(template=TEMPLATES[name]).tokenizer
    dialogue = [
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": "Good day"},
        {"role": "user", "content": QUESTION},
    ]
    for turns in (dialogue, dialogue[-1:]):
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        found = find_turn(tokenizer, str(text))
        assert found is not None
        assert found.prompt == QUESTION
        assert found.write(QUESTION) == text
        assert ("Hello there" in found.before) == (len(turns) == 3)
    assert find_turn(tokenizer, QUESTION) is None


def test_plain_text_is_encoded_as_before() -> None:
    lm = chat_model()
    plain = dataclasses.replace(FACT, chat=False)
    assert encode_fact(lm, plain) == encode_fact(tiny_model("llama"), plain)
    assert encode(lm, "Rome", special_tokens=False).ids == encode(lm, "Rome").ids[1:]
    assert encode(lm, "Rome is", suffix=" not", target="big").text == "Rome is not big"
