"""Exported adapters in `peft`: merged, several at once, weighted, and switched off."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import corrigenda as cg
from corrigenda.exports.peft import export_peft
from corrigenda.lm.decoding import greedy
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch import WeightPatch, header_for
from corrigenda.testing.tiny import tiny_model
from tests.support.exported_edits import PROMPTS, make_edits
from tests.support.patches import change_of

peft = pytest.importorskip("peft", reason="adapters are loaded by peft")
pytestmark = pytest.mark.engines


def make_patch(lm, layer, part, seed):
    site = Site(layer, part)
    change = change_of(tuple(lm.weight(site).shape), "lowrank", seed)
    return WeightPatch({site: change}, header_for(lm, method="test"))


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 9, 17, 30, 2, 44]])).logits


def assert_same(first, second):
    assert float((first - second).norm() / second.norm()) < 1e-4


@pytest.fixture
def two(tmp_path):
    """A small model, and two patches of it with their adapters."""
    lm = tiny_model("llama")
    one, other = make_patch(lm, 1, "mlp.down", 1), make_patch(lm, 2, "attn.out", 2)
    export_peft(one, lm, tmp_path / "one")
    export_peft(other, lm, tmp_path / "other")
    return lm, one, other, tmp_path


def load(folder):
    model = peft.PeftModel.from_pretrained(tiny_model("llama").model, folder / "one", "one")
    model.load_adapter(folder / "other", "other")
    return model


def test_adapters_are_chosen_by_name_and_switched_off(two):
    lm, one, other, folder = two
    model = load(folder)
    for name, patch in (("one", one), ("other", other), ("one", one)):
        model.set_adapter(name)
        with patch.apply(lm):
            assert_same(logits_of(model), logits_of(lm.model))
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(lm.model))


def test_both_at_once(two):
    lm, one, other, folder = two
    model = load(folder)
    model.base_model.set_adapter(["one", "other"])
    with one.apply(lm), other.apply(lm):
        assert_same(logits_of(model), logits_of(lm.model))
        assert_same(logits_of(model.merge_and_unload()), logits_of(lm.model))


def test_a_weighted_sum_is_the_sum_of_scaled_patches(two):
    """For edits of the same layers, as peft wants them; others are exported together."""
    lm, one, _, folder = two
    other = make_patch(lm, 1, "mlp.down", 5)
    export_peft(other, lm, folder / "other")
    model = load(folder)
    weights = [0.5, 2.0]
    model.add_weighted_adapter(["one", "other"], weights, "mix", combination_type="cat")
    model.set_adapter("mix")
    with (one.scale(0.5) + other.scale(2.0)).apply(lm):
        assert_same(logits_of(model), logits_of(lm.model))


def test_one_folder_for_many_patches(two):
    lm, one, other, folder = two
    cg.export([one, other], lm, folder / "both")
    model = peft.PeftModel.from_pretrained(tiny_model("llama").model, folder / "both")
    with one.apply(lm), other.apply(lm):
        assert_same(logits_of(model.merge_and_unload()), logits_of(lm.model))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("method", ["rome", "memit"])
@pytest.mark.parametrize("name", ["pocket", "pocket-gpt2"])
def test_peft_and_transformers_answer_as_our_process(name, method, tmp_path):
    """Edits of a pocket model in both forms, on prompts about them and about others."""
    lm = cg.load(name)
    patch = make_edits(lm)[method]
    with patch.apply(lm):
        ours = greedy(lm, PROMPTS, max_new_tokens=6)
    assert ours != greedy(lm, PROMPTS, max_new_tokens=6)
    cg.export(patch, lm, tmp_path / "adapter")
    cg.export(patch, lm, tmp_path / "merged", to="merged")
    base = AutoModelForCausalLM.from_pretrained(lm.model.name_or_path, dtype="float32")
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="float32")
    for model in (adapted, merged):
        other = LanguageModel(model, lm.tokenizer, name="again")
        assert greedy(other, PROMPTS, max_new_tokens=6) == ours
