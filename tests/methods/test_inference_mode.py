"""`torch.inference_mode` and `torch.no_grad` around everything: edits learn as they do outside.

That an edit in inference mode gives an equal patch is a law, checked for every method.
"""

from __future__ import annotations

import pytest
import torch

from corrigenda.errors import BadConfig
from corrigenda.facts import Fact
from corrigenda.lm.decoding import greedy
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.presets import build_editor
from corrigenda.testing.tiny import tiny_model

FACT = Fact(prompt="The Space Needle is in", subject="The Space Needle", target="Rome")
OPTIONS: dict[str, dict[str, object]] = {
    "ft-l": {"layer": 1, "epochs": 4},
    "grace": {"layer": 1, "steps": 3, "radius": 0.3},
}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("method", ["ft-l", "grace"])
def test_an_edit_learns_and_is_applied_and_reverted_inside(method: str, mode: type) -> None:
    lm = tiny_model("gpt2", layers=3)
    digest, editor = lm.digest(), build_editor(method, **OPTIONS[method])
    expected = editor.edit(lm, [FACT]).patch
    with expected.apply(lm):
        edited = greedy(lm, [FACT.prompt])
    with mode():
        patch = editor.edit(lm, [FACT]).patch
        assert patch == expected
        applied = patch.apply(lm)
        assert greedy(lm, [FACT.prompt]) == edited
    assert not any(tensor.is_inference() for tensor in patch.tensors().values())
    # What is applied inside comes off outside, and the model can still be trained.
    second = editor.edit(lm, [FACT]).patch
    assert second is not None
    applied.revert()
    assert lm.digest() == digest
    assert editor.edit(lm, [FACT]).patch == expected


def test_a_patch_made_inside_is_an_ordinary_value() -> None:
    lm = tiny_model("gpt2", layers=3)
    with torch.inference_mode():
        patch = build_editor("ft-l", **OPTIONS["ft-l"]).edit(lm, [FACT]).patch
        doubled = patch.scale(2.0)
        total = patch + doubled
    for one in (patch, doubled, total):
        assert not any(tensor.is_inference() for tensor in one.tensors().values())


def test_a_state_is_fitted_inside() -> None:
    lm = tiny_model("gpt2", layers=3)
    editor = build_editor("ultraedit", layers=[1], learning_rate=0.01, warm_up=0)
    with torch.inference_mode():
        state = editor.fit(lm)
        patch = editor.edit(lm, [FACT], state).patch
    assert patch == editor.edit(lm, [FACT], editor.fit(lm)).patch


def test_a_model_is_loaded_inside_but_not_made_there() -> None:
    with torch.inference_mode():
        lm = LanguageModel.load("pocket-gpt2")
        assert not any(parameter.is_inference() for parameter in lm.model.parameters())
    with torch.inference_mode():
        model = type(lm.model)(lm.model.config)
    with pytest.raises(BadConfig, match=r"CG502.*inference_mode"):
        LanguageModel(model, lm.tokenizer)
