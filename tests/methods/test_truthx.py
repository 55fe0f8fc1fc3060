"""TruthX: an auto-encoder that tells truth, and states moved along its direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from corrigenda.almanac.truth_pairs import truth_facts
from corrigenda.errors import BadConfig, MissingState
from corrigenda.facts import Fact
from corrigenda.lm.decoding import greedy, score
from corrigenda.lm.kv_cache import pad_id
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Tokens
from corrigenda.methods.truthx import autoencoder
from corrigenda.methods.truthx.autoencoder import (
    AutoEncoder,
    TruthCodes,
    grouping_loss,
    measure_untruth,
    pairing_loss,
)
from corrigenda.methods.truthx.editor import TruthX, TruthxPatch
from corrigenda.methods.truthx.states import module_points, read_pairs, shared_tokens
from corrigenda.patch import Header
from corrigenda.state import State
from corrigenda.testing.tiny import tiny_model

PLACES = ("Paris", "Rome", "Oslo", "Lima", "Cairo", "Delhi", "Bern", "Quito")
FACTS = tuple(
    Fact(
        prompt=f"Where is tower {index}?",
        subject=f"tower {index}",
        target=f"{place} is home to tower {index}.",
        before=f"{PLACES[index - 1]} is home to tower {index}.",
    )
    for index, place in enumerate(PLACES)
)
QUICK = {"hidden": 16, "code": 8, "steps": 4, "batch_size": 8, "top_k": 3, "max_pairs": 40}


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path))


@cache
def trained(family: str) -> tuple[LanguageModel, State]:
    lm = tiny_model(family, layers=3)
    return lm, truthx().train(lm, FACTS)


def truthx(**options: object) -> TruthX:
    return TruthX(**{**QUICK, **options})


def patched(family: str, **options: object) -> tuple[LanguageModel, TruthxPatch]:
    lm, state = trained(family)
    patch = truthx(**options).edit(lm, FACTS[:1], state).patch
    assert isinstance(patch, TruthxPatch)
    return lm, patch


def space(width: int = 12, seed: int = 0) -> AutoEncoder:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return AutoEncoder(width, 16, 8).requires_grad_(False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts_of(lm: LanguageModel, texts: Sequence[str]) -> Tokens:
    return Tokens.pad([lm.tokenizer(text).input_ids for text in texts], pad_id(lm))


def seen(
    lm: LanguageModel, patch: TruthxPatch, tokens: Tokens, points: Sequence[Point]
) -> tuple[dict[Point, Tensor], dict[Point, Tensor]]:
    """Tensors at some points as the patch finds them, and as it leaves them."""
    before: dict[Point, Tensor] = {}
    after: dict[Point, Tensor] = {}

    def keep(where: dict[Point, Tensor], point: Point):
        def see(tensor: Tensor) -> Tensor:
            where[point] = tensor
            return tensor

        return see

    with (
        lm.swap({point: keep(before, point) for point in points}),
        patch.apply(lm),
        lm.swap({point: keep(after, point) for point in points}),
    ):
        lm.logits(tokens)
    return before, after


def chosen_points(lm: LanguageModel, patch: TruthxPatch) -> list[Point]:
    names = [name for name in patch.stored if name.startswith("centres/")]
    return [module_points(lm)[int(name.removeprefix("centres/"))] for name in names]


def test_truthful_codes_have_length_one_and_fusion_is_a_linear_skip() -> None:
    one, states = space(), normal(5, 12)
    codes = one.encode(states)
    torch.testing.assert_close(codes.truthful.norm(dim=-1), torch.ones(5))
    with torch.no_grad():
        for seed in (1, 2):
            query = normal(5, 8, seed=seed)
            attention = nn.MultiheadAttention(8, 1, batch_first=True)
            one.fusion.weight.copy_(attention.out_proj.weight @ attention.in_proj_weight[16:])
            one.fusion.bias.copy_(
                attention.out_proj.weight @ attention.in_proj_bias[16:] + attention.out_proj.bias
            )
            value = codes.truthful[:, None]
            fused = query + attention(query[:, None], value, value)[0].squeeze(1)
            torch.testing.assert_close(
                one.decode(TruthCodes(query, codes.truthful)), one.decoder(fused)
            )


def test_losses_are_those_of_the_paper() -> None:
    """Written out in loops."""
    one, states, tau = space(), normal(3, 2, 12), 0.5
    losses = one.losses(states, temperature=tau)

    def ctr(anchor: Tensor, positive: list[Tensor], negative: list[Tensor]) -> Tensor:
        good, bad = (
            sum((anchor @ other / (anchor.norm() * other.norm()) / tau).exp() for other in others)
            for others in (positive, negative)
        )
        return -torch.log(torch.as_tensor(good / (good + bad)))

    semantic, truthful = one.encode(states)
    total_t = total_s = torch.zeros(())
    for i in range(3):
        others = [j for j in range(3) if j != i]
        for a, b in ((0, 1), (1, 0)):
            total_t = total_t + ctr(
                truthful[i, a],
                [truthful[j, a] for j in others],
                [truthful[j, b] for j in range(3)],
            )
            total_s = total_s + ctr(
                semantic[i, a], [semantic[i, b]], [semantic[j, b] for j in others]
            )
    torch.testing.assert_close(losses.truthful, total_t / 3)
    torch.testing.assert_close(losses.semantic, total_s / 3)
    errors = [
        (one.decode(TruthCodes(semantic[i, a], truthful[i, 1 - a])) - states[i, 1 - a])
        .square()
        .mean()
        for i in range(3)
        for a in (0, 1)
    ]
    torch.testing.assert_close(losses.editing, torch.stack(errors).mean())
    own = (one.decode(TruthCodes(semantic, truthful)) - states).square().mean()
    torch.testing.assert_close(losses.reconstruction, own)
    assert grouping_loss(truthful[:1, 0], truthful[:1, 1], tau) == 0
    assert pairing_loss(semantic[:1, 0], semantic[:1, 1], tau) == 0


def test_a_move_is_as_long_as_the_state_and_turns_with_the_direction() -> None:
    one, states, delta = space(), normal(6, 12) * 7, normal(8, seed=3)
    move = one.displacement(states, delta)
    torch.testing.assert_close(move.norm(dim=-1), states.norm(dim=-1))
    torch.testing.assert_close(one.displacement(states, -delta), -move)
    assert not one.displacement(states, torch.zeros(8)).any()


def test_what_separates_the_data_is_found_and_moved_along() -> None:
    """Truth is one coordinate of toy states; a linear probe's logit goes up."""
    width, rows = 12, 256
    direction = torch.zeros(width)
    direction[3] = 1.0
    content = normal(rows, 1, width)
    states = torch.cat([content + 2 * direction, content - 2 * direction], dim=1)
    one = space().requires_grad_(True)
    optimiser = torch.optim.Adam(one.parameters(), lr=3e-3)
    for step in range(150):
        part = states[(torch.arange(32) + 32 * step) % 200]
        optimiser.zero_grad()
        one.losses(part, temperature=0.1).total.backward()
        optimiser.step()
    one.requires_grad_(False)
    positive, negative = one.truth(states[:200]).mean(0)
    away = measure_untruth(one.truth(states[200:]), positive, negative)
    assert float((away[:, 0] < 0).float().mean()) > 0.9
    assert float((away[:, 1] > 0).float().mean()) > 0.9
    untrue = states[200:, 1]
    moved = untrue + one.displacement(untrue, positive - negative)
    assert float(((moved - untrue) @ direction > 0).float().mean()) > 0.9


def test_tokens_are_paired_behind_the_first_difference() -> None:
    assert shared_tokens([1, 2, 3, 9, 4, 4], [1, 2, 8, 4, 9, 4]) == [(3, 4), (4, 3), (5, 5)]
    assert shared_tokens([1, 2], [1, 2, 3]) == []


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma2", "qwen3_moe"])
def test_states_are_those_of_the_answers_tokens(family: str) -> None:
    lm = tiny_model(family, layers=2)
    pairs = read_pairs(lm, FACTS[:3], max_pairs=100, seed=0)
    points = module_points(lm)
    assert len(pairs.states) == len(points) == 4
    (single,) = (read_pairs(lm, [fact], max_pairs=100, seed=0) for fact in FACTS[:1])
    fact = FACTS[0]
    texts = [f"{fact.prompt} {answer}" for answer in (fact.target, fact.before)]
    for states, point in zip(single.states, points, strict=True):
        for side, text in enumerate(texts):
            tokens = prompts_of(lm, [text])
            last = lm.tap(tokens, [point])[point][0, -1]
            torch.testing.assert_close(states[-1, side], last, rtol=1e-4, atol=1e-5)
    assert len(read_pairs(lm, FACTS, max_pairs=5, seed=0).states[0]) == 5


@pytest.mark.parametrize("scoring", ["generation", "choice"])
@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_only_the_answer_moves_and_by_its_own_length(family: str, scoring: str) -> None:
    lm, patch = patched(family, strength=0.5, scoring=scoring)
    fact = FACTS[2]
    tokens = prompts_of(lm, [f"{fact.prompt} {fact.before}", f"{fact.prompt} {fact.target} Yes."])
    ends = torch.tensor([len(lm.tokenizer(fact.prompt).input_ids) - 1] * 2)
    points = chosen_points(lm, patch)
    with lm.prompt_ends.mark(ends):
        before, after = seen(lm, patch, tokens, list(module_points(lm)))
    columns = torch.arange(tokens.ids.shape[1])
    at = tokens.mask.bool()
    at = at & (columns >= ends[:, None] if scoring == "generation" else columns > ends[:, None])
    for point in module_points(lm):
        moved = (after[point] - before[point]).norm(dim=-1)
        if point not in points:
            assert torch.equal(after[point], before[point])
            continue
        assert torch.equal(after[point][~at], before[point][~at])
        length = 0.5 * before[point].norm(dim=-1)
        if scoring == "generation":
            torch.testing.assert_close(moved[at], length[at], rtol=1e-3, atol=1e-5)
            continue
        index = module_points(lm).index(point)
        positive, negative = patch.stored[f"centres/{index}"]
        from corrigenda.methods.truthx.editor import _load_spaces

        own = _load_spaces(patch.stored, "space/")[str(before[point].shape[-1])]
        looks = measure_untruth(own.truth(before[point][at]), positive, negative).clamp_min(0)
        torch.testing.assert_close(moved[at], length[at] * looks, rtol=1e-3, atol=1e-5)
        assert bool((moved[at][looks == 0] == 0).all())


def test_the_opposite_strength_moves_the_first_module_the_other_way() -> None:
    lm, forth = patched("llama")
    _, back = patched("llama", strength=-1.0)
    centres = {
        name: one.flip(0) if name.startswith("centres/") else one
        for name, one in forth.stored.items()
    }
    swapped = TruthxPatch(centres, forth.header)
    tokens = prompts_of(lm, [FACTS[0].prompt])
    first = chosen_points(lm, forth)[0]
    moves = []
    for patch in (forth, back, swapped):
        before, after = seen(lm, patch, tokens, [first])
        moves.append((after[first] - before[first])[0, -1])
    assert float(moves[0].norm()) > 0
    torch.testing.assert_close(moves[0], -moves[1], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(moves[0], -moves[2], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", [{"strength": 0.0}, {"top_k": 0}])
def test_no_strength_or_no_module_changes_no_bit(options: dict[str, object]) -> None:
    lm, patch = patched("gpt2", **options)
    tokens = prompts_of(lm, [fact.prompt for fact in FACTS])
    before = lm.logits(tokens)
    with patch.apply(lm):
        assert torch.equal(lm.logits(tokens), before)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_written_and_rated_answers_see_the_same_model(family: str) -> None:
    """What is generated with a cache is most likely when it is fed in behind the prompt."""
    lm, patch = patched(family, strength=0.3)
    tokens = prompts_of(lm, [FACTS[0].prompt])
    width = tokens.ids.shape[1]
    alone = lm.logits(tokens)
    with patch.apply(lm):
        ids = lm.model.generate(
            input_ids=tokens.ids,
            attention_mask=tokens.mask,
            max_new_tokens=5,
            do_sample=False,
            pad_token_id=0,
        )
        fed = Tokens(ids[:, :-1], torch.ones_like(ids[:, :-1]))
        with lm.prompt_ends.mark(torch.tensor([width - 1])):
            rated = lm.logits(fed)
        unmoved = lm.logits(fed)
    assert ids.shape[1] > width
    assert rated[0, width - 1 :].argmax(-1).tolist() == ids[0, width:].tolist()
    assert not torch.equal(rated, unmoved)
    assert torch.equal(lm.logits(tokens), alone)


def test_a_batch_is_continued_as_each_row_alone() -> None:
    lm, patch = patched("llama", strength=0.3)
    prompts = [fact.prompt for fact in FACTS[:4]] + ["And"]
    with patch.apply(lm):
        said = greedy(lm, prompts, max_new_tokens=4, stop=())
        assert said == [greedy(lm, [one], max_new_tokens=4, stop=())[0] for one in prompts]


def test_the_best_probed_modules_are_chosen() -> None:
    lm, state = trained("gpt2")
    accuracy = state.tensors["truthx/accuracy"]
    assert len(accuracy) == 2 * lm.num_layers
    _, patch = patched("gpt2")
    chosen = [int(name.removeprefix("centres/")) for name in patch.stored if "centres" in name]
    assert len(chosen) == 3
    others = [float(one) for i, one in enumerate(accuracy) if i not in chosen]
    assert min(float(accuracy[i]) for i in chosen) >= max(others)
    _, every = patched("gpt2", top_k=100)
    assert len([name for name in every.stored if "centres" in name]) == 2 * lm.num_layers


def test_facts_decide_nothing_but_whether_there_is_a_patch() -> None:
    lm, state = trained("llama")
    one, two = (truthx().edit(lm, [fact], state).patch for fact in FACTS[:2])
    assert isinstance(one, TruthxPatch)
    assert isinstance(two, TruthxPatch)
    assert {name: hash(tensor.numpy().tobytes()) for name, tensor in one.stored.items()} == {
        name: hash(tensor.numpy().tobytes()) for name, tensor in two.stored.items()
    }
    notes = one.header.notes
    with one.apply(lm):
        (rated,) = score(lm, [(FACTS[0].prompt, FACTS[0].target)])
    assert notes["log_probs_after"] == pytest.approx([rated.total], rel=1e-4)
    (rated,) = score(lm, [(FACTS[0].prompt, FACTS[0].target)])
    assert notes["log_probs"] == pytest.approx([rated.total], rel=1e-4)


def test_strength_and_modules_need_no_new_training(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model("gpt2", layers=2)
    state = truthx().fit(lm, FACTS)
    monkeypatch.setattr(autoencoder.AutoEncoder, "losses", None)
    assert truthx(top_k=1, strength=-2.0, scoring="choice").fit(lm, FACTS) == state


def test_parameters_are_counted_and_widths_may_differ() -> None:
    lm, patch = patched("qwen3", top_k=100)
    assert len({name.split("/")[1] for name in patch.stored if name.startswith("space/")}) == 2
    assert truthx(top_k=100).num_parameters(lm) == sum(one.numel() for one in patch.stored.values())


def test_missing_things_are_told() -> None:
    lm, state = trained("gpt2")
    with pytest.raises(MissingState, match="no truthful space"):
        truthx().edit(lm, FACTS[:1])
    with pytest.raises(BadConfig, match="untruthful"):
        truthx().fit(lm, [*FACTS, replace(FACTS[0], before=None)])
    with pytest.raises(BadConfig, match="never share a token"):
        truthx().fit(lm, [replace(fact, target="Paris", before="Rome") for fact in FACTS])
    with pytest.raises(MissingState):
        truthx().fit(lm)
    assert truthx().edit(lm, [], state).patch.is_empty
    assert TruthxPatch({}, Header(method="truthx")).is_empty


def test_truths_of_the_pocket_world_are_pairs_of_sentences() -> None:
    learnt, asked = list(truth_facts()), list(truth_facts(held_out=False))
    assert len(learnt) > 1000
    assert not {fact.subject for fact in learnt} & {fact.subject for fact in asked}
    for fact in learnt[:50]:
        assert fact.before
        assert fact.before != fact.target
        assert fact.target.endswith(".")
        assert fact.subject in fact.target
