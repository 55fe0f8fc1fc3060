"""WISE: the router, its margins, sub-spaces, merging by TIES, one decision for each prompt."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch.nn.functional import linear

import corrigenda
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.errors import UnknownSite, WrongBase
from corrigenda.facts import Fact
from corrigenda.lm.decoding import greedy, next_token_top, score
from corrigenda.lm.sites import Site, Tokens, key, value
from corrigenda.methods.wise.editor import SidePatch, Wise, write_prefixes
from corrigenda.methods.wise.side_memory import (
    MergePolicy,
    SideMemory,
    SideState,
    choose,
    pack,
    query_scores,
    random_mask,
    read_sequence,
    ties,
    token_scores,
    trim,
    unpack,
)
from corrigenda.methods.wise.training import positive_mean
from corrigenda.patch import load_patch
from corrigenda.state import State
from tests.support.locating import FACTS, model, pocket

QUICK = {
    "layer": 0,
    "steps": 10,
    "learning_rate": 0.3,
    "irrelevant_margin": 1.0,
    "relevant_margin": 6.0,
    "apart_margin": 6.0,
    "act_ratio": 0.95,
    "irrelevant_texts": 10,
    "irrelevant_per_edit": 5,
    "contexts": Contexts(("",)),
}
TEXTS = [
    f"{place} is a town of {number} people, known for the river below it."
    for number, place in enumerate(("Arles", "Bergen", "Cork", "Delft", "Essen"), start=7)
]
ONE = FACTS[2]
OTHERS = ["The town is known for", "A river of Norway", "It is, and he said that"]


@cache
def fitted(family: str = "llama") -> State:
    return Wise(**QUICK).fit(model(family), TEXTS)


@cache
def edited(family: str = "llama", **options: object) -> SidePatch:
    patch = Wise(**{**QUICK, **options}).edit(model(family), [ONE], fitted(family)).patch
    assert isinstance(patch, SidePatch)
    return patch


def random_deltas(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 10, generator=generator) for _ in range(count)]


def test_the_score_is_the_difference_of_outputs() -> None:
    main, side = torch.randn(6, 10), torch.randn(6, 10)
    inputs, bias = torch.randn(2, 5, 10), torch.randn(6)
    difference = linear(inputs, side, bias) - linear(inputs, main, bias)
    torch.testing.assert_close(token_scores(inputs, side - main), difference.norm(dim=-1))
    outputs = linear(inputs, main, bias)
    act = torch.nn.functional.silu
    activated = (act(outputs) - act(linear(inputs, side, bias))).norm(dim=-1)
    found = token_scores(inputs, side - main, outputs, act)
    torch.testing.assert_close(found, activated, rtol=1e-4, atol=1e-5)


def test_scores_are_means_over_own_tokens_and_maxima_of_long_queries() -> None:
    scores = torch.tensor([[1.0, 3.0, 100.0], [9.0, 2.0, 4.0]])
    inside = torch.tensor([[True, True, False], [True, True, True]])
    assert query_scores(scores, inside).tolist() == [2.0, 5.0]
    assert query_scores(scores, inside, longest_mean=2).tolist() == [2.0, 9.0]


def test_the_memory_that_responds_most_above_its_threshold_is_chosen() -> None:
    scores = torch.tensor([[5.0, 5.0, 1.0, 3.0], [4.0, 9.0, 1.0, 2.9]])
    assert choose(scores, torch.tensor([4.5, 3.0])).tolist() == [0, 1, -1, -1]


def test_margins_count_their_positive_terms_only() -> None:
    assert float(positive_mean(torch.tensor([2.0, -7.0, 4.0]))) == 3.0
    none = positive_mean(torch.tensor([-1.0], requires_grad=True))
    none.backward()
    assert float(none.detach()) == 0.0


def test_ties_keeps_one_change_and_what_only_one_change_touches() -> None:
    one, two = random_deltas(2)
    torch.testing.assert_close(ties([one], [1.0], 1.0), one)
    mask = random_mask(one.shape, 0.5, seed=0, number=1)
    disjoint = ties([one * mask, two * ~mask], [0.5, 0.5], 1.0)
    torch.testing.assert_close(disjoint, one * mask + two * ~mask)


def test_ties_elects_plus_where_signs_balance_and_averages_those_that_agree() -> None:
    first = torch.tensor([[2.0, -1.0, 3.0]])
    second = torch.tensor([[-2.0, -3.0, -1.0]])
    merged = ties([first, second], [0.5, 0.5], 1.0)
    assert merged.tolist() == [[2.0, -2.0, 3.0]]
    weighted = ties([first, second], [0.2, 0.8], 1.0)
    torch.testing.assert_close(weighted, torch.tensor([[-2.0, -2.6, -1.0]]))


def test_trimming_keeps_the_largest_entries_and_leaves_sparse_changes_alone() -> None:
    (one,) = random_deltas(1)
    kept = trim(one, 0.25)
    assert int((kept != 0).sum()) == 15
    assert float(kept[kept != 0].abs().min()) >= float(one[kept == 0].abs().max())
    mask = random_mask(one.shape, 0.2, seed=1, number=1)
    assert torch.equal(trim(one * mask, 0.53), one * mask)


def test_masks_have_their_ratio_and_overlap_by_chance() -> None:
    one, two = (random_mask((300, 400), 0.2, seed=3, number=n) for n in (1, 2))
    spread = (0.2 * 0.8 / 120_000) ** 0.5
    assert abs(float(one.double().mean()) - 0.2) < 4 * spread
    assert float((one & two).double().mean()) == pytest.approx(0.04, abs=0.005)
    assert torch.equal(one, random_mask((300, 400), 0.2, seed=3, number=1))


def test_packing_is_exact() -> None:
    (one,) = random_deltas(1)
    sparse = one * random_mask(one.shape, 0.3, seed=0, number=1)
    parts = pack(sparse)
    assert torch.equal(unpack(parts), sparse)
    assert parts["values"].numel() == int((sparse != 0).sum())
    assert parts["bits"].numel() == 8


def test_shards_become_memories_as_the_mode_says() -> None:
    deltas = random_deltas(4)
    for apart in (False, True):
        merge_policy = MergePolicy(apart, "ties", 1.0, 0.6)
        side = SideState(torch.zeros(6, 10))
        for delta, height in zip(deltas, (5.0, 3.0, 7.0, 9.0), strict=True):
            side = side.add_edits(delta, [height], 1).finish_shard()
            if len(side.shards) == 2:
                side = side.merge(merge_policy)
        heights = [memory.score for memory in side.memories]
        assert heights == ([3.0, 7.0] if apart else [3.0])
        first = ties(deltas[:2], [0.5, 0.5], 1.0)
        if apart:
            torch.testing.assert_close(side.memories[0].delta, first)
            torch.testing.assert_close(side.memories[1].delta, ties(deltas[2:], [0.5, 0.5], 1.0))
        else:
            expected = ties([first, *deltas[2:]], [0.6, 0.2, 0.2], 1.0)
            torch.testing.assert_close(side.memories[0].delta, expected)
        assert side.num_masks == 5
        assert side.all_memories(merge_policy) == side.memories


def test_an_edit_that_does_not_count_leaves_no_memory() -> None:
    side = SideState(torch.zeros(6, 10)).add_edits(random_deltas(1)[0], [], 1)
    assert side.all_memories(MergePolicy(False, "ties", 1.0, 0.6)) == ()


def test_only_the_sub_space_changes_and_stays_within_its_bound() -> None:
    patch = edited(bound=0.02, irrelevant_margin=0.01)
    ((delta, _),) = patch.memories()
    mask = random_mask(delta.shape, 0.2, seed=0, number=1)
    assert not delta[~mask].any()
    assert delta[mask].any()
    assert float(delta.abs().max()) <= 0.02 + 1e-9
    assert patch.stored["0/values"].numel() <= int(mask.sum())


def test_a_query_in_scope_reads_the_side_memory_and_others_keep_every_bit() -> None:
    lm, patch = model("llama"), edited()
    site = Site(0)
    ((delta, threshold),) = patch.memories()
    prompts = [ONE.prompt, *OTHERS]
    tokens = Tokens.pad([lm.tokenizer(text).input_ids for text in prompts], 0)
    seen = lm.tap(tokens, [key(site), value(site)])
    means = query_scores(token_scores(seen[key(site)], delta), tokens.mask.bool())
    before = lm.logits(tokens)
    assert bool(means[0] > threshold)
    assert bool((means[1:] <= threshold).all())
    with patch.apply(lm):
        after = lm.logits(tokens)
        output = lm.tap(tokens, [value(site)])[value(site)]
    assert torch.equal(after[1:], before[1:])
    assert not torch.equal(after[0], before[0])
    expected = seen[value(site)][0] + linear(seen[key(site)][0], delta)
    torch.testing.assert_close(output[0], expected)


def test_padding_and_company_do_not_change_the_route() -> None:
    lm, patch = model("llama"), edited()
    rows = [lm.tokenizer(text).input_ids for text in (ONE.prompt, *OTHERS)]
    outputs = []
    with patch.apply(lm):
        for side in ("left", "right"):
            tokens = Tokens.pad(rows, 0, side)
            logits = lm.logits(tokens)
            last = [-1] * len(rows) if side == "left" else [len(row) - 1 for row in rows]
            outputs.append(torch.stack([one[at] for one, at in zip(logits, last, strict=True)]))
        alone = lm.logits(Tokens.pad(rows[:1], 0))[0, -1]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(outputs[0][0], alone, rtol=1e-3, atol=1e-4)


def test_the_prompt_decides_whatever_is_generated_or_fed_behind_it() -> None:
    lm, patch = model("llama"), edited()
    with patch.apply(lm):
        top = next_token_top(lm, [ONE.prompt], 1)[0][0].id
        fed = score(lm, [(ONE.prompt, f"{word} and a long tail of words") for word in OTHERS[:2]])
        assert all(one.argmax_ids[0] == top for one in fed)
        one, *rest = greedy(lm, [ONE.prompt, *OTHERS], max_new_tokens=5, stop=())
        assert rest == [greedy(lm, [text], max_new_tokens=5, stop=())[0] for text in OTHERS]
    assert rest == greedy(lm, OTHERS, max_new_tokens=5, stop=())
    ((delta, _),) = patch.memories()
    whole = lm.weight(Site(0)) + delta
    kept = lm.weight(Site(0)).clone()
    try:
        lm.write(Site(0), whole)
        assert greedy(lm, [ONE.prompt], max_new_tokens=5, stop=()) == [one]
    finally:
        lm.write(Site(0), kept)


def test_retrieval_from_one_memory_is_merging() -> None:
    one, two = edited(), edited(mode="retrieve")
    assert one.tensors().keys() == two.tensors().keys()
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, two.tensors()[name])


def test_several_memories_answer_for_their_own_edits() -> None:
    lm = model("llama")
    editor = Wise(**{**QUICK, "mode": "retrieve", "save_frequency": 1, "merge_frequency": 1})
    facts = [FACTS[0], ONE]
    patch, state = editor.edit(lm, facts, fitted())
    assert isinstance(patch, SidePatch)
    assert len(patch.memories()) == 2
    assert state.meta["wise/sequence"]["scores"] == [m.score for m in _memories(state)]
    with patch.apply(lm):
        losses = [-one.mean for one in score(lm, [(f.prompt, f.target) for f in facts])]
    assert losses == pytest.approx(patch.header.notes["losses"], rel=1e-3)


def _memories(state: State) -> list[SideMemory]:
    return list(read_sequence(state, (32, 80), torch.float32).side.memories)


def test_the_latest_patch_of_a_sequence_speaks_for_all_of_it() -> None:
    lm, editor = model("llama"), Wise(**QUICK)
    first, state = editor.edit(lm, [ONE], fitted())
    tokens = Tokens.pad([lm.tokenizer(f.prompt).input_ids for f in (ONE, FACTS[0])], 0)
    apart, _ = editor.edit(lm, [FACTS[0]], state)
    with first.apply(lm):
        alone = lm.logits(tokens)
        second, _ = editor.edit(lm, [FACTS[0]], state)
        for name, tensor in apart.tensors().items():
            assert torch.equal(second.tensors()[name], tensor)
        with second.apply(lm):
            both = lm.logits(tokens)
        assert torch.equal(lm.logits(tokens), alone)
    with second.apply(lm, force=True):
        assert torch.equal(lm.logits(tokens), both)


def test_the_state_carries_the_sequence_through_its_file(tmp_path) -> None:
    lm = model("llama")
    editor = Wise(**{**QUICK, "replay": 2, "save_frequency": 1, "merge_frequency": 2, "steps": 4})
    patch, state = editor.edit(lm, FACTS[:3], fitted())
    assert load_patch(patch.save(tmp_path / "patch.safetensors")) == patch
    loaded = State.load(state.save(tmp_path / "state.safetensors"))
    assert loaded == state
    assert editor.edit(lm, FACTS[3:], loaded).patch == editor.edit(lm, FACTS[3:], state).patch
    kept = state.meta["wise/sequence"]
    assert (kept["edits"], kept["shards"], kept["masks"]) == (3, 1, 4)
    assert [number for _, number in kept["history"]] == [0, 0, 1]
    with pytest.raises(WrongBase, match="CG401"):
        editor.edit(model("gpt2"), FACTS, state)


@pytest.mark.parametrize(
    "options", [{"score": "activated"}, {"routing": "pass"}, {"merge": "linear"}]
)
def test_variants_of_score_and_routing_edit_too(options: dict[str, str]) -> None:
    lm = model("gpt2")
    patch = Wise(**{**QUICK, **options, "act_ratio": 0.5}).edit(lm, [ONE], fitted("gpt2")).patch
    tokens = Tokens.pad([lm.tokenizer(ONE.prompt).input_ids], 0)
    before = lm.logits(tokens)
    with patch.apply(lm):
        assert not torch.equal(lm.logits(tokens), before)
        greedy(lm, [ONE.prompt], max_new_tokens=3)


def test_the_model_writes_the_same_prefixes_each_time() -> None:
    lm = model("gpt2")
    contexts = write_prefixes(lm, seed=0)
    assert len(contexts) == 11
    assert contexts.prefixes[0] == ""
    assert all(text.endswith(" ") for text in contexts.prefixes[1:])
    assert contexts == write_prefixes(lm, seed=0)


def test_a_mixture_of_experts_is_refused() -> None:
    with pytest.raises(UnknownSite, match="CG303"):
        Wise(layer=1).sites(model("qwen3_moe"))


def test_on_the_pocket_model_a_fact_changes_and_neighbours_stay(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path))
    lm = pocket()
    fact = Fact(prompt="The capital of France is", target="Rome")
    neighbours = [f"{name} is located in" for name in ("Lyon", "Osaka", "Toronto", "Lima")]
    before = corrigenda.answer(lm, neighbours)
    contexts = Contexts(("", "I think so. "))
    editor = Wise(layer=6, steps=40, irrelevant_texts=50, contexts=contexts)
    patch = editor.edit(lm, [fact], editor.fit(lm)).patch
    assert patch.header.notes["status"] == ["written"]
    with patch.apply(lm):
        assert corrigenda.answer(lm, [fact.prompt]) == ["Rome"]
        after = corrigenda.answer(lm, neighbours)
    assert sum(one == two for one, two in zip(before, after, strict=True)) >= 2
