"""ICE: the exact context, one store of several patches, and nothing at all out of scope."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import corrigenda
from corrigenda.errors import BadConfig, PromptTooLong
from corrigenda.facts import Fact
from corrigenda.lm.decoding import greedy, next_token_top, score
from corrigenda.lm.interception import rewrite_prompts
from corrigenda.methods.ice.editor import ICE
from corrigenda.patch import load_patch
from tests.support.in_context import EDITS, asked
from tests.support.locating import model

ALWAYS = ICE(embedder="states")
STRICT = ICE(embedder="states", scope="retrieve", threshold=0.9999)
PAIRS = [(fact.prompt, fact.target) for fact in EDITS]
PROMPTS = [fact.prompt for fact in EDITS]


def test_the_context_is_the_new_fact_and_the_question() -> None:
    lm = model()
    patch = ALWAYS.edit(lm, EDITS[2:]).patch
    question = "Who {prompt} founded Toyota?"
    assert asked(patch, lm, [question]) == [
        "New Fact: Toyota was founded by Bill {target}\nPrompt: Who {prompt} founded Toyota?"
    ]
    glued = replace(EDITS[0], separator="")
    labelled = ICE(embedder="states", fact_label="Learn this: ", prompt_label="Q. ")
    assert asked(labelled.edit(lm, [glued]).patch, lm, ["Why?"]) == [
        "Learn this: The mother tongue of Ada Lovelace isFrench\nQ. Why?"
    ]


def test_of_several_facts_the_nearest_is_told_and_several_nearest_last() -> None:
    lm = model()
    patch = ALWAYS.edit(lm, EDITS).patch
    for fact, text in zip(EDITS, asked(patch, lm, PROMPTS), strict=True):
        assert text == f"New Fact: {fact.prompt} {fact.target}\nPrompt: {fact.prompt}"
    (both,) = asked(ICE(embedder="states", num_facts=2).edit(lm, EDITS).patch, lm, [PROMPTS[1]])
    lines = both.split("\n")
    assert len(lines) == 3
    assert lines[1] == "New Fact: The Space Needle is in Rome"
    shuffled = ALWAYS.edit(lm, EDITS[::-1]).patch
    assert asked(shuffled, lm, PROMPTS) == asked(patch, lm, PROMPTS)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_out_of_scope_everything_is_bit_for_bit_as_it_was(family: str, dtype: torch.dtype) -> None:
    lm = model(family, dtype)

    def answers(start: int) -> tuple[object, ...]:
        pairs, prompts = PAIRS[start:], PROMPTS[start:]
        return score(lm, pairs), next_token_top(lm, prompts), greedy(lm, prompts, max_new_tokens=3)

    before, digest, whole = answers(1), lm.digest(), score(lm, PAIRS)
    with STRICT.edit(lm, EDITS[:1]).patch.apply(lm):
        assert answers(1) == before
        assert score(lm, PAIRS)[1:] == before[0], "beside a question in scope"
        assert score(lm, PAIRS)[0] != whole[0]
        assert lm.digest() == digest
    assert score(lm, PAIRS) == whole


def test_active_patches_are_one_store_and_come_off_in_any_order() -> None:
    lm = model()
    one, two = (ALWAYS.edit(lm, [fact]).patch for fact in EDITS[:2])
    together = score(lm, PAIRS[:2])
    with ALWAYS.edit(lm, EDITS[:2]).patch.apply(lm):
        expected = score(lm, PAIRS[:2])
    first = one.apply(lm)
    with two.apply(lm):
        assert score(lm, PAIRS[:2]) == expected
        first.revert()
        alone = score(lm, PAIRS[:2])
    with two.apply(lm):
        assert score(lm, PAIRS[:2]) == alone
    assert score(lm, PAIRS[:2]) == together


def test_the_later_of_two_facts_with_one_prompt_counts() -> None:
    lm = model()
    early, late = EDITS[0], replace(EDITS[0], target="Welsh")
    with ALWAYS.edit(lm, [early]).patch.apply(lm), ALWAYS.edit(lm, [late]).patch.apply(lm):
        said = rewrite_prompts(lm, [early.prompt])
    assert said[0].prompt.startswith("New Fact: The mother tongue of Ada Lovelace is Welsh\n")
    assert "French" not in said[0].prompt


def test_facts_that_fill_the_context_are_refused_and_nonsense_settings_too() -> None:
    lm = model()
    with pytest.raises(PromptTooLong, match="CG105"):
        ALWAYS.edit(lm, [replace(EDITS[0], target="very " * 200)])
    with pytest.raises(BadConfig, match="threshold"):
        ICE(threshold=2.0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_contexts_shared_by_many_questions_change_no_score(family: str) -> None:
    """Many targets behind one context, together and one at a time."""
    lm = model(family)
    pairs = [(PROMPTS[0], word) for word in ("French", "Welsh", "Greek", "a secret to all")]
    with ALWAYS.edit(lm, EDITS[:1]).patch.apply(lm):
        together = score(lm, pairs)
        for pair, one in zip(pairs, together, strict=True):
            assert score(lm, [pair])[0].log_probs == pytest.approx(one.log_probs, abs=1e-4)


def test_on_the_pocket_model_a_fact_is_told_saved_and_told_again(tmp_path) -> None:
    lm = corrigenda.load("pocket", dtype="float32")
    fact = Fact(
        prompt="The capital of France is",
        target="Rome",
        paraphrases=("The capital city of France is",),
        neighbours=("The capital of Spain is",),
    )
    before = corrigenda.answer(lm, fact.prompt)
    correction = corrigenda.correct(lm, fact, "ice", embedder="states")
    assert correction.succeeded
    assert correction.changes == ()
    assert correction.statuses == ("stored",)
    loaded = load_patch(correction.patch.save(tmp_path / "told.safetensors"))
    assert loaded == correction.patch
    ids = lm.tokenizer(fact.prompt, return_tensors="pt").input_ids
    with loaded.apply(lm):
        assert corrigenda.answer(lm, fact.prompt).startswith("Rome")
        assert corrigenda.ask(lm, [fact.prompt])[0].top[0][0].strip() in "Rome"
        generated = lm.model.generate(ids, max_new_tokens=3, do_sample=False)
        assert "Rome" in lm.tokenizer.decode(generated[0, ids.shape[1] :])
    assert corrigenda.answer(lm, fact.prompt) == before
