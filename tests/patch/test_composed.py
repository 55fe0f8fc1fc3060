"""Patches of several kinds as one: applied, reverted, saved and compared like any other."""

from contextlib import contextmanager

import pytest
import torch

from corrigenda.errors import CorruptFile, NotApplied, NotExportable, WrongBase
from corrigenda.facts import Fact
from corrigenda.lm.decoding import greedy, next_token_top
from corrigenda.lm.interception import RewrittenPrompt
from corrigenda.lm.sites import Site, value
from corrigenda.patch import ComposedPatch, Header, ModulePatch, WeightPatch, header_for, load_patch
from corrigenda.patch import module as patch_module
from corrigenda.patch.compare import add_up

PROMPTS = ["The capital of France is", "Rome is"]


class Before(ModulePatch):
    """Puts words before each prompt."""

    kind = "test-before"

    def rewrite(self, lm, prompts):
        return [RewrittenPrompt(f"{self.header.config['words']} {one}") for one in prompts]


class Push(ModulePatch):
    """Adds a vector to the output of a block's feed-forward part."""

    kind = "test-push"

    @contextmanager
    def hooks(self, lm):
        with lm.swap({value(Site(1)): lambda tensor: tensor + self.stored["push"]}):
            yield


@pytest.fixture(autouse=True)
def kinds(monkeypatch):
    found = {one.kind: one for one in (Before, Push)}
    monkeypatch.setattr("corrigenda.patch.load.module_class", found.get)
    assert patch_module.module_class is not None


def before(lm, words="Again,"):
    fact = Fact(prompt="A", target="B", subject="A")
    return Before.make(lm, {}, method="before", config={"words": words}, facts=[fact])


def push(lm, size=1.0):
    fact = Fact(prompt="C", target="D", subject="C")
    vector = torch.full((lm.d_model,), size)
    return Push.make(lm, {"push": vector}, method="push", facts=[fact])


def test_a_sum_does_what_both_do(llama, make_patch, bits, same_bits):
    start, plain = bits(llama), greedy(llama, PROMPTS)
    words, weights = before(llama), make_patch(llama, "1.mlp.down 2.mlp.down")
    with words.apply(llama), weights.apply(llama):
        expected, merged = next_token_top(llama, PROMPTS), bits(llama)
    both = words + weights
    assert isinstance(both, ComposedPatch)
    assert not both.is_empty
    with both.apply(llama) as applied:
        assert next_token_top(llama, PROMPTS) == expected
        assert same_bits(llama, merged)
        assert applied.mode == "runtime"
        assert tuple(llama.patches) == (words, weights)
        with pytest.raises(NotApplied):
            both.apply(llama)
        for part in (words, weights):
            with pytest.raises(NotApplied):
                part.apply(llama)
        with pytest.raises(NotExportable, match="unedited model"):
            llama.model.save_pretrained("never-written")
    assert same_bits(llama, start)
    assert greedy(llama, PROMPTS) == plain
    both.apply(llama, mode="runtime")
    assert same_bits(llama, start)
    llama.patches.revert(both)
    assert not llama.patches
    assert greedy(llama, PROMPTS) == plain


def test_sums_are_associative_and_nothing_is_neutral(llama, make_patch):
    a, b = before(llama), push(llama)
    c, d = make_patch(llama, "1.mlp.down", seed=1), make_patch(llama, "1.mlp.down", seed=5)
    for first, second, third in [(a, b, c), (a, c, d), (c, d, a), (c, a, d), (a, c, b)]:
        left, right = (first + second) + third, first + (second + third)
        assert left == right
        assert left.digest() == right.digest()
        assert left.header.to_json() == right.header.to_json()
    empty = WeightPatch({}, header_for(llama, method="none"))
    for one in (a, c, a + c):
        assert one + empty is one
        assert empty + one is one
    assert type(c + d) is WeightPatch
    assert [type(one) for one in (a + c + d).members] == [Before, WeightPatch]
    assert add_up([a, c, d]) == a + c + d


def test_sums_keep_header_and_order(llama, make_patch):
    a, c = before(llama), make_patch(llama, "1.mlp.down")
    both = a + c
    assert both.header.method == "before + test"
    assert [part.digest for part in both.header.parts] == [a.digest(), c.digest()]
    assert len(both.header.facts) == 1
    assert both.header.base_digest == llama.digest()
    assert both.digest() != (c + a).digest()
    assert both != c + a
    assert both != a


def test_sums_are_saved_and_loaded(llama, make_patch, tmp_path):
    whole = before(llama) + make_patch(llama, "1.mlp.down 2.attn.out") + push(llama)
    path = whole.save(tmp_path / "whole.safetensors")
    again = load_patch(path)
    assert again == whole
    assert again.digest() == whole.digest()
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    with again.apply(llama):
        assert len(llama.patches) == 3


def test_sums_with_a_wrong_list_of_members_are_refused(llama, make_patch, tmp_path):
    whole = before(llama) + make_patch(llama, "1.mlp.down")
    config = {"members": whole.header.config["members"][:1]}
    for bad in (config, {}, {"members": 3}, {"members": [1, 2]}):
        header = whole.header.model_copy(update={"config": bad})
        object.__setattr__(whole, "header", header)
        with pytest.raises(CorruptFile, match="CG402"):
            load_patch(whole.save(tmp_path / "bad.safetensors"))


def test_sums_that_make_no_sense_are_refused(llama, make_patch):
    a, c = before(llama), make_patch(llama, "1.mlp.down")
    for first, second in [(a, a), (a + c, c), (c, a + c), (c, c), (a + c, a + c)]:
        with pytest.raises(NotApplied, match="CG406"):
            first + second
    other = WeightPatch(c.changes, Header(method="m", base_digest="other"))
    with pytest.raises(WrongBase, match="different models"):
        a + other
    with pytest.raises(TypeError):
        a + "words"


def test_a_member_that_fails_leaves_the_model_alone(llama, make_patch, bits, same_bits):
    class Broken(Push):
        kind = "test-broken"

        @contextmanager
        def hooks(self, lm):
            raise KeyError
            yield

    start = bits(llama)
    fact = Fact(prompt="A", target="B", subject="A")
    broken = Broken.make(llama, {}, method="broken", facts=[fact])
    with pytest.raises(KeyError):
        (make_patch(llama, "1.mlp.down") + before(llama) + broken).apply(llama)
    assert same_bits(llama, start)
    assert not llama.patches
    assert not llama.interceptors.of_kind(Before)


def test_patches_are_shown_on_one_line(llama, make_patch):
    patches = [before(llama), make_patch(llama, "1.mlp.down"), push(llama)]
    patches += [patches[0] + patches[1]]
    for patch in patches:
        line = repr(patch)
        assert patch.header.method in line
        assert len(line) <= 100
        assert "\n" not in line
        assert "<table>" in patch._repr_html_()
    assert "A -> B" in repr(patches[0])
    hostile = WeightPatch({}, Header(method="<script>"))
    assert "<script>" not in hostile._repr_html_()
