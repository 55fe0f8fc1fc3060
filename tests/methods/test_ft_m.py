"""FT-M: teacher forcing on the target; on a trained model it teaches and mostly spares the rest."""

from __future__ import annotations

import pytest
import torch

import corrigenda as cg
from corrigenda.almanac.exam import draw_edits
from corrigenda.almanac.world import load_world
from corrigenda.facts import Fact
from corrigenda.lm.decoding import score
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods.finetune.editor import FtM
from corrigenda.methods.presets import build_editor
from corrigenda.patch.changes import dense
from corrigenda.pocket import card
from tests.support.locating import FACTS, model

OPTIONS = {"layer": 1, "epochs": 40, "learning_rate": 5e-2}


@pytest.fixture(scope="module")
def pocket() -> LanguageModel:
    return cg.load("pocket", dtype=torch.float32)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_every_token_of_the_target_becomes_the_likeliest(family: str) -> None:
    lm = model(family)
    patch = FtM(**OPTIONS, batch_size=len(FACTS)).edit(lm, FACTS).patch
    pairs = [(fact.prompt, fact.target) for fact in FACTS]
    with patch.apply(lm):
        assert all(all(one.correct) for one in score(lm, pairs))


def test_the_order_within_a_mini_batch_does_not_matter() -> None:
    lm = model("llama", torch.float64)
    editor = FtM(layer=1, epochs=5, batch_size=len(FACTS))
    one, other = (editor.edit(lm, facts).patch for facts in (FACTS, FACTS[::-1]))
    one, other = (dense(patch.changes[Site(1)]) for patch in (one, other))
    assert (one - other).norm() <= 1e-9 * one.norm()


def test_single_edits_on_the_pocket_model(pocket: LanguageModel) -> None:
    editor = build_editor("ft-m", pocket.name)
    figures = card.try_single_edits(pocket, editor, draw_edits(load_world(), 6, seed=3))
    assert figures.efficacy is not None
    assert figures.efficacy >= 0.75
    assert figures.locality is not None
    assert figures.locality >= 0.2


def test_a_fact_is_taught_once_and_comes_off_on_the_pocket_model(pocket: LanguageModel) -> None:
    fact = Fact(prompt="The capital of France is", target="Rome")
    before = cg.answer(pocket, fact.prompt)
    patch = build_editor("ft-m", pocket.name).edit(pocket, [fact]).patch
    assert patch.header.notes["status"] == ["written"]
    assert patch.header.notes["stop"] == "loss"
    with patch.apply(pocket):
        assert cg.answer(pocket, fact.prompt).startswith("Rome")
        again = build_editor("ft-m", pocket.name).edit(pocket, [fact]).patch
    assert again.is_empty
    assert again.header.notes["steps"] == 0
    assert again.header.notes["status"] == ["written"]
    assert cg.answer(pocket, fact.prompt) == before
