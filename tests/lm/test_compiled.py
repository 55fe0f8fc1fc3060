"""Models given to `torch.compile`, in every way: hooks act, or are refused; never nothing."""

from __future__ import annotations

import pytest
import torch

from corrigenda.errors import CompiledModel
from corrigenda.lm.compiled import unwrap
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens, value
from corrigenda.testing.tiny import tiny_model
from tests.support.patches import *  # noqa: F403

IDS = torch.tensor([[5, 6, 7]])
SITES = "1.mlp.down"


@pytest.fixture(autouse=True)
def _reset():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits.clone()


@pytest.mark.parametrize("given", ["wrapper", "original"])
def test_a_wrapper_of_the_whole_model_obeys(make_patch, given: str) -> None:
    """Also where the wrapper was called before, and where only its model was handed over."""
    lm = tiny_model("gpt2", layers=2)
    plain = run(lm.model)
    compiled = torch.compile(lm.model, backend="eager")
    torch.testing.assert_close(run(compiled), plain)
    lm = LanguageModel(compiled if given == "wrapper" else lm.model, lm.tokenizer)
    assert unwrap(compiled) is lm.model
    assert lm.tap("mlp.down", layer=1, prompt="Rome").isfinite().all()
    patch = make_patch(lm, SITES)
    with patch.apply(lm):
        edited = run(lm.model)
        assert not torch.allclose(edited, plain)
        torch.testing.assert_close(run(compiled), edited)
    torch.testing.assert_close(run(compiled), plain)
    with patch.apply(lm, mode="runtime"):
        torch.testing.assert_close(run(lm.model), edited)
        torch.testing.assert_close(run(compiled), edited)
    torch.testing.assert_close(run(compiled), plain)


@pytest.mark.parametrize("how", ["whole", "blocks", "block wrappers", "inner module"])
def test_what_is_compiled_in_place_is_refused_where_hooks_are_needed(make_patch, how: str) -> None:
    lm = tiny_model("gpt2", layers=2)
    blocks = lm.model.transformer.h
    if how == "whole":
        lm.model.compile(backend="eager")
    elif how == "inner module":
        blocks[1].mlp.compile(backend="eager")
    else:
        for place, block in enumerate(list(blocks)):
            if how == "blocks":
                block.compile(backend="eager")
            else:
                blocks[place] = torch.compile(block, backend="eager")
    lm = LanguageModel(lm.model, lm.tokenizer)
    plain = run(lm.model)
    patch = make_patch(lm, SITES)
    with pytest.raises(CompiledModel, match=r"CG308(.|\n)*merge"):
        patch.apply(lm, mode="runtime")
    assert not lm.patches
    with pytest.raises(CompiledModel):
        lm.tap("mlp.down", layer=1, prompt="Rome")
    with pytest.raises(CompiledModel), lm.swap({value(Site(1)): lambda tensor: tensor}):
        pass
    with patch.apply(lm):
        assert not torch.allclose(run(lm.model), plain)
    torch.testing.assert_close(run(lm.model), plain)


def test_other_blocks_may_be_compiled(make_patch) -> None:
    lm = tiny_model("gpt2", layers=3)
    plain = run(lm.model)
    lm.model.transformer.h[2].compile(backend="eager")
    with make_patch(lm, SITES).apply(lm, mode="runtime"):
        assert not torch.allclose(run(lm.model), plain)


def test_a_hook_that_is_passed_by_is_noticed() -> None:
    """A block whose projection is replaced by a kernel that does not call the module."""
    lm = tiny_model("gpt2", layers=2)
    mlp = lm.model.transformer.h[1].mlp

    def kernel(hidden):
        inner = mlp.act(mlp.c_fc(hidden))
        return inner @ mlp.c_proj.weight + mlp.c_proj.bias

    mlp.forward = kernel
    with pytest.raises(CompiledModel, match=r"1\.mlp\.down value"):
        lm.tap("mlp.down", layer=1, prompt="Rome")
    with lm.swap({value(Site(1)): lambda tensor: tensor + 1}), pytest.raises(CompiledModel):
        lm.logits(Tokens(IDS, torch.ones_like(IDS)))
