"""Benchmarks asked in the chat template: what is generated, what is scored, what a recipe says."""

from __future__ import annotations

import pytest

from corrigenda.cases import Probe, Protocol
from corrigenda.lm.chat import word_turn
from corrigenda.lm.decoding import greedy
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.scoring import Fed, rate
from corrigenda.lm.spans import encode_turn
from corrigenda.run.prober import ask
from corrigenda.run.queries import make_query
from corrigenda.run.spec import Recipe
from corrigenda.testing.tiny import tiny_model
from tests.support.chat import chat_model

CLOZE, QUESTION = "The Space Needle is in", "Where is the Space Needle?"
FED, RANK, GREEDY = Protocol.TEACHER_FORCED, Protocol.RANK, Protocol.GREEDY


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return chat_model()


def test_both_forms_are_asked_apart(lm: LanguageModel) -> None:
    probes = [
        Probe(prompt=prompt, expected=(("Rome",),), role="reliability", protocol=GREEDY)
        for prompt in (CLOZE, QUESTION)
    ]
    plain = [make_query(probe, 6) for probe in probes]
    chat = [make_query(probe, 6, chat=True) for probe in probes]
    given = ask(lm, [*plain, *chat]).given
    assert len(given) == 4
    for one in plain:
        assert given[one].answer == greedy(lm, [one.prompt], max_new_tokens=6)[0]
    for one in chat:
        turn = word_turn(one.prompt).write(one.prompt)
        assert given[one].answer == greedy(lm, [turn], max_new_tokens=6, chat=True)[0]


@pytest.mark.parametrize("protocol", [FED, RANK])
@pytest.mark.parametrize("prompt", [CLOZE, QUESTION])
def test_targets_are_scored_in_the_answer(
    lm: LanguageModel, protocol: Protocol, prompt: str
) -> None:
    probe = Probe(
        prompt=prompt,
        expected=(("Rome",),),
        rivals=("Paris",) if protocol is RANK else (),
        role="reliability",
        protocol=protocol,
    )
    question = make_query(probe, 20, chat=True)
    found = ask(lm, [question]).given[question]
    row = encode_turn(lm, prompt, target="Rome")
    assert lm.tokenizer.decode(row.target_ids).strip() == "Rome"
    (wanted,) = rate(lm, [Fed(row.ids[:-1], row.reads, row.target_ids)])
    assert found.token_ids == list(row.target_ids)
    assert found.log_probs == pytest.approx(wanted.log_probs, abs=1e-5)


def test_a_model_without_template_says_why_it_has_no_answer() -> None:
    probe = Probe(prompt=CLOZE, expected=(("Rome",),), role="reliability", protocol=GREEDY)
    question = make_query(probe, 6, chat=True)
    found = ask(tiny_model("gpt2"), [question]).given[question]
    assert found.skipped == "CG502 BadConfig"


def test_texts_are_continued_as_they_are() -> None:
    text = Probe(prompt=CLOZE, role="fluency", protocol=GREEDY)
    sampled = Probe(prompt=CLOZE, role="fluency", protocol=Protocol.SAMPLED)
    assert not make_query(text, 20, chat=True).chat
    assert not make_query(sampled, 20, chat=True).chat


def test_a_recipe_or_its_caller_says_whether_to_chat() -> None:
    recipe = Recipe(benchmark="pocketedit", methods=["ft-m"], ask={"chat": True})
    assert recipe.runs()[0].ask.chat
    assert not recipe.runs(chat=False)[0].ask.chat
    plain = Recipe(benchmark="pocketedit", methods=["ft-m"])
    assert not plain.runs()[0].ask.chat
    assert plain.runs(chat=True)[0].ask.chat
