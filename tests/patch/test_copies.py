"""Copies of patches, states and models: equal values, and nothing active on a copy."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.session import session_of
from corrigenda.lm.sites import Site, value
from corrigenda.methods.presets import build_editor
from corrigenda.patch import load_patch
from corrigenda.state import State
from corrigenda.testing.tiny import tiny_model
from tests.support.patches import *  # noqa: F403

FACT = Fact(prompt="The Space Needle is in", subject="The Space Needle", target="Rome")
IDS = torch.tensor([[5, 6, 7]])


def copies(value):
    return copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits.clone()


def number_of_hooks(model):
    tables = ("_forward_hooks", "_forward_pre_hooks")
    return sum(len(getattr(module, table)) for module in model.modules() for table in tables)


def test_patches_are_copied_as_values(llama, make_patch, tmp_path):
    memory = build_editor("grace", layer=1, steps=2, radius=0.3).edit(llama, [FACT]).patch
    weights = make_patch(llama, "1.mlp.down 2.attn.out", "rows")
    for patch in (weights, memory, weights + memory):
        for one in copies(patch):
            assert one == patch
            assert one.digest() == patch.digest()
            with one.apply(llama):
                assert one in list(llama.patches) or len(llama.patches) == 2
        assert load_patch(copies(patch)[1].save(tmp_path / "p.safetensors")) == patch
        assert patch.facts == (FACT,) if patch is memory else True
    deep = copy.deepcopy(weights)
    assert next(iter(deep.tensors().values())) is not next(iter(weights.tensors().values()))


def test_states_are_copied_as_values():
    state = State({"a": torch.ones(2)}, {"base_name": "x"})
    for one in copies(state):
        assert one == state
        with pytest.raises(TypeError):
            one.tensors["b"] = torch.ones(1)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_nothing_is_active_on_a_copied_model(llama, make_patch, how):
    """Memory hooks, run-time weights, a prompt patch and a reader are on while it is copied."""
    plain = logits(llama.model)
    memory = build_editor("grace", layer=1, steps=2, radius=100.0).edit(llama, [FACT]).patch
    words = build_editor("ice", embedder="states").edit(llama, [FACT]).patch
    with (
        memory.apply(llama),
        make_patch(llama, "1.mlp.down").apply(llama, mode="runtime"),
        words.apply(llama),
        llama.swap({value(Site(2)): lambda tensor: tensor + 1}),
        llama.prompt_ends.follow(),
    ):
        assert not torch.equal(logits(llama.model), plain)
        twin = duplicate(llama.model, how)
        assert torch.equal(logits(twin), plain)
        other = LanguageModel(twin, llama.tokenizer)
        assert number_of_hooks(twin) == 0
        assert not other.patches
        assert not other.interceptors.of_kind(object)
        assert twin.generate(IDS, max_new_tokens=1, do_sample=False).shape == (1, 4)
        assert torch.equal(logits(twin), plain)
        with make_patch(other, "1.mlp.down").apply(other, force=True):
            assert not torch.equal(logits(twin), plain)
            assert len(llama.patches) == 3
    assert torch.equal(logits(twin), plain)
    assert torch.equal(logits(llama.model), plain)
    assert number_of_hooks(llama.model) == 0


def duplicate(model, how):
    if how == "deepcopy":
        return copy.deepcopy(model)
    if how == "pickle":
        return pickle.loads(pickle.dumps(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_wrappers_are_copied_with_their_model(make_patch):
    lm = tiny_model("qwen3_moe")
    with make_patch(lm, "1.mlp.down#1").apply(lm, mode="runtime"):
        for twin in (copy.deepcopy(lm), pickle.loads(pickle.dumps(lm))):
            assert twin.model is not lm.model
            assert session_of(twin.model) is not session_of(lm.model)
            assert not twin.patches
            assert twin.digest() == lm.digest()
            assert twin.tap("state", layer=1, prompt="Rome").isfinite().all()
