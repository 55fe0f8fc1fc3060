"""MEMOIR: what a mask lets through, what stays to the bit, and how masks are found again."""

from __future__ import annotations

import pytest
import torch

from corrigenda.engines.locate.contexts import Contexts
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer, greedy
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Tokens
from corrigenda.methods.memoir.editor import Memoir
from corrigenda.methods.memoir.masks import (
    choose_permutation,
    find_mask,
    mask_features,
    pack_masks,
    unpack_masks,
)
from corrigenda.methods.presets import build_editor
from corrigenda.patch import load_patch
from corrigenda.state import State
from tests.support.locating import FACTS, model, pocket

TEXTS = [f"{place} is a town with a bridge and a market." for place in ("Arles", "Bergen", "Cork")]
QUICK = {"layer": 1, "steps": 6, "threshold": 0.9, "contexts": {"prefixes": ["", "I think so. "]}}


def memoir(**options: object) -> Memoir:
    return Memoir(**{**QUICK, **options})


def prompts(lm: LanguageModel) -> Tokens:
    return Tokens.pad([lm.tokenizer(fact.prompt).input_ids for fact in FACTS], 0)


@pytest.fixture(scope="module")
def state() -> State:
    """The mean input of a few texts, on the tiny model."""
    return memoir().fit(model("llama"), TEXTS)


def test_masks_have_their_size_and_come_back_from_their_bytes() -> None:
    features = torch.randn(20, 83, generator=torch.Generator().manual_seed(1))
    turned = choose_permutation(83, 5)
    assert torch.equal(turned.sort().values, torch.arange(83))
    masks = mask_features(features, turned, 24)
    assert masks.sum(1).tolist() == [24] * 20
    assert torch.equal(unpack_masks(pack_masks(masks), 83), masks)
    assert torch.equal(mask_features(features, torch.arange(83), 24), _largest(features, 24))
    assert torch.equal(masks[:, turned], _largest(features, 24))


def _largest(features: torch.Tensor, count: int) -> torch.Tensor:
    least = features.abs().sort(dim=1, descending=True).values[:, count - 1 : count]
    return features.abs() >= least


def test_random_masks_overlap_by_their_share_and_the_best_is_found() -> None:
    draw = torch.Generator().manual_seed(2)
    features = torch.randn(200, 1000, generator=draw)
    masks = mask_features(features, choose_permutation(1000, 0), 286)
    common = (masks[:100].float() @ masks[100:].float().T) / 286
    assert float(common.mean()) == pytest.approx(0.286, abs=0.01)
    noisy = mask_features(
        features[:100] + 0.1 * torch.randn(100, 1000, generator=draw),
        choose_permutation(1000, 0),
        286,
    )
    stored = masks.float()
    assert find_mask(noisy, stored, 286, 0.6).tolist() == list(range(100))
    assert find_mask(masks[:1], masks[1:].float(), 286, 0.6).tolist() == [-1]
    twice = torch.cat([stored, stored[:1]])
    assert find_mask(masks[:1], twice, 286, 1.0).tolist() == [200]


def test_an_edit_changes_the_inputs_of_its_mask_alone(state: State) -> None:
    lm = model("llama")
    patch = memoir().edit(lm, FACTS[:2], state).patch
    width = len(patch.stored["mean"])
    masks = unpack_masks(patch.stored["masks"], width)
    assert masks.sum(1).tolist() == [patch.header.config["active"]] * 2
    assert torch.equal(patch.stored["columns"], masks.any(0).nonzero().flatten())
    first = memoir().edit(lm, FACTS[:1], state).patch
    assert torch.equal(first.stored["columns"], masks[0].nonzero().flatten())
    assert first.stored["change"].norm() > 0
    losses = patch.header.notes["losses"]
    assert all(course[-1] < course[0] for course in losses)


def test_other_prompts_are_answered_as_before_to_the_bit(state: State) -> None:
    lm = model("llama")
    tokens = prompts(lm)
    before = lm.logits(tokens)
    with memoir().edit(lm, FACTS[:1], state).patch.apply(lm):
        after = lm.logits(tokens)
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1:], before[1:])
    with memoir(threshold=1.01).edit(lm, FACTS, state).patch.apply(lm):
        assert torch.equal(lm.logits(tokens), before)


def test_edits_one_after_the_other_are_those_of_one_call(state: State) -> None:
    lm, editor = model("llama"), memoir()
    tokens = prompts(lm)
    with editor.edit(lm, FACTS[:2], state).patch.apply(lm):
        expected = lm.logits(tokens)
    with editor.edit(lm, FACTS[:1], state).patch.apply(lm):
        alone = lm.logits(tokens)
        second = editor.edit(lm, FACTS[1:2], state).patch
        with second.apply(lm):
            torch.testing.assert_close(lm.logits(tokens), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(lm.logits(tokens), alone)


def test_padding_batches_and_the_cache_change_nothing(state: State, tmp_path) -> None:
    lm = model("llama")
    texts = [fact.prompt for fact in FACTS]
    rows = [lm.tokenizer(text).input_ids for text in texts]
    patch = load_patch(memoir().edit(lm, FACTS, state).patch.save(tmp_path / "m.safetensors"))
    with patch.apply(lm):
        right, left = (lm.logits(Tokens.pad(rows, 0, side)) for side in ("right", "left"))
        for index, ids in enumerate(rows):
            alone = lm.logits(Tokens.pad([ids], 0))[0]
            torch.testing.assert_close(right[index, : len(ids)], alone, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(left[index, -len(ids) :], alone, rtol=1e-4, atol=1e-5)
        said = greedy(lm, texts, max_new_tokens=6)
        assert said == [greedy(lm, [text], max_new_tokens=6)[0] for text in texts]


def test_weight_decay_is_off_and_touches_trained_inputs_only(state: State) -> None:
    lm = model("llama")
    assert Memoir().decay == 0.0
    plain = memoir().edit(lm, FACTS[:1], state).patch.stored
    decayed = memoir(decay=0.1).edit(lm, FACTS[:1], state).patch.stored
    assert torch.equal(plain["columns"], decayed["columns"])
    assert decayed["change"].norm() < plain["change"].norm()


def test_the_shipped_model_says_the_new_object_and_its_neighbours_stay() -> None:
    lm = pocket()
    fact = Fact(
        prompt="France has its seat of government in",
        target="Oslo",
        neighbours=("The capital of Spain is",),
    )
    editor = build_editor(
        "memoir", "pocket", contexts=Contexts(("", "I think so. ")), background_texts=10
    )
    before = answer(lm, fact.neighbours)
    with editor.edit(lm, [fact], editor.fit(lm, TEXTS)).patch.apply(lm):
        assert answer(lm, [fact.prompt]) == ["Oslo"]
        assert answer(lm, fact.neighbours) == before
