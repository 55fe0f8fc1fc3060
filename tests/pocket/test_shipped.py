"""The shipped models: size, plain loading, knowledge, edits, and adapters that carry them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import corrigenda as cg
from corrigenda.almanac.exam import draw_edits, load_exam
from corrigenda.almanac.world import load_world
from corrigenda.knowledge.edit_trial import try_single_edits
from corrigenda.lm.decoding import score
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.presets import build_editor
from corrigenda.pocket import card

MODELS = {"pocket": (16e6, 32e6), "pocket-gpt2": (16e6, 12e6)}


def folder_of(name: str) -> Path:
    return Path(str(files("corrigenda").joinpath("pocket", name)))


@pytest.fixture(scope="module", params=MODELS)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return cg.load(request.param, dtype=torch.float32)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "cache"
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("CORRIGENDA_CACHE", str(folder))


def test_size_limits_hold(lm: LanguageModel) -> None:
    parameters, size = MODELS[lm.name]
    assert sum(parameter.numel() for parameter in lm.model.parameters()) <= parameters
    assert (folder_of(lm.name) / "model.safetensors").stat().st_size <= size
    assert lm.context_length >= 512


def test_transformers_alone_loads_it(lm: LanguageModel) -> None:
    assert card.loads_without_us(lm, folder_of(lm.name), "The capital of France is")


def test_it_knows_its_world(lm: LanguageModel) -> None:
    exam = load_exam(size=10, edits=2, recall=150)
    assert card.measure_right(lm, exam.recall) >= 0.75


def test_single_edits_take_and_come_off(lm: LanguageModel) -> None:
    editor = build_editor("rome", lm.name)
    digest = lm.digest()
    figures = try_single_edits(lm, editor, draw_edits(load_world(), 8), state=editor.fit(lm))
    assert figures.efficacy >= 0.75
    assert figures.locality >= 0.75
    assert lm.digest() == digest


def test_an_adapter_of_sixteen_facts_gives_the_edited_answers(
    lm: LanguageModel, tmp_path: Path
) -> None:
    editor = build_editor("memit", lm.name)
    facts = [item.fact for item in draw_edits(load_world(), 16)]
    patch = editor.edit(lm, facts, editor.fit(lm)).patch
    cg.export(patch, lm, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(folder_of(lm.name), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    pairs = [(fact.prompt, fact.target) for fact in facts]
    with patch.apply(lm):
        merged = [all(one.correct) for one in score(lm, pairs)]
    seen = []
    for prompt, target in pairs:
        ids = lm.tokenizer(f"{prompt} {target}", return_tensors="pt").input_ids
        count = len(lm.tokenizer(f" {target}", add_special_tokens=False).input_ids)
        with torch.no_grad():
            said = adapted(input_ids=ids).logits[0, -count - 1 : -1].argmax(-1)
        seen.append(torch.equal(said, ids[0, -count:]))
    assert seen == merged
    assert sum(seen) >= 12
