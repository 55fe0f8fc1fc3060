"""Putting patches on and taking them off, bit for bit."""

import copy
import gc
import itertools
import weakref

import pytest
import torch

from corrigenda.errors import NonFinite, NotApplied, UnknownSite, WeightsChanged, WrongBase
from corrigenda.linalg import LowRank
from corrigenda.lm.interception import RewrittenPrompt
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch import (
    Dense,
    Header,
    Patch,
    PromptPatch,
    WeightPatch,
    apply_hooks,
    header_for,
    ledger_of,
    save_patch,
)
from corrigenda.testing.tiny import tiny_model

FAMILIES = ("gpt2", "gptj", "gpt_neox", "llama", "gemma2", "phi3")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SITES = "0.mlp.down 2.mlp.down 2.attn.out"


@pytest.mark.parametrize("kind", ["lowrank", "dense", "rows"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_merge_then_revert_is_bitwise_identity(
    family, dtype, kind, make_patch, bits, same_bits, logits
):
    lm = tiny_model(family, dtype=dtype)
    before, plain = bits(lm), logits(lm)
    patch = make_patch(lm, SITES, kind)
    with patch.apply(lm) as applied:
        assert applied.active
        assert not torch.equal(logits(lm), plain)
        for site, change in patch.changes.items():
            moved = lm.weight(site).double()
            assert moved.shape == change.shape
    assert not applied.active
    assert same_bits(lm, before)
    assert torch.equal(logits(lm), plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_are_the_rounded_sum(family, dtype, make_patch):
    lm = tiny_model(family, dtype=dtype)
    first, second = make_patch(lm, SITES, seed=1), make_patch(lm, SITES, "dense", seed=2)
    site = Site(2)
    expected = lm.weight(site).double().clone()
    expected += first.changes[site].to_dense() + second.changes[site].delta.double()
    with first.apply(lm), second.apply(lm):
        now = lm.weight(site)
        assert now.dtype == dtype
        step = torch.finfo(dtype).eps
        # Rounded once: no entry is further from the exact sum than half a step of its dtype
        # (float64 reaches float16 by way of float32, which adds less than 0.1 % of that).
        assert ((now.double() - expected).abs() <= 0.5005 * step * expected.abs() + 1e-7).all()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_patches_come_off_in_any_order(order, make_patch, bits, same_bits):
    lm = tiny_model("llama", dtype=torch.bfloat16)
    before = bits(lm)
    patches = [make_patch(lm, SITES, seed=10 * number + 1) for number in range(3)]
    alone = {}
    for subset in itertools.chain.from_iterable(
        itertools.combinations(range(3), size) for size in range(4)
    ):
        active = [patches[number].apply(lm) for number in subset]
        alone[subset] = bits(lm)
        for entry in active:
            entry.revert()
    applied = [patch.apply(lm) for patch in patches]
    left = {0, 1, 2}
    assert tuple(lm.patches) == tuple(patches)
    for number in order:
        applied[number].revert()
        left.remove(number)
        assert same_bits(lm, alone[tuple(sorted(left))])
    assert len(lm.patches) == 0
    assert same_bits(lm, before)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3", "qwen2"])
def test_slices_of_fused_weights(family, make_patch, bits, same_bits, logits):
    lm = tiny_model(family)
    before, plain = bits(lm), logits(lm)
    query = make_patch(lm, "1.attn.q", seed=1)
    output = make_patch(lm, "1.attn.v", seed=2)
    others = {name: lm.weight(Site(1, name)).clone() for name in ("attn.k", "attn.v")}
    first = query.apply(lm)
    assert torch.equal(lm.weight(Site(1, "attn.k")), others["attn.k"])
    assert torch.equal(lm.weight(Site(1, "attn.v")), others["attn.v"])
    second = output.apply(lm)
    first.revert()
    assert torch.equal(lm.weight(Site(1, "attn.k")), others["attn.k"])
    assert not torch.equal(lm.weight(Site(1, "attn.v")), others["attn.v"])
    second.revert()
    assert same_bits(lm, before)
    assert torch.equal(logits(lm), plain)


def test_one_expert(make_patch, bits, same_bits):
    lm = tiny_model("qwen3_moe")
    before = bits(lm)
    patch = make_patch(lm, "1.mlp.down#1 1.mlp.down#0")
    with patch.apply(lm):
        assert not same_bits(lm, before)
        assert not torch.equal(lm.weight(Site(1, "mlp.down", 1)), lm.weight(Site(1, "mlp.down", 0)))
    assert same_bits(lm, before)


def test_sites_that_share_storage(make_patch, bits, same_bits):
    lm = tiny_model("llama")
    layers = lm.model.model.layers
    layers[2].mlp.down_proj.weight = layers[1].mlp.down_proj.weight
    lm = LanguageModel(lm.model, lm.tokenizer, name="tied")
    before = bits(lm)
    one, two = make_patch(lm, "1.mlp.down", seed=1), make_patch(lm, "2.mlp.down", seed=5)
    expected = lm.weight(Site(1)).double() + one.changes[Site(1)].to_dense()
    expected += two.changes[Site(2)].to_dense()
    first, second = one.apply(lm), two.apply(lm)
    torch.testing.assert_close(lm.weight(Site(2)).double(), expected, rtol=1e-6, atol=1e-6)
    first.revert()
    second.revert()
    assert same_bits(lm, before)


def test_an_exception_inside_reverts(make_patch, llama, bits, same_bits):
    before = bits(llama)
    with pytest.raises(KeyError), make_patch(llama, SITES).apply(llama):
        raise KeyError
    assert same_bits(llama, before)


def test_failing_halfway_leaves_the_model_as_it_was(make_patch, llama, bits, same_bits):
    """The second of two sites overflows float16 after the first was written."""
    lm = tiny_model("llama", dtype=torch.float16)
    before = bits(lm)
    kept = make_patch(lm, SITES, seed=3)
    huge = Dense(torch.full(tuple(lm.weight(Site(2)).shape), 1e6))
    fine = kept.changes[Site(0)]
    patch = WeightPatch({Site(0): fine, Site(2): huge}, header_for(lm, method="huge"))
    with pytest.raises(NonFinite, match=r"range of torch.float16.*\n.*2\.mlp\.down"):
        patch.apply(lm)
    assert same_bits(lm, before)
    assert len(lm.patches) == 0
    with kept.apply(lm):
        with_one = bits(lm)
        with pytest.raises(NonFinite):
            patch.apply(lm)
        assert same_bits(lm, with_one)
    assert same_bits(lm, before)


def test_reverting_twice_is_harmless(make_patch, llama, bits, same_bits):
    before = bits(llama)
    patch = make_patch(llama, SITES)
    with patch.apply(llama) as applied:
        applied.revert()
        assert same_bits(llama, before)
    applied.revert()
    with patch.apply(llama):
        applied.revert()
        assert not same_bits(llama, before)
    with pytest.raises(NotApplied, match="CG406"):
        ledger_of(llama).revert(patch)


def test_applying_twice_needs_force(make_patch, llama, bits, same_bits):
    before = bits(llama)
    patch = make_patch(llama, SITES)
    first = patch.apply(llama)
    once = bits(llama)
    with pytest.raises(NotApplied, match="active on this model already"):
        patch.apply(llama)
    with patch.apply(llama, force=True):
        assert not same_bits(llama, once)
    assert same_bits(llama, once)
    ledger_of(llama).revert(patch)
    assert not first.active
    assert same_bits(llama, before)


def test_what_others_write_into_a_patched_weight_is_lost_only_by_force(
    make_patch, llama, bits, same_bits
):
    before = bits(llama)
    applied = make_patch(llama, SITES).apply(llama)
    llama.write(Site(2), torch.zeros_like(llama.weight(Site(2))))
    trained = bits(llama)
    with pytest.raises(WeightsChanged, match=r"CG407.*training(.|\n)*2\.mlp\.down"):
        applied.revert()
    assert applied.active
    assert same_bits(llama, trained)
    applied.revert(force=True)
    assert same_bits(llama, before)


def test_wrappers_of_one_model_share_its_patches(make_patch, llama, bits, same_bits):
    before = bits(llama)
    other = LanguageModel(llama.model, llama.tokenizer, name="other")
    first = make_patch(llama, SITES, seed=1).apply(llama)
    second = make_patch(other, SITES, seed=5).apply(other)
    assert len(other.patches) == 2
    first.revert()
    second.revert()
    assert same_bits(llama, before)


def test_a_copied_model_starts_without_patches(make_patch, llama, bits, same_bits):
    patch = make_patch(llama, SITES)
    with patch.apply(llama):
        patched = bits(llama)
        twin = LanguageModel(copy.deepcopy(llama.model), llama.tokenizer, name="twin")
    assert same_bits(twin, patched)
    assert len(ledger_of(twin)) == 0
    with patch.apply(twin, force=True):
        assert not same_bits(twin, patched)
    assert same_bits(twin, patched)


def test_a_forgotten_model_is_freed(make_patch):
    lm = tiny_model("llama")
    make_patch(lm, SITES).apply(lm)
    make_patch(lm, SITES, seed=9).apply(lm, mode="runtime")
    alive = weakref.ref(lm.model)
    del lm
    gc.collect()
    assert alive() is None


def test_clear_takes_everything_off(make_patch, llama, bits, same_bits):
    before = bits(llama)
    make_patch(llama, SITES, seed=1).apply(llama)
    make_patch(llama, SITES, seed=2).apply(llama, mode="runtime")
    ledger_of(llama).clear()
    assert len(llama.patches) == 0
    assert same_bits(llama, before)


def test_the_wrong_base_is_refused_unless_forced(make_patch, llama, bits, same_bits):
    patch = make_patch(llama, SITES)
    other = tiny_model("llama", seed=1)
    before = bits(other)
    for mode in ("merge", "runtime"):
        with pytest.raises(WrongBase, match="CG401") as caught:
            patch.apply(other, mode=mode)
    assert "force" in str(caught.value)
    assert same_bits(other, before)
    with patch.apply(other, force=True):
        assert not same_bits(other, before)
    assert same_bits(other, before)


def test_another_dtype_is_another_base(make_patch, llama):
    with pytest.raises(WrongBase, match="dtype"):
        make_patch(llama, SITES).apply(tiny_model("llama", dtype=torch.bfloat16))


def test_shapes_must_fit_even_by_force(llama, bits, same_bits):
    before = bits(llama)
    wrong = WeightPatch(
        {Site(0): LowRank.zeros(3, 4) + LowRank(torch.ones(3, 1), torch.ones(4, 1))},
        Header(method="m"),
    )
    with pytest.raises(WrongBase, match=r"\(3, 4\)"):
        wrong.apply(llama, force=True)
    deep = WeightPatch({Site(99): wrong.changes[Site(0)]}, Header(method="m"))
    with pytest.raises(UnknownSite):
        deep.apply(llama, force=True)
    assert same_bits(llama, before)
    assert len(llama.patches) == 0


def test_the_base_is_the_pristine_model_while_others_are_active(make_patch, llama):
    """Two patches made on the same model go on together, in either order."""
    one, two = make_patch(llama, SITES, seed=1), make_patch(llama, SITES, seed=2)
    assert one.header.base_digest == two.header.base_digest == llama.digest()
    with two.apply(llama), one.apply(llama):
        assert tuple(llama.patches) == (two, one)


def test_a_patch_made_on_top_of_others_names_them(make_patch, llama):
    base = llama.digest()
    one, two = make_patch(llama, "1.mlp.down", seed=1), make_patch(llama, "2.mlp.down", seed=2)
    with one.apply(llama), two.apply(llama):
        three = make_patch(llama, "3.mlp.down", seed=3)
    assert three.header.base_digest == base
    assert three.header.prerequisites == (one.digest(), two.digest())
    with pytest.raises(WrongBase, match=r"2 other patch\(es\), of which 2 are not active"):
        three.apply(llama)
    with one.apply(llama):
        with pytest.raises(WrongBase, match=two.digest()[:12]):
            three.apply(llama)
        three.apply(llama, force=True).revert()
        with two.apply(llama), three.apply(llama):
            assert len(llama.patches) == 3
    with (one + two).apply(llama), three.apply(llama):
        assert len(llama.patches) == 2
    whole = one + two + three
    assert whole.header.prerequisites == ()
    with whole.apply(llama):
        pass
    assert (two + three).header.prerequisites == (one.digest(),)


def test_empty_patches_change_nothing(llama, bits, same_bits):
    before = bits(llama)
    empty = WeightPatch({}, header_for(llama, method="none"))
    assert empty.is_empty
    with empty.apply(llama), empty.apply(llama), empty.apply(llama, mode="runtime"):
        assert same_bits(llama, before)
    assert same_bits(llama, before)


def test_unknown_modes(make_patch, llama):
    with pytest.raises((ValueError, TypeError), match="merge"):
        make_patch(llama, SITES).apply(llama, mode="merged")


class Shout:
    """A patch of prompts, the smallest there is."""

    def __init__(self, header):
        self.header = header
        self.is_empty = False

    def digest(self):
        return "shout"

    def tensors(self):
        return {}

    def rewrite(self, lm, prompts):
        return [RewrittenPrompt(prompt.upper()) for prompt in prompts]

    def save(self, path):
        return save_patch(self, path)

    def apply(self, lm, *, mode="merge", force=False):
        return apply_hooks(self, lm, force=force)


def test_patches_without_weights_share_the_machinery(llama, make_patch, bits, same_bits):
    before = bits(llama)
    shout = Shout(header_for(llama, method="shout"))
    assert isinstance(shout, Patch)
    assert isinstance(shout, PromptPatch)
    with shout.apply(llama) as applied, make_patch(llama, SITES).apply(llama):
        assert next(iter(llama.patches)) is shout
        with pytest.raises(NotApplied):
            shout.apply(llama)
    assert not applied.active
    assert same_bits(llama, before)
