"""Patches that leave the weights alone and work by hooks."""

import pytest
import torch

from corrigenda.errors import QuantisedWeights, WrongBase
from corrigenda.linalg import LowRank
from corrigenda.lm.sites import Site
from corrigenda.patch import Header, WeightPatch
from corrigenda.testing.quantised import quantise
from corrigenda.testing.tiny import tiny_model

FAMILIES = ("gpt2", "gptj", "gpt_neox", "llama", "gemma2", "phi3", "olmo2", "opt")
SITES = "0.mlp.down 2.mlp.down 2.attn.out"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}


def distance(first, second):
    return float((first.float() - second.float()).norm() / second.float().norm())


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("family", FAMILIES)
def test_run_time_agrees_with_merge(family, dtype, make_patch, bits, same_bits, logits):
    lm = tiny_model(family, dtype=dtype)
    before, plain = bits(lm), logits(lm)
    patch = make_patch(lm, "1.mlp.down 2.attn.out 2.mlp.up")
    with patch.apply(lm, mode="runtime"):
        assert same_bits(lm, before)
        running = logits(lm)
    assert torch.equal(logits(lm), plain)
    with patch.apply(lm):
        merged = logits(lm)
    assert distance(running, merged) <= TOLERANCE[dtype]
    assert distance(plain, merged) > 10 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("kind", ["dense", "rows"])
def test_other_forms_at_run_time(kind, make_patch, llama, logits):
    patch = make_patch(llama, SITES, kind)
    with patch.apply(llama, mode="runtime"):
        running = logits(llama)
    with patch.apply(llama):
        assert distance(running, logits(llama)) <= 1e-5


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_slices_of_fused_outputs_at_run_time(family, make_patch, logits):
    lm = tiny_model(family)
    patch = make_patch(lm, "1.attn.q 1.attn.v")
    with patch.apply(lm, mode="runtime"):
        running = logits(lm)
    with patch.apply(lm):
        assert distance(running, logits(lm)) <= 1e-5


def test_experts_at_run_time_in_any_order(make_patch, logits):
    lm = tiny_model("qwen3_moe")
    plain = logits(lm)
    one = make_patch(lm, "1.mlp.down#0 1.mlp.down#1 1.mlp.up#2", seed=1)
    two = make_patch(lm, "1.mlp.down#1 1.mlp.gate#3", seed=5)
    with one.apply(lm), two.apply(lm):
        both = logits(lm)
    with two.apply(lm):
        second = logits(lm)
    first_hooks = one.apply(lm, mode="runtime")
    second_hooks = two.apply(lm, mode="runtime")
    assert distance(logits(lm), both) <= 1e-5
    first_hooks.revert()
    assert distance(logits(lm), second) <= 1e-5
    assert distance(second, plain) > 1e-3
    second_hooks.revert()
    assert torch.equal(logits(lm), plain)


def test_both_modes_mix(make_patch, gpt2, bits, same_bits, logits):
    before, plain = bits(gpt2), logits(gpt2)
    one, two = make_patch(gpt2, SITES, seed=1), make_patch(gpt2, SITES, seed=7)
    with one.apply(gpt2), two.apply(gpt2):
        both = logits(gpt2)
    hooked = one.apply(gpt2, mode="runtime")
    merged = two.apply(gpt2)
    assert distance(logits(gpt2), both) <= 1e-5
    hooked.revert()
    with two.apply(tiny_model("gpt2")) as other:
        assert torch.equal(logits(gpt2), logits(other.lm))
    merged.revert()
    assert same_bits(gpt2, before)
    assert torch.equal(logits(gpt2), plain)


def test_run_time_hooks_generate(make_patch, llama):
    """Hooks see one token at a time behind a cache, and still add the same."""
    patch = make_patch(llama, SITES)
    ids = torch.tensor([[3, 7, 11]])
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with patch.apply(llama, mode="runtime"):
        running = llama.model.generate(ids, **settings)
    with patch.apply(llama):
        assert torch.equal(running, llama.model.generate(ids, **settings))


def test_no_hook_outlives_its_patch(make_patch, llama):
    def hooks():
        return sum(
            len(module._forward_hooks) + len(module._forward_pre_hooks)
            for module in llama.model.modules()
        )

    before = hooks()
    applied = make_patch(llama, SITES).apply(llama, mode="runtime")
    assert hooks() > before
    applied.revert()
    assert hooks() == before


def test_quantised_models_are_patched_at_run_time_only(make_patch, bits, same_bits, logits):
    plain = tiny_model("llama")
    patch = make_patch(plain, SITES)
    packed, unpacked = quantise(plain), tiny_model("llama")
    for layer in range(plain.num_layers):
        for part in plain.family.slots:
            unpacked.write(Site(layer, part), packed.module(Site(layer, part)).numbers())
    before = bits(packed)
    with pytest.raises(QuantisedWeights, match='mode="runtime"'):
        patch.apply(packed, mode="merge", force=True)
    with pytest.raises(WrongBase):
        patch.apply(packed)
    with patch.apply(packed, force=True), patch.apply(unpacked, force=True):
        assert same_bits(packed, before)
        assert distance(logits(packed), logits(unpacked)) <= 1e-5
    narrow = LowRank(torch.ones(3, 1), torch.ones(4, 1))
    with pytest.raises(WrongBase, match=r"\(3, 4\)"):
        WeightPatch({Site(0): narrow}, Header(method="m")).apply(packed, mode="runtime")
    assert same_bits(packed, before)
