"""MALMEN: the merge is least squares, both backward passes are one, batches change nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from corrigenda.almanac.exam import load_exam
from corrigenda.almanac.training_facts import training_facts
from corrigenda.engines.gradients import Samples, gradient_samples, labelled_rows
from corrigenda.errors import UnknownSite
from corrigenda.facts import Fact
from corrigenda.knowledge.edit_trial import try_batch_edit
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods.malmen.editor import Malmen, MalmenTrainer, MergeExample
from corrigenda.methods.malmen.least_squares import MergedTokens, TokenSum
from corrigenda.methods.malmen.network import ProposalNetwork
from corrigenda.patch.changes import dense
from tests.support.hypernetworks import (
    TAUGHT,
    divergence,
    drawn,
    read,
    require_killed_is_whole,
    require_own_state,
    reworded,
    with_shifts,
)
from tests.support.locating import FACTS, model, pocket

WIDTH, OUT = 12, 7
FEW, MANY = 5, 40
QUICK = {
    "layers": (1, 2), "num_edits": 3, "rank": 8, "edit_rate": 0.01, "learning_rate": 1e-3,
    "steps": 3, "validate_every": 2, "micro_batch": 2, "chunk": 3,
}  # fmt: skip


def network(members: int = 2, *, moved: bool = False) -> ProposalNetwork:
    generator = torch.Generator().manual_seed(3)
    made = ProposalNetwork(
        (OUT, WIDTH), members, rank=4, blocks=2, rate=0.1, damping=0.7, generator=generator
    ).double()
    if moved:
        with torch.no_grad():
            for parameter in made.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * noise)
    return made


def samples(count: int, seed: int = 0) -> Samples:
    return Samples(drawn(count, WIDTH, seed=seed), 1e-3 * drawn(count, OUT, seed=seed + 1))


@pytest.mark.parametrize("count", [1, FEW, WIDTH, MANY])
@pytest.mark.parametrize("damping", [0.03, 2.0])
def test_the_merge_is_least_squares_of_the_augmented_system(count: int, damping: float) -> None:
    keys, values = drawn(count, WIDTH, seed=0), drawn(count, OUT, seed=1)
    identity = damping**0.5 * torch.eye(WIDTH, dtype=torch.float64)
    system = torch.cat([keys, identity])
    wanted = torch.cat([values, torch.zeros(WIDTH, OUT, dtype=torch.float64)])
    expected = torch.linalg.lstsq(system, wanted).solution
    merged = MergedTokens.of(keys, values, damping)
    assert merged.dual == (count < WIDTH)
    torch.testing.assert_close(merged.shift().T, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(dense(merged.change()), merged.shift())
    primal = torch.linalg.solve(keys.T @ keys + identity @ identity, keys.T @ values)
    dual = keys.T @ torch.linalg.solve(
        keys @ keys.T + damping * torch.eye(count, dtype=torch.float64), values
    )
    torch.testing.assert_close(primal, dual)
    torch.testing.assert_close(merged.shift().T, primal)


def test_one_token_gives_its_closed_form() -> None:
    keys, values = drawn(1, WIDTH, seed=0), drawn(1, OUT, seed=1)
    expected = keys.T @ values / (keys.square().sum() + 0.5)
    torch.testing.assert_close(MergedTokens.of(keys, values, 0.5).shift().T, expected)


def test_little_damping_fits_independent_keys_and_much_leaves_nothing() -> None:
    keys, values = drawn(FEW, WIDTH, seed=0), drawn(FEW, OUT, seed=1)
    fitted = MergedTokens.of(keys, values, 1e-10).shift()
    torch.testing.assert_close(keys @ fitted.T, values, rtol=1e-7, atol=1e-7)
    heavy = MergedTokens.of(keys, values, 1e9).shift()
    torch.testing.assert_close(1e9 * heavy.T, keys.T @ values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [FEW, MANY])
def test_repeated_tokens_count_like_less_damping(count: int) -> None:
    keys, values = drawn(count, WIDTH, seed=0), drawn(count, OUT, seed=1)
    thrice = MergedTokens.of(keys.repeat(3, 1), values.repeat(3, 1), 0.6).shift()
    torch.testing.assert_close(thrice, MergedTokens.of(keys, values, 0.2).shift())


@pytest.mark.parametrize("count", [FEW, MANY])
def test_gathering_in_pieces_in_any_order_is_the_merge_of_all(count: int) -> None:
    keys, values = drawn(count, WIDTH, seed=0), drawn(count, OUT, seed=1)
    expected = MergedTokens.of(keys, values, 0.3).shift()
    for size in (1, 4, count):
        for order in (torch.arange(count), torch.arange(count).flip(0)):
            one = TokenSum()
            for part in order.split(size):
                one.add(keys[part], values[part])
            assert one.count == count
            torch.testing.assert_close(dense(one.change(0.3)), expected)


def test_gathering_more_tokens_than_inputs_keeps_only_sums() -> None:
    one = TokenSum()
    for seed in range(6):
        one.add(drawn(10, WIDTH, seed=seed), drawn(10, OUT, seed=seed))
    assert not one._keys
    assert one.change(1.0).shape == (OUT, WIDTH)


@pytest.mark.parametrize("count", [FEW, MANY])
def test_gradients_of_the_merge_are_those_of_autograd_and_of_differences(count: int) -> None:
    keys = drawn(count, WIDTH, seed=0)
    values = drawn(count, OUT, seed=1).requires_grad_()
    log_damping = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
    back = drawn(OUT, WIDTH, seed=2)
    system = keys.T @ keys + log_damping.exp() * torch.eye(WIDTH, dtype=torch.float64)
    loss = (torch.linalg.solve(system, keys.T @ values).T * back).sum()
    expected = torch.autograd.grad(loss, [values, log_damping])
    found = MergedTokens.of(keys, values.detach(), float(log_damping.detach().exp())).backward(back)
    torch.testing.assert_close(found.values, expected[0], rtol=1e-10, atol=1e-13)
    assert found.log_damping == pytest.approx(float(expected[1]), rel=1e-10)

    def at(log: float) -> float:
        shift = MergedTokens.of(
            keys, values.detach(), float(torch.tensor(log).double().exp())
        ).shift()
        return float((shift * back).sum())

    slope = (at(-0.4 + 1e-4) - at(-0.4 - 1e-4)) / 2e-4
    assert found.log_damping == pytest.approx(slope, rel=1e-4)


def test_an_untrained_network_proposes_the_normalised_samples() -> None:
    one, seen = network(), samples(30)
    one.update_statistics(seen)
    joint = torch.cat(seen, dim=1)
    expected = (joint - joint.mean(0)) / (joint.std(0) + 1e-7)
    torch.testing.assert_close(torch.cat(one.propose(seen, 0), dim=1), expected)
    torch.testing.assert_close(one.normalise(seen), expected)


def test_values_are_the_effect_of_rank_one_proposals_on_their_own_keys() -> None:
    one, seen = network(moved=True), samples(6)
    one.update_statistics(samples(50, 8))
    proposed = one.propose(seen, 1)
    for place in range(6):
        change = -one.rate[1] * torch.outer(proposed.gradients[place], proposed.keys[place])
        torch.testing.assert_close(one.values(seen, 1)[place], change @ seen.keys[place])
    assert not torch.allclose(one.values(seen, 0), one.values(seen, 1))


def test_an_untrained_network_can_learn() -> None:
    """The rectifier passes gradients where its input is exactly zero."""
    one, seen = network(), samples(6)
    one.update_statistics(seen)
    one.values(seen, 0).square().sum().backward()
    for block in one.blocks:
        for name in ("up", "bias", "offset"):
            assert block.get_parameter(name).grad.norm() > 0


def test_statistics_do_not_depend_on_the_size_of_pieces_and_one_token_is_no_nan() -> None:
    whole, pieces = network(), network()
    seen = samples(9)
    whole.update_statistics(seen)
    for keys, gradients in zip(seen.keys.split(1), seen.gradients.split(1), strict=True):
        pieces.update_statistics(Samples(keys, gradients))
        assert bool(pieces.normalise(seen).isfinite().all())
    torch.testing.assert_close(whole.seen.statistics.std, pieces.seen.statistics.std)
    assert pieces.seen.statistics.count == 9


def questions(facts: Sequence[Fact] = TAUGHT[:3]) -> list[MergeExample]:
    return [
        MergeExample(
            fact,
            reworded(fact),
            fact.neighbours[0],
        )
        for fact in facts
    ]


def lesson(lm: LanguageModel, **options: object) -> MalmenTrainer:
    editor = Malmen(**{**QUICK, "rank": 4, **options})
    made = MalmenTrainer(editor, lm, editor.build_network(lm).to(lm.dtype))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.add_(1e-3 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return made


def reference_objective(lm: LanguageModel, one: MalmenTrainer, asked: list[MergeExample]) -> Tensor:
    """Everything in one graph: network, solve, a model with other weights, losses."""
    sites = one.editor.sites(lm)
    captured = [
        gradient_samples(lm, [row], sites) for row in labelled_rows(lm, [q.fact for q in asked])
    ]
    changed = {}
    for site in sites:
        net, member = one.network.find(site)
        found = Samples(
            *(torch.cat(parts) for parts in zip(*(c.samples[site] for c in captured), strict=True))
        )
        values, keys = net.values(found, member), found.keys
        system = keys.T @ keys + net.log_damping[member].exp() * torch.eye(
            keys.shape[1], dtype=torch.float64
        )
        changed |= with_shifts(lm, {site: torch.linalg.solve(system, keys.T @ values).T})
    gains = [
        -read(lm, row, changed).gather(1, torch.tensor(row.labels)[:, None])
        for row in labelled_rows(lm, [q.paraphrase for q in asked])
    ]
    drift = divergence(lm, one.answers.rows([q.unrelated for q in asked]), changed)
    return torch.cat(gains).mean() + one.editor.locality_weight * drift


@pytest.mark.parametrize(("family", "layers"), [("gpt2", (1, 2)), ("llama", {"mlp.up": (1,)})])
def test_two_backward_passes_are_one(family: str, layers: object) -> None:
    lm = model(family, torch.float64)
    one = lesson(lm, layers=layers, locality_weight=0.5, micro_batch=8)
    asked = questions()
    one.learn(asked)
    named = dict(one.network.named_parameters())
    found = {name: parameter.grad for name, parameter in named.items()}
    one.network.zero_grad()
    reference_objective(lm, one, asked).backward()
    for name, parameter in named.items():
        assert parameter.grad is not None
        scale = float(parameter.grad.norm())
        assert (found[name] - parameter.grad).norm() <= 1e-6 * scale + 1e-14, name
    assert any(float(one.norm()) > 0 for one in found.values())


def test_chunks_and_passes_change_nothing() -> None:
    lm = model("llama", torch.float64)
    found = []
    for chunk in (1, 100):
        one = lesson(lm, chunk=chunk, micro_batch=8)
        one.learn(questions())
        found.append([parameter.grad for parameter in one.network.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_training_leaves_the_model_and_goes_on_where_it_was_killed(tmp_path) -> None:
    training = require_killed_is_whole(Malmen(**QUICK), tmp_path).meta["malmen"]["training"]
    assert training["steps"] == 3
    assert {"paraphrase_loss", "divergence", "efficacy"} <= set(training["trace"][0])


def test_edits_in_any_order_and_batch_are_the_same_and_say_how_they_went() -> None:
    lm = model("llama", torch.float64)
    editor = Malmen(**QUICK)
    state = editor.train(lm, TAUGHT)
    patch = editor.edit(lm, FACTS, state).patch
    other = Malmen(**{**QUICK, "micro_batch": 1, "chunk": 100})
    for again in (
        editor.edit(lm, FACTS[::-1], state).patch,
        other.edit(lm, FACTS, state).patch,
    ):
        for site, change in patch.changes.items():
            assert (dense(again.changes[site]) - dense(change)).norm() <= 1e-4 * dense(
                change
            ).norm()
    notes = patch.header.notes
    assert len(notes["status"]) == len(notes["losses"]) == len(FACTS)
    assert notes["samples"]["1.mlp.down"] == sum(
        len(row.labels) for row in labelled_rows(lm, FACTS)
    )
    assert not any("at once" in text for text in notes["notices"])
    alone = Malmen(**{**QUICK, "num_edits": 5}).train(lm, TAUGHT)
    notices = editor.edit(lm, FACTS[:1], alone).patch.header.notes["notices"]
    assert "trained to edit 5 facts at once, and these are 1" in notices[0]


def test_all_tokens_propose_where_asked() -> None:
    lm = model("gpt2")
    editor = Malmen(**QUICK, tokens="all")
    notes = editor.edit(lm, FACTS[:2], editor.train(lm, TAUGHT)).patch.header.notes
    tokens = sum(len(row.ids) for row in labelled_rows(lm, FACTS[:2]))
    assert notes["samples"]["2.mlp.down"] == tokens


def test_a_state_survives_the_disk_and_fits_its_editor_and_model_only(tmp_path) -> None:
    others = ({"rank": 9}, {"layers": (1,)}, {"tokens": "all"})
    require_own_state(Malmen(**QUICK), [Malmen(**{**QUICK, **one}) for one in others], tmp_path)
    with pytest.raises(UnknownSite, match="no block 9"):
        Malmen(layers=(9,)).sites(model("gpt2"))


def test_the_last_six_blocks_change_unless_others_are_named() -> None:
    assert Malmen().sites(pocket()) == tuple(Site(layer) for layer in range(2, 8))
    assert Malmen().sites(model("gpt2")) == tuple(Site(layer) for layer in range(4))


def test_a_batch_on_the_pocket_model_is_said_and_most_of_the_rest_stays() -> None:
    lm = pocket()
    editor = Malmen(
        layers=(5, 6, 7), num_edits=16, rank=8, edit_rate=2.5e-3, learning_rate=1e-4, steps=2
    )
    facts = list(training_facts())
    state = editor.train(lm, tuple(facts[::50]))
    cases = load_exam(edits=10, seed=11).edits
    figures = try_batch_edit(lm, editor, cases, state=state)
    assert figures.efficacy is not None
    assert figures.locality is not None
    assert figures.efficacy >= 0.7
    assert figures.locality >= 0.4
