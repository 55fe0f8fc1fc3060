"""The chat form of a pretrained chat model: known, edited, and its subject kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

import corrigenda as cg
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.lm.chat import write_turn
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.spans import encode_turn
from tests.real.conftest import CONTEXTS

FACT = cg.Fact(
    prompt="The official language of Brazil is",
    subject="Brazil",
    target="Japanese",
    before="Portuguese",
    paraphrases=("What is the official language of Brazil?",),
    neighbours=("The official language of Mexico is",),
)


def test_the_template_is_tokenised_once(lm: LanguageModel) -> None:
    question = "What is the capital of France?"
    wanted = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    assert encode_turn(lm, question).ids == wanted
    assert "Paris" in cg.answer(lm, question, chat=True, max_new_tokens=24)


def test_chat_contexts_carry_an_edit_to_chat_and_keep_its_subject(
    lm: LanguageModel, text: Path
) -> None:
    found = {}
    for chat in (0.0, 0.5):
        contexts = replace(Contexts(tuple(CONTEXTS["prefixes"])), chat=chat)
        editor = cg.Rome(layer=5, contexts=contexts)
        patch = editor.edit(lm, [FACT], editor.fit(lm, text)).patch
        found[chat] = cg.assess(lm, patch, [FACT])
    assert all(one.succeeded and one.has_chat for one in found.values())
    assert found[0.5].share("prompt", chat=True) == 1
    # Without them the model says the same of Japan.
    without, with_chat = (found[chat].subject_kept(chat=True) for chat in (0.0, 0.5))
    assert without is not None
    assert with_chat is not None
    assert with_chat > without


def test_facts_in_the_prompt_stay_within_the_template(lm: LanguageModel) -> None:
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    other = "Who wrote Hamlet?"

    def generate(prompt: str) -> str:
        turn = write_turn(lm.tokenizer, prompt)
        ids = lm.tokenizer(turn, add_special_tokens=False, return_tensors="pt").input_ids
        added = lm.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        return lm.tokenizer.decode(added[0, ids.shape[1] :])

    kept, before = generate(other), generate(FACT.paraphrases[0])
    with cg.edit(lm, FACT, "ice", scope="retrieve").apply(lm):
        assert generate(other) == kept
        assert generate(FACT.paraphrases[0]) != before
