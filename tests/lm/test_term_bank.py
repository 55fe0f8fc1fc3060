"""Terms of many patches as one hook, against hooks of their own."""

from __future__ import annotations

import random
from contextlib import ExitStack

import pytest
import torch

from corrigenda.lm.hooks import Term
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.session import session_of
from corrigenda.lm.sites import Point, Site, key, value
from corrigenda.lm.term_bank import add_rows
from corrigenda.methods.calinet.editor import CalinetPatch
from corrigenda.methods.calinet.slots import Slots, add_slots
from corrigenda.methods.t_patcher.editor import NeuronPatch
from corrigenda.patch import Header, WeightPatch
from corrigenda.patch.runtime import added_at_run_time
from corrigenda.testing.tiny import tiny_model
from tests.support.patches import *  # noqa: F403

SITE = Site(1)


def factors(lm: LanguageModel, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    d_out, d_in = lm.weight(SITE).shape
    rank = 1 + seed % 3
    return tuple(
        0.3 * torch.randn(rank, width, generator=draw, dtype=torch.float64)
        for width in (d_out, d_in)
    )


def sum_factors(rows, x, _):
    left, right = rows
    return (x @ right.T) @ left


def on(lm: LanguageModel, seed: int):
    return add_rows(lm, SITE, factors(lm, seed), kind="test", term=sum_factors)


def alone(lm: LanguageModel, seed: int):
    rows = [one.to(lm.dtype) for one in factors(lm, seed)]
    term: Term = lambda x, output: sum_factors([one.to(x) for one in rows], x, output)  # noqa: E731
    return lm.add({SITE: term})


def num_hooks(lm: LanguageModel) -> int:
    module = lm.module(SITE)
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_many_are_one_hook_and_give_what_separate_ones_give(family, logits) -> None:
    lm = tiny_model(family, dtype=torch.float64)
    plain = num_hooks(lm)
    with ExitStack() as stack:
        for seed in range(20):
            stack.enter_context(alone(lm, seed))
        expected = logits(lm)
    with ExitStack() as stack:
        stack.enter_context(on(lm, 0))
        one = num_hooks(lm)
        for seed in range(1, 20):
            stack.enter_context(on(lm, seed))
            if seed == 7:
                logits(lm)
        assert num_hooks(lm) == one
        torch.testing.assert_close(logits(lm), expected, rtol=1e-9, atol=1e-9)
    assert num_hooks(lm) == plain
    assert not session_of(lm.model).memories


def test_one_that_was_taken_off_leaves_no_trace(logits) -> None:
    lm = tiny_model("llama")
    draw = random.Random(0)
    before = logits(lm)
    kept = sorted(draw.sample(range(12), 5))
    with ExitStack() as stack:
        for seed in kept:
            stack.enter_context(on(lm, seed))
        expected = logits(lm)
    stacks = {seed: ExitStack() for seed in range(12)}
    for seed, stack in stacks.items():
        stack.enter_context(on(lm, seed))
        if seed % 4 == 0:
            logits(lm)
    logits(lm)
    for seed in draw.sample(range(12), 12):
        if seed not in kept:
            stacks[seed].close()
    assert torch.equal(logits(lm), expected)
    for seed in kept:
        stacks[seed].close()
    assert torch.equal(logits(lm), before)


def test_a_hook_between_two_stays_between_them(logits) -> None:
    """What replaces the output lies above the first term and below the second."""
    lm = tiny_model("llama", dtype=torch.float64)
    cut: dict[Point, object] = {value(SITE): lambda output: output * 0.5}
    with alone(lm, 1), lm.swap(cut), alone(lm, 2):
        expected = logits(lm)
    with on(lm, 1), lm.swap(cut), on(lm, 2):
        torch.testing.assert_close(logits(lm), expected, rtol=1e-9, atol=1e-9)
        with on(lm, 3):
            pass
        torch.testing.assert_close(logits(lm), expected, rtol=1e-9, atol=1e-9)


def test_terms_can_read_another_point(logits) -> None:
    lm = tiny_model("llama", dtype=torch.float64)
    point = key(Site(1, "mlp.up"))
    rows = torch.randn(2, 3, lm.d_model, dtype=torch.float64)

    def term(rows, x, _):
        return (x @ rows[0].T) @ rows[1]

    with lm.add({SITE: lambda x, out: term(rows, x, out)}, inputs={SITE: point}):
        expected = logits(lm)
    with ExitStack() as stack:
        for part in rows.split(1, dim=1):
            stack.enter_context(add_rows(lm, SITE, part, kind="p", term=term, point=point))
        torch.testing.assert_close(logits(lm), expected, rtol=1e-9, atol=1e-9)


def test_run_time_patches_share_a_hook(make_patch, logits) -> None:
    lm = tiny_model("llama", dtype=torch.float64)
    patches = [make_patch(lm, "1.mlp.down", seed=7 * number + 1) for number in range(6)]
    together = patches[0]
    for patch in patches[1:]:
        together = together + patch
    assert isinstance(together, WeightPatch)
    with added_at_run_time(together.changes, lm):
        expected = logits(lm)
    active = [patch.apply(lm, mode="runtime") for patch in patches]
    one = num_hooks(lm)
    torch.testing.assert_close(logits(lm), expected, rtol=1e-9, atol=1e-9)
    active.pop(2).revert()
    assert num_hooks(lm) == one
    lm.patches.clear()
    assert num_hooks(lm) < one


def neurons(lm: LanguageModel, seed: int) -> NeuronPatch:
    draw = torch.Generator().manual_seed(seed)
    stored = {
        "keys": torch.randn(2, lm.d_model, generator=draw),
        "biases": torch.full((2,), -1.0),
        "values": torch.randn(2, lm.d_model, generator=draw),
        "owners": torch.zeros(2, dtype=torch.long),
    }
    facts = ({"prompt": "Rome is", "target": str(seed)},)
    return NeuronPatch(
        stored, Header(method="t-patcher", facts=facts, notes={"activation": "relu"})
    )


def slots(lm: LanguageModel, seed: int) -> CalinetPatch:
    draw = torch.Generator().manual_seed(seed)
    names = ("keys", "gates", "values")
    drawn = [torch.randn(3, lm.d_model, generator=draw) for _ in names]
    stored = {f"1/{name}": one for name, one in zip(names, drawn, strict=True)}
    stored["1/values"] = stored["1/values"].T.contiguous()
    return CalinetPatch(stored, Header(method="calinet", facts=({"prompt": "a", "target": "b"},)))


@pytest.mark.parametrize("make", [neurons, slots])
def test_neurons_and_slots_of_many_patches_are_one_hook(make, logits) -> None:
    lm = tiny_model("llama", dtype=torch.float64)
    parts = [make(lm, seed) for seed in range(9)]
    with parts[0].apply(lm):
        one = len(session_of(lm.model).watched)
    active = [patch.apply(lm) for patch in parts]
    assert len(session_of(lm.model).watched) == one
    found = logits(lm)
    for entry in active:
        entry.revert()
    names = parts[0].stored
    if make is slots:
        columns = [name.endswith("values") for name in names]
        joint = {
            name.removeprefix("1/"): torch.cat([one.stored[name] for one in parts], dim=int(along))
            for name, along in zip(names, columns, strict=True)
        }
        with add_slots(lm, {1: Slots(**{name: one.double() for name, one in joint.items()})}):
            expected = logits(lm)
    else:
        joint = {name: torch.cat([one.stored[name] for one in parts]) for name in names}
        with NeuronPatch(joint, parts[0].header).apply(lm):
            expected = logits(lm)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.equal(found, logits(lm))
