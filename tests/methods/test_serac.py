"""SERAC: the classifier's algebra, its training, a hard switch, and nothing at all out of scope."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch

import corrigenda
from corrigenda.almanac.exam import load_exam
from corrigenda.almanac.training_facts import training_facts
from corrigenda.errors import MissingState, PromptTooLong
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer, greedy, next_token_top, score
from corrigenda.lm.interception import rewrite_prompts
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.serac.editor import SERAC, SeracPatch
from corrigenda.methods.serac.scope import (
    CachedCodes,
    ScopeHead,
    mine_neighbours,
    scope_loss,
    squared_distances,
)
from corrigenda.patch import load_patch
from corrigenda.retrieval import embedder
from corrigenda.state import State
from corrigenda.testing.tiny import tiny_model
from tests.support.in_context import EDITS, asked, pool
from tests.support.locating import model

QUICK = SERAC(embedder="states", cached_text="prompt", threshold=0.999, steps=3, hidden=8)
PAIRS = [(fact.prompt, fact.target) for fact in EDITS]
PROMPTS = [fact.prompt for fact in EDITS]


@cache
def lm() -> LanguageModel:
    return model("gpt2")


@cache
def fitted() -> State:
    return QUICK.train(lm(), tuple(pool(12)))


def patch_of(editor: SERAC, facts: Sequence[Fact], state: State | None = None) -> SeracPatch:
    patch = editor.edit(lm(), facts, state or fitted()).patch
    assert isinstance(patch, SeracPatch)
    return patch


def codes(count: int, seed: int = 0, width: int = 5) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_an_untrained_head_is_the_identity_and_half_is_at_the_logarithm_of_two() -> None:
    vectors = torch.nn.functional.normalize(codes(20), dim=1)
    head = ScopeHead(5, 7)
    assert torch.equal(head(vectors), vectors)
    similar = torch.exp(-squared_distances(vectors[:10], vectors[10:]))
    torch.testing.assert_close(similar, torch.exp(-squared_distances(vectors[10:], vectors[:10])))
    cosines = (vectors[:10] * vectors[10:]).sum(1)
    assert torch.equal(similar > 0.5, cosines > 1 - math.log(2) / 2)
    assert torch.equal(torch.exp(-squared_distances(vectors, vectors)), torch.ones(20))
    order = squared_distances(vectors[:1].expand(20, -1), vectors).argsort()
    assert bool((torch.exp(-squared_distances(vectors[:1], vectors[order])).diff() <= 0).all())


def test_the_loss_is_the_cross_entropy_of_the_similarity() -> None:
    inside, outside = codes(9).square().sum(1), codes(9, seed=1).square().sum(1)
    ones, zeros = torch.ones(9), torch.zeros(9)
    close, apart = scope_loss(inside, outside)
    cross_entropy = torch.nn.functional.binary_cross_entropy
    torch.testing.assert_close(close, cross_entropy(torch.exp(-inside), ones))
    torch.testing.assert_close(apart, cross_entropy(torch.exp(-outside), zeros))
    assert bool(scope_loss(torch.zeros(2), torch.zeros(2))[1].isfinite())


def test_routes_are_those_of_all_distances_and_the_latest_of_equals() -> None:
    cached, queries = codes(50), codes(30, seed=1)
    found = CachedCodes(cached).route(queries)
    whole = torch.cdist(queries.double(), cached.double()).square()
    assert torch.equal(found.places, whole.argmin(1))
    torch.testing.assert_close(found.similarities, torch.exp(-whole.amin(1)))
    assert torch.equal(CachedCodes(cached).route(cached).similarities, torch.ones(50).double())
    twice = torch.cat([cached, cached[:3]])
    assert CachedCodes(twice).route(cached[:3]).places.tolist() == [50, 51, 52]
    one_by_one = [CachedCodes(cached).route(query[None]) for query in queries]
    assert torch.equal(torch.cat([one.places for one in one_by_one]), found.places)


def test_an_unrelated_edit_changes_no_route_and_taking_it_off_restores_all() -> None:
    cached, queries = codes(6), codes(40, seed=2)
    before = CachedCodes(cached).route(queries)
    longer = torch.cat([cached, codes(1, seed=3)])
    after = CachedCodes(longer).route(queries)
    moved = after.places != before.places
    assert 0 < int(moved.sum()) < len(queries)
    assert bool((after.similarities[moved] > before.similarities[moved]).all())
    assert torch.equal(after.similarities[~moved], before.similarities[~moved])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    permuted = CachedCodes(cached[order]).route(queries)
    assert torch.equal(order[permuted.places], before.places)


def test_mined_questions_are_close_but_not_the_closest_nor_about_the_same() -> None:
    facts = [Fact(prompt=f"{n} of s{n // 2}", subject=f"s{n // 2}", target="x") for n in range(140)]
    angles = torch.arange(140) * 0.01
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    drawn = mine_neighbours(facts[:2], facts, vectors, random.Random(0), 50)
    for place, prompts in enumerate(drawn):
        ranks = [int(prompt.split()[0]) for prompt in prompts]
        assert min(ranks) >= 25 + 2
        assert max(ranks) <= 102
        assert facts[place].prompt not in prompts
    few = mine_neighbours(facts[:2], facts[:4], vectors[:4], random.Random(0), 3)
    assert {prompt for prompts in few for prompt in prompts} <= {"2 of s1", "3 of s1"}
    assert mine_neighbours(facts[:2], facts[:2], vectors[:2], random.Random(0), 3) == [(), ()]


def test_training_parts_what_is_in_scope_from_what_is_out() -> None:
    editor = QUICK.model_copy(update={"steps": 60, "validate_every": 20, "threshold": 0.5})
    state = editor.train(lm(), tuple(pool(30)))
    training = state.meta["serac"]
    assert isinstance(training, dict)
    first, last = training["trace"][0], training["trace"][-1]
    assert training["best_loss"] <= first["loss"]
    assert last["training_loss"] < first["training_loss"]
    assert editor.train(lm(), tuple(pool(30))) == state
    capped = editor.model_copy(update={"max_facts": 10}).train(lm(), tuple(pool(30)))
    assert capped.meta["serac"]["facts"] == [9, 1]


def test_the_similarity_of_a_patch_is_that_of_its_head() -> None:
    patch = patch_of(QUICK.model_copy(update={"cached_text": "fact"}), EDITS)
    head = ScopeHead.of(
        {name.removeprefix("serac/head/"): one for name, one in fitted().tensors.items()}
    )
    vectors = embedder("states")
    notes = [f"{fact.prompt} {fact.target}" for fact in EDITS]
    ours, theirs = head(vectors.embed(lm(), PROMPTS)), head(vectors.embed(lm(), notes))
    expected = torch.exp(-torch.cdist(ours.double(), theirs.double()).square())
    torch.testing.assert_close(patch.similarities(lm(), PROMPTS), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(
        patch_of(QUICK, EDITS).similarities(lm(), PROMPTS).argmax(1), torch.arange(3)
    )


def test_in_scope_the_edit_is_told_and_out_of_scope_nothing_is_rewritten() -> None:
    patch = patch_of(QUICK, EDITS[:2])
    assert asked(patch, lm(), PROMPTS) == [
        f"{fact.prompt} {fact.target}\n{fact.prompt}" for fact in EDITS[:2]
    ] + [PROMPTS[2]]
    worded = QUICK.model_copy(update={"opening": "New fact: ", "between": ". "})
    (text,) = asked(patch_of(worded, EDITS[2:]), lm(), [PROMPTS[2]])
    assert text == "New fact: Toyota was founded by Bill {target}. Toyota was founded by"


@pytest.mark.parametrize("other", [None, "gptj"])
def test_in_scope_it_is_the_counterfactual_model_alone(other: str | None, tmp_path) -> None:
    editor, answering = QUICK, lm()
    if other is not None:
        answering = tiny_model(other, seed=5)
        answering.model.save_pretrained(tmp_path)
        answering.tokenizer.save_pretrained(tmp_path)
        editor = QUICK.model_copy(update={"counterfactual": str(tmp_path)})
    patch = patch_of(editor, EDITS[:1])
    notes = f"{PROMPTS[0]} {EDITS[0].target}\n{PROMPTS[0]}"
    expected = score(answering, [(notes, "Welsh")]), greedy(answering, [notes], max_new_tokens=4)
    digest = lm().digest()
    with patch.apply(lm()):
        assert (
            score(lm(), [(PROMPTS[0], "Welsh")]),
            greedy(lm(), PROMPTS[:1], max_new_tokens=4),
        ) == (expected)
        assert lm().digest() == digest
        # The decision is made on the prompt: what is rated behind it never is in or out of scope.
        assert score(lm(), [(PROMPTS[1], PROMPTS[0])]) == plain(PROMPTS[1], PROMPTS[0])


def plain(prompt: str, target: str) -> object:
    with lm().interceptors.suspend():
        return score(lm(), [(prompt, target)])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_out_of_scope_everything_is_bit_for_bit_as_it_was(family: str, dtype: torch.dtype) -> None:
    lm = model(family, dtype)

    def answers() -> tuple[object, ...]:
        prompts = PROMPTS[1:]
        return (
            score(lm, PAIRS[1:]),
            next_token_top(lm, prompts),
            greedy(lm, prompts, max_new_tokens=3),
            lm.model.generate(**lm.tokenizer(prompts[:1], return_tensors="pt"), max_new_tokens=3)
            .flatten()
            .tolist(),
        )

    state = QUICK.train(lm, tuple(pool(6)))
    before, digest, whole = answers(), lm.digest(), score(lm, PAIRS)
    with QUICK.edit(lm, EDITS[:1], state).patch.apply(lm):
        assert answers() == before
        assert score(lm, PAIRS)[1:] == before[0], "beside a question in scope"
        assert score(lm, PAIRS)[0] != whole[0]
        assert lm.digest() == digest
    assert score(lm, PAIRS) == whole


def test_active_patches_are_one_cache_in_which_the_latest_counts() -> None:
    one, two = (patch_of(QUICK, [fact]) for fact in EDITS[:2])
    renewed = patch_of(QUICK, [replace(EDITS[0], target="Welsh")])
    whole = score(lm(), PAIRS)
    with patch_of(QUICK, EDITS[:2]).apply(lm()):
        expected = score(lm(), PAIRS)
    first = one.apply(lm())
    with two.apply(lm()):
        assert score(lm(), PAIRS) == expected
        with renewed.apply(lm()):
            texts = [item.prompt for item in rewrite_prompts(lm(), PROMPTS[:1])]
            assert texts == [f"{PROMPTS[0]} Welsh\n{PROMPTS[0]}"]
        first.revert()
        assert score(lm(), PAIRS)[0] == whole[0]
        assert score(lm(), PAIRS)[1] == expected[1]
    assert score(lm(), PAIRS) == whole


def test_what_cannot_work_is_refused_or_noticed() -> None:
    with pytest.raises(MissingState, match="CG503"):
        QUICK.edit(lm(), EDITS)
    with pytest.raises(MissingState, match="scope classifier"):
        QUICK.edit(lm(), EDITS, State())
    with pytest.raises(PromptTooLong, match="CG105"):
        patch_of(QUICK, [replace(EDITS[0], target="very " * 200)])
    strict = QUICK.model_copy(update={"cached_text": "fact", "threshold": 1.0})
    notes = patch_of(strict, EDITS[:1]).header.notes
    assert notes["status"] == ["out of its own scope"]
    assert "own prompt is out of scope" in str(notes["notices"])


def test_on_the_pocket_model_neighbours_keep_every_answer_and_the_patch_travels(tmp_path) -> None:
    lm = corrigenda.load("pocket", dtype="float32")
    editor = SERAC(
        embedder="states", cached_text="prompt", threshold=0.99, steps=30, hidden=16,
        opening="New fact: ", between=". ",
    )  # fmt: skip
    facts = [case.fact for case in load_exam(edits=2, size=1, recall=1, seed=11).edits]
    state = editor.train(lm, tuple(list(training_facts(1))[:12]))
    neighbours = [text for fact in facts for text in fact.neighbours[:3]]
    before = answer(lm, neighbours)
    patch = editor.edit(lm, facts, state).patch
    loaded = load_patch(patch.save(tmp_path / "cache.safetensors"))
    assert loaded == patch
    with loaded.apply(lm):
        said = answer(lm, [fact.prompt for fact in facts])
        assert answer(lm, neighbours) == before
    assert any(text.startswith(fact.target) for text, fact in zip(said, facts, strict=True))
