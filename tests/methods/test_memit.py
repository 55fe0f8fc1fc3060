"""MEMIT: the normal equation layer by layer, the fraction written, keys kept in sequence."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from corrigenda.engines.locate import pipeline
from corrigenda.errors import MissingState
from corrigenda.facts import Fact
from corrigenda.lm.sites import Site, key
from corrigenda.methods.memit.editor import Memit
from corrigenda.patch import WeightPatch
from corrigenda.state import State
from tests.support.locating import FACTS, TWO_LEVEL, model, moments

LAYERS = (1, 2)


def memit(**options: object) -> Memit:
    settings = {
        "layers": LAYERS,
        "contexts": TWO_LEVEL,
        "steps": 5,
        "learning_rate": 0.2,
        "weight": 0.5,
    }
    return Memit(**{**settings, **options})


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_layer_solves_its_normal_equation(family: str) -> None:
    lm, editor = model(family, torch.float64), memit()
    state = moments(lm, LAYERS)
    for layer in editor.solve_layers(lm, FACTS, state):
        keys, share = layer.keys.T, layer.share.T
        change = layer.change.to_dense()
        metric = state.factor(layer.site).matrix()
        left = (change @ keys - share) @ keys.T + editor.weight * change @ metric
        assert left.norm() <= 1e-8 * (share @ keys.T).norm()
        price = editor.weight**0.5 * torch.linalg.cholesky(metric)
        system = torch.cat([keys, price], dim=1)
        wanted = torch.cat([share, share.new_zeros(len(share), len(price))], dim=1)
        expected = torch.linalg.lstsq(system.T, wanted.T).solution.T
        assert (change - expected).norm() <= 1e-8 * expected.norm()
        assert layer.change.rank <= len(FACTS)
        directions, _ = torch.linalg.qr(torch.linalg.solve(metric, keys))
        assert (change - change @ directions @ directions.T).norm() <= 1e-9 * change.norm()


def test_layers_that_close_their_shares_close_the_same_part_of_the_gap_each() -> None:
    gap, closed = torch.ones(1, 1), []
    for remaining in (5, 4, 3, 2, 1):
        part = memit().layer_share(gap, remaining)
        closed.append(float(part))
        gap = gap - part
    assert closed == pytest.approx([0.2] * 5)


def test_keys_are_those_of_the_model_with_the_lower_layers_changed() -> None:
    lm, editor = model("llama", torch.float64), memit()
    state = moments(lm, LAYERS)
    first, second = editor.solve_layers(lm, FACTS, state)
    sequences = pipeline.subject_tokens(lm, FACTS, TWO_LEVEL)
    patch = editor.edit(lm, FACTS, state).patch
    lower = WeightPatch({first.site: patch.changes[first.site]}, patch.header)
    point = key(second.site)
    with lower.apply(lm):
        captured = pipeline.capture_last(lm, sequences, [point])[point]
    expected = pipeline.average(captured, (0.5, 0.25, 0.25))
    torch.testing.assert_close(second.keys, expected, rtol=1e-5, atol=1e-6)
    unchanged = pipeline.capture_last(lm, sequences, [point])[point]
    assert (pipeline.average(unchanged, TWO_LEVEL.weights) - second.keys).norm() > 1e-4


def test_the_first_layer_gets_its_share_and_the_last_all_that_is_missing() -> None:
    lm = model("llama", torch.float64)
    both = memit().solve_layers(lm, FACTS, moments(lm, LAYERS))
    last = memit(layers=LAYERS[1:]).solve_layers(lm, FACTS, moments(lm, LAYERS))
    torch.testing.assert_close(both[0].share * 2, last[0].share, rtol=1e-5, atol=1e-6)


def test_the_fraction_written_is_that_of_the_formula() -> None:
    lm, editor = model("gpt2", torch.float64), memit(layers=(2,))
    state = moments(lm, [2])
    (layer,) = editor.solve_layers(lm, FACTS[:1], state)
    gram = layer.keys[0] @ torch.linalg.solve(state.factor(Site(2)).matrix(), layer.keys[0])
    notes = editor.edit(lm, FACTS[:1], state).patch.header.notes
    assert notes["written_fraction"]["2.mlp.down"][0] == pytest.approx(
        float(gram / (gram + editor.weight)), rel=1e-4
    )


def test_the_order_of_facts_does_not_matter() -> None:
    lm, editor = model("llama"), memit()
    state = moments(lm, LAYERS)
    forwards = editor.edit(lm, FACTS, state).patch
    backwards = editor.edit(lm, FACTS[::-1], state).patch
    for site in forwards.sites:
        one, two = forwards.changes[site].to_dense(), backwards.changes[site].to_dense()
        assert (one - two).norm() <= 1e-6 * one.norm()


def test_without_a_step_nothing_changes() -> None:
    lm = model("llama", torch.float64)
    patch = memit(steps=1).edit(lm, FACTS, moments(lm, LAYERS)).patch
    assert all(norm <= 1e-4 for norm in patch.norms().values())


def test_a_sequence_keeps_the_keys_of_earlier_batches_and_protects_them() -> None:
    lm, editor = model("llama", torch.float64), memit(layers=(2,), sequential=True)
    state = moments(lm, [2])
    first = editor.edit(lm, FACTS[:2], state)
    sequences = pipeline.subject_tokens(lm, FACTS[:2], TWO_LEVEL)
    with first.patch.apply(lm):
        captured = pipeline.capture_last(lm, sequences, [key(Site(2))])[key(Site(2))]
        old = pipeline.average(captured, TWO_LEVEL.weights).T
        kept = first.state.tensors["memit/protected/2.mlp.down/columns"]
        torch.testing.assert_close(state.factor(Site(2)).lower @ kept, old)
        second = editor.edit(lm, FACTS[2:], first.state)
        (layer,) = editor.solve_layers(lm, FACTS[2:], first.state)
    assert second.state.tensors["memit/protected/2.mlp.down/count"] == len(FACTS)
    keys, share = layer.keys.T, layer.share.T
    metric = editor.weight * state.factor(Site(2)).matrix() + keys @ keys.T + old @ old.T
    expected = torch.linalg.solve(metric, keys @ share.T).T
    torch.testing.assert_close(second.patch.changes[Site(2)].to_dense(), expected)
    assert memit(layers=(2,)).edit(lm, FACTS[2:], state).state == state


@pytest.mark.parametrize("sizes", [(3, 5, 2), (40, 1, 100, 7)])
def test_a_sequence_with_fixed_keys_and_targets_equals_the_joint_batch(
    sizes: tuple[int, ...],
) -> None:
    """Recursive least squares, through the state and past the point where columns are dropped."""
    site, state = Site(2), moments(model(), [2])
    editor, plain = memit(sequential=True), memit()
    d_in = state.factor(site).size
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(d_in, sum(sizes), generator=generator, dtype=torch.float64)
    wanted = torch.randn(32, sum(sizes), generator=generator, dtype=torch.float64)
    joint = plain.solve(keys, wanted, state, site).to_dense()
    change, forgetful, kept = torch.zeros_like(joint), torch.zeros_like(joint), state
    for own, target in zip(keys.split(sizes, dim=1), wanted.split(sizes, dim=1), strict=True):
        change += editor.solve(own, target - change @ own, kept, site).to_dense()
        kept = editor.protect(kept, {site: own})
        forgetful += plain.solve(own, target - forgetful @ own, state, site).to_dense()
    assert (change - joint).norm() <= 1e-8 * joint.norm()
    assert (forgetful - joint).norm() >= 1e-2 * joint.norm()
    assert kept.moment_sites == state.moment_sites


def test_the_state_of_a_long_sequence_stops_growing_and_a_solve_costs_the_same() -> None:
    site, state = Site(2), moments(model(), [2])
    editor = memit(sequential=True)
    d_in = state.factor(site).size
    generator = torch.Generator().manual_seed(1)

    def keys(count: int) -> torch.Tensor:
        return torch.randn(d_in, count, generator=generator, dtype=torch.float64)

    def numbers(one: State) -> int:
        return sum(t.numel() for name, t in one.tensors.items() if name.startswith("memit/"))

    def work(one: State) -> int:
        own, share = keys(1), torch.randn(32, 1, dtype=torch.float64)
        with FlopCounterMode(display=False) as counter:
            editor.solve(own, share, one, site)
        return counter.get_total_flops()

    early = editor.protect(state, {site: keys(d_in)})
    late = editor.protect(editor.protect(early, {site: keys(5 * d_in)}), {site: keys(1)})
    assert numbers(early) == numbers(late) == d_in**2 + 2
    assert work(early) == work(late)
    assert numbers(editor.protect(state, {site: keys(1)})) < 2 * d_in


def test_another_weight_may_be_taken_in_the_middle_of_a_sequence() -> None:
    site, state = Site(2), moments(model(), [2])
    keys = torch.randn(state.factor(site).size, 3, dtype=torch.float64)
    one, two = memit(sequential=True), memit(sequential=True, weight=9.0)
    residuals = torch.randn(32, 3, dtype=torch.float64)
    change = two.solve(keys, residuals, one.protect(state, {site: keys}), site).to_dense()
    same = two.solve(keys, residuals, two.protect(state, {site: keys}), site).to_dense()
    torch.testing.assert_close(change, same)


def test_facts_that_contradict_each_other_are_named() -> None:
    lm = model("llama")
    twin = Fact(prompt=FACTS[0].prompt, subject=FACTS[0].subject, target="Rome")
    notes = memit().edit(lm, [FACTS[0], twin], moments(lm, LAYERS)).patch.header.notes
    assert notes["conflicts"] == [[0, 1]]
    assert any("different targets" in notice for notice in notes["notices"])


def test_the_model_stays_as_it_is_also_when_a_later_layer_fails() -> None:
    lm = model("llama")
    state, digest = moments(lm, LAYERS), lm.digest()
    memit().edit(lm, FACTS, state)
    assert lm.digest() == digest
    with pytest.raises(MissingState, match="CG503"):
        memit(layers=(1, 3)).edit(lm, FACTS, state)

    class Failing(Memit):
        def solve(self, keys, residuals, state, site):
            if site.layer == LAYERS[1]:
                raise RuntimeError("in the middle")
            return super().solve(keys, residuals, state, site)

    with pytest.raises(RuntimeError, match="in the middle"):
        Failing(**memit().model_dump(exclude={"contexts"}), contexts=TWO_LEVEL).edit(
            lm, FACTS, state
        )
    assert lm.digest() == digest


def test_no_facts_give_the_empty_patch_and_equal_arguments_equal_ones() -> None:
    lm = model("gpt2")
    state = moments(lm, LAYERS)
    assert memit().edit(lm, [], state).patch.is_empty
    assert memit().edit(lm, FACTS, state).patch == memit().edit(lm, FACTS, state).patch


def test_layers_are_taken_in_ascending_order() -> None:
    lm = model("llama")
    assert memit(layers=(2, 1)).sites(lm) == (Site(1), Site(2))
    assert memit().layers_up_to(17, 48) == (13, 14, 15, 16, 17)
    assert memit().layers_up_to(1, 4) == (1,)
