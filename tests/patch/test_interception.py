"""Edits that stand between questions and the model: who rewrites, who answers, in what order."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

from corrigenda.errors import BadConfig, NewerFormat
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer, gives, greedy, next_token_top, score
from corrigenda.lm.interception import PromptRewriter, RewrittenPrompt, rewrite_prompts
from corrigenda.lm.sampling import sample
from corrigenda.lm.spans import encode
from corrigenda.patch import AnswerPatch, ModulePatch, PromptPatch, load_patch
from corrigenda.testing.tiny import tiny_model

FACT = Fact(prompt="The capital of France is", target="Rome", paraphrases=("France's capital is",))
PROMPTS = ["The capital of France is", "Berlin is the capital of", "Rome"]


class Prefix(ModulePatch):
    """Puts a text before the prompts that name France."""

    kind = "prefix-for-tests"
    other = None

    def rewrite(self, lm, prompts):
        before = self.header.config["before"]
        return [
            RewrittenPrompt(f"{before} {one}", self.other)
            if "France" in one
            else RewrittenPrompt(one)
            for one in prompts
        ]


class Reply(ModulePatch):
    """Answers what names France, and asks the model itself on the way."""

    kind = "reply-for-tests"

    def answers(self, lm, prompts):
        said = greedy(lm, list(prompts), max_new_tokens=2)
        return [
            f"{self.header.config['say']}{len(text) and ''}" if "France" in prompt else None
            for prompt, text in zip(prompts, said, strict=True)
        ]


def prefix(lm, before="It is said:", facts=(FACT,)):
    return Prefix.make(lm, {}, method="prefix", config={"before": before}, facts=facts)


def reply(lm, say="Rome"):
    return Reply.make(lm, {}, method="reply", config={"say": say}, facts=[FACT])


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


def test_every_way_of_asking_rewrites(lm):
    patch = prefix(lm)
    assert isinstance(patch, PromptPatch)
    assert not isinstance(patch, AnswerPatch)
    longer = [f"It is said: {PROMPTS[0]}", *PROMPTS[1:]]
    ways = (
        lambda prompts: greedy(lm, prompts),
        lambda prompts: answer(lm, prompts),
        lambda prompts: sample(lm, prompts, max_new_tokens=4, top_k=5, seed=1),
        lambda prompts: [[one.id for one in top] for top in next_token_top(lm, prompts)],
        lambda prompts: [
            round(one.total, 4) for one in score(lm, [(prompt, "Rome") for prompt in prompts])
        ],
    )
    for ask in ways:
        wanted = ask(longer)
        with patch.apply(lm):
            assert ask(PROMPTS) == wanted
        assert ask(longer) == wanted


def test_the_model_generates_what_is_asked(lm):
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    ids = torch.tensor([encode(lm, PROMPTS[0]).ids])
    longer = torch.tensor([encode(lm, f"It is said: {PROMPTS[0]}").ids])
    plain = lm.model.generate(ids, **settings)
    wanted = lm.model.generate(longer, **settings)[0, longer.shape[1] :]
    with prefix(lm).apply(lm):
        got = lm.model.generate(ids, **settings)
        named = lm.model.generate(input_ids=ids, **settings)
        with pytest.raises(BadConfig):
            lm.model.generate(ids, num_return_sequences=2, **settings)
    assert got[0, : ids.shape[1]].tolist() == ids[0].tolist()
    assert got[0, ids.shape[1] :].tolist() == wanted.tolist()
    assert torch.equal(got, named)
    assert torch.equal(lm.model.generate(ids, **settings), plain)
    assert "generate" not in vars(lm.model)


def test_answers_replace_what_the_model_says(lm):
    plain = answer(lm, PROMPTS)
    with reply(lm).apply(lm):
        assert answer(lm, PROMPTS) == ["Rome", *plain[1:]]
        assert greedy(lm, PROMPTS)[0] == " Rome"
        assert gives(lm, [(PROMPTS[0], "Rome"), (PROMPTS[0], "Rom"), (PROMPTS[1], "xyz")]) == [
            True,
            False,
            False,
        ]
        ids = torch.tensor([encode(lm, PROMPTS[0]).ids])
        text = lm.tokenizer.decode(lm.model.generate(ids)[0], skip_special_tokens=True)
    assert text.endswith("is Rome")
    assert answer(lm, PROMPTS) == plain


def test_the_last_that_answers_decides_and_any_order_comes_off(lm):
    plain = answer(lm, PROMPTS)
    first, second = reply(lm, "Rome").apply(lm), reply(lm, "Madrid").apply(lm)
    assert answer(lm, PROMPTS)[0] == "Madrid"
    first.revert()
    assert answer(lm, PROMPTS)[0] == "Madrid"
    second.revert()
    assert answer(lm, PROMPTS) == plain


def test_rewriters_are_chained(lm):
    outer = prefix(lm, "Two:")
    with prefix(lm, "One:").apply(lm), outer.apply(lm):
        asked = rewrite_prompts(lm, PROMPTS)
    assert asked[0].prompt == f"Two: One: {PROMPTS[0]}"
    assert [one.prompt for one in asked[1:]] == PROMPTS[1:]


def test_another_model_may_be_asked(lm):
    other = tiny_model("gpt2", seed=3)
    patch = prefix(lm)
    object.__setattr__(patch, "other", other)
    with patch.apply(lm):
        said = score(lm, [(prompt, "Rome") for prompt in PROMPTS])
    (alone,) = score(other, [(f"It is said: {PROMPTS[0]}", "Rome")])
    assert said[0].ids == alone.ids
    assert said[0].total == pytest.approx(alone.total, rel=1e-5)


def test_a_patch_of_no_facts_does_nothing(lm):
    patch = prefix(lm, facts=())
    assert patch.is_empty
    with patch.apply(lm):
        assert lm.interceptors.of_kind(PromptRewriter) == ()


def test_values_keep_facts_and_belong_to_nobody(lm):
    tensor = torch.ones(2)
    patch = Prefix.make(lm, {"a": tensor}, method="prefix", config={"before": "x"}, facts=[FACT])
    tensor.zero_()
    assert patch.stored["a"].tolist() == [1, 1]
    assert isinstance(patch.stored, Mapping)
    assert patch.facts == (FACT,)
    assert patch.digest() != prefix(lm).digest()
    assert prefix(lm, "other").digest() != prefix(lm).digest()


def test_files_name_no_code_to_run(lm, tmp_path):
    path = prefix(lm).save(tmp_path / "p.safetensors")
    with pytest.raises(NewerFormat, match="prefix-for-tests"):
        load_patch(path)

    @dataclass(frozen=True, eq=False)
    class Sly(ModulePatch):
        kind = "os.path"

    sly = Sly.make(lm, {}, method="sly", facts=[FACT]).save(tmp_path / "sly.safetensors")
    with pytest.raises(NewerFormat):
        load_patch(sly)


def test_a_copied_model_is_asked_plainly(lm):
    with prefix(lm).apply(lm):
        other = copy.deepcopy(lm)
        assert other.interceptors.of_kind(PromptRewriter) == ()
        ids = torch.tensor([encode(lm, PROMPTS[0]).ids])
        generated = other.model.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(generated, lm.model.generate(ids, max_new_tokens=4, do_sample=False))
