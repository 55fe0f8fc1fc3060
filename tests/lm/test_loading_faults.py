"""Models and prompts that cannot be used get a code, not an error of a library."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch

import corrigenda as cg
from corrigenda.errors import BadConfig, EmptyTarget, MissingExtra, NotAModel
from corrigenda.lm.loading import require_weights
from corrigenda.lm.model import LanguageModel
from corrigenda.testing.tiny import tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lm = tiny_model("llama")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq"])
def test_a_quantised_checkpoint_without_its_package_names_it(folder: Path, method: str) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(MissingExtra, match=r"(?s)^CG504 .*needs a package.*Install it"):
        cg.load(folder)


def test_the_device_meta_is_refused(folder: Path) -> None:
    with pytest.raises(BadConfig, match=r'CG502 .*device "meta" holds no weights'):
        cg.load(folder, device="meta")
    with pytest.raises(BadConfig, match=r'CG502 .*device ""'):
        cg.load(folder, device="")
    with pytest.raises(NotAModel, match=r"CG307 .*weights are not in memory"):
        LanguageModel.load(folder, device="meta")


def test_offloaded_weights_are_refused() -> None:
    lm = tiny_model("llama")
    block = lm.model.model.layers[1]
    block.mlp.to_empty(device="meta")
    with pytest.raises(NotAModel, match=r"(?s)CG307 .*3 weights .*layers\.1\b.*one device"):
        cg.wrap(lm.model, lm.tokenizer)
    require_weights(tiny_model("gpt2").model, "gpt2")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_token_without_an_embedding_is_named(family: str) -> None:
    tiny = tiny_model(family)
    # Tiny models share one tokenizer.
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.add_tokens(["<extra>"])
    tiny.model.resize_token_embeddings(len(tokenizer) - 1)
    lm = cg.wrap(tiny.model, tokenizer)
    assert cg.answer(lm, "The river is") is not None
    for use in (
        lambda: cg.ask(lm, "The <extra> is"),
        lambda: cg.edit(lm, cg.Fact(prompt="The <extra> is", subject="The", target="x")),
        lambda: cg.trace(lm, "The <extra> river is", "river"),
        lambda: cg.neurons(lm, "The <extra> river is", paraphrases=[]),
    ):
        with pytest.raises(NotAModel, match=r'(?s)CG307 .*"<extra>" has the id .*resize_token'):
            use()


def test_a_bos_typed_in_a_prompt_is_noticed() -> None:
    lm = tiny_model("llama")
    bos = lm.tokenizer.bos_token
    fact = cg.Fact(prompt=f"{bos}The river is", subject="river", target="x")
    assert lm.tokenizer("a").input_ids[0] == lm.tokenizer.bos_token_id
    with pytest.warns(UserWarning, match="reads it twice"):
        cg.ask(lm, fact.prompt)
    with pytest.warns(UserWarning, match="reads it twice"):
        cg.answer(lm, ["The river is", fact.prompt])
    found = cg.correct(lm, fact, "ft-m", layer=1, epochs=1)
    assert any("reads it twice" in line for line in found.notices)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cg.ask(lm, f"The river {bos} is")


@pytest.mark.parametrize("prompt", ["caf\udce9 is", "The river\0 is"])
def test_prompts_hold_characters_only(prompt: str) -> None:
    lm = tiny_model("llama")
    for use in (
        lambda: cg.ask(lm, prompt),
        lambda: cg.answer(lm, [prompt]),
        lambda: cg.trace(lm, prompt, "is"),
        lambda: cg.neurons(lm, prompt),
    ):
        with pytest.raises(BadConfig, match=r"CG502 .*(surrogate|NUL)"):
            use()


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_answer_is_refused(answer: str) -> None:
    lm = tiny_model("llama")
    with pytest.raises(EmptyTarget, match=r"CG102 .*the answer is empty"):
        cg.trace(lm, "The river is", "river", answer=answer)
    with pytest.raises(EmptyTarget, match=r"CG102 .*the answer is empty"):
        cg.neurons(lm, "The river is", answer=answer)


@pytest.mark.parametrize("seed", [1 << 64, 10**30, -(1 << 63) - 1])
def test_seeds_beyond_a_generator_are_refused(seed: int) -> None:
    lm = tiny_model("llama")
    with pytest.raises(BadConfig, match=r"CG502 .*seed is out of range"):
        cg.trace(lm, "The river is", "river", seed=seed)
    with pytest.raises(BadConfig, match=r"CG502 .*seed is out of range"):
        cg.neurons(lm, "The river is", seed=seed)


def test_options_are_finite() -> None:
    for value in (float("nan"), float("inf"), "NaN", "-Infinity"):
        with pytest.raises(BadConfig, match=r"CG502 .*(finite|numbers?)"):
            cg.Rome(learning_rate=value)
    assert torch.isfinite(torch.tensor(cg.Rome().learning_rate))
