"""EMMET: constraints met, the identity with MEMIT, and keys that cannot be constrained together."""

from __future__ import annotations

import random

import pytest
import torch

from corrigenda.engines.locate.contexts import Contexts
from corrigenda.errors import DependentKeys, NotEnoughFacts
from corrigenda.facts import Fact
from corrigenda.linalg.solve import rank_one
from corrigenda.lm.sites import Site, key
from corrigenda.methods.emmet.editor import Emmet
from corrigenda.methods.memit.editor import Memit
from tests.support.locating import FACTS, TWO_LEVEL, exact_dtype, model, moments

LAYER = 2
COMMON = {"contexts": TWO_LEVEL, "steps": 5, "learning_rate": 0.2}


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_every_constraint_is_met(family: str) -> None:
    lm, editor = model(family, exact_dtype(family)), Emmet(layer=LAYER, **COMMON)
    state = moments(lm, [LAYER])
    patch = editor.edit(lm, FACTS, state).patch
    constraint = editor.constraints(lm, FACTS, state)[Site(LAYER)]
    assert constraint.keys.shape[1] == len(FACTS)
    with patch.apply(lm):
        reached = lm.weight(Site(LAYER)).double() @ constraint.keys
    tolerance = 1e-8 if lm.dtype == torch.float64 else 1e-3
    torch.testing.assert_close(reached, constraint.values, rtol=tolerance, atol=tolerance)
    assert patch.changes[Site(LAYER)].rank <= len(FACTS)


def test_a_ridge_makes_it_memit_with_that_weight() -> None:
    lm = model("llama")
    state = moments(lm, [LAYER])
    emmet = Emmet(layer=LAYER, gamma=0.3, **COMMON).edit(lm, FACTS, state).patch
    memit = Memit(layers=(LAYER,), weight=0.3, **COMMON).edit(lm, FACTS, state).patch
    one, two = (patch.changes[Site(LAYER)].to_dense() for patch in (emmet, memit))
    assert (one - two).norm() <= 1e-10 * one.norm()
    assert not Emmet(gamma=0.3).supports.exact
    assert Emmet().supports.exact


def test_one_fact_is_rome_with_the_averaged_key_in_both_places() -> None:
    lm, editor = model("llama", torch.float64), Emmet(layer=LAYER, **COMMON)
    state = moments(lm, [LAYER])
    (layer,) = editor.solve_layers(lm, FACTS[:1], state)
    expected = rank_one(layer.keys[0], layer.share[0], state.factor(Site(LAYER)))
    torch.testing.assert_close(layer.change.to_dense(), expected.to_dense())


def test_two_facts_with_one_key_need_a_ridge() -> None:
    lm = model("llama")
    state = moments(lm, [LAYER])
    twins = [FACTS[0], Fact(prompt=FACTS[0].prompt, subject=FACTS[0].subject, target="Rome")]
    with pytest.raises(NotEnoughFacts, match=r"CG106.*\n.*Space Needle"):
        Emmet(layer=LAYER, **COMMON).edit(lm, twins, state)
    assert not Emmet(layer=LAYER, gamma=0.1, **COMMON).edit(lm, twins, state).patch.is_empty


def many_facts(count: int) -> list[Fact]:
    """Subjects of letters drawn at random, no two alike."""
    draw = random.Random(0)
    names = {"".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(2 * count)}
    return [
        Fact(prompt=f"The home of {name} is", subject=name, target=draw.choice(("Rome", "Cork")))
        for name in sorted(names)[:count]
    ]


def test_more_facts_than_inner_units_need_a_ridge_and_are_refused_at_once_without() -> None:
    lm = model("llama")
    state, d_in = moments(lm, [LAYER]), lm.d_inner
    facts = many_facts(d_in + 5)
    options = {"contexts": Contexts(("",)), "steps": 2}
    patch = Emmet(layer=LAYER, gamma=0.3, **options).edit(lm, facts, state).patch
    memit = Memit(layers=(LAYER,), weight=0.3, **options).edit(lm, facts, state).patch
    change, other = (one.changes[Site(LAYER)] for one in (patch, memit))
    assert change.rank <= min(lm.weight(Site(LAYER)).shape)
    assert change.norm() > 0
    assert (change.to_dense() - other.to_dense()).norm() <= 1e-10 * change.norm()
    (layer,) = Emmet(layer=LAYER, gamma=0.3, **options).solve_layers(lm, facts, state)
    keys, share, dense = layer.keys.T, layer.share.T, layer.change.to_dense()
    rest = (dense @ keys - share) @ keys.T + 0.3 * dense @ state.factor(Site(LAYER)).matrix()
    assert rest.norm() <= 1e-8 * (share @ keys.T).norm()
    with (
        pytest.raises(DependentKeys, match=f"{d_in + 5} facts .* {d_in} coordinates(.|\n)*gamma"),
        lm.swap({key(Site(0)): lambda _: pytest.fail("the model ran")}),
    ):
        Emmet(layer=LAYER, **options).edit(lm, facts, state)


def test_a_fact_given_twice_counts_as_once_with_half_the_ridge() -> None:
    lm = model("llama", torch.float64)
    state = moments(lm, [LAYER])
    once = Emmet(layer=LAYER, gamma=0.2, **COMMON).edit(lm, FACTS[:1], state).patch
    twice = Emmet(layer=LAYER, gamma=0.4, **COMMON).edit(lm, FACTS[:1] * 2, state).patch
    one, two = (patch.changes[Site(LAYER)].to_dense() for patch in (once, twice))
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-8)


def test_a_vanishing_ridge_gives_the_constrained_solution() -> None:
    lm = model("llama", torch.float64)
    state = moments(lm, [LAYER])
    exact = Emmet(layer=LAYER, **COMMON).edit(lm, FACTS, state).patch
    distances = []
    for gamma in (1.0, 1e-3, 1e-6):
        soft = Emmet(layer=LAYER, gamma=gamma, **COMMON).edit(lm, FACTS, state).patch
        one, two = (patch.changes[Site(LAYER)].to_dense() for patch in (soft, exact))
        distances.append(float((one - two).norm() / two.norm()))
    assert distances[0] > 100 * distances[1] > 1e4 * distances[2]


def test_the_model_stays_as_it_is() -> None:
    lm = model("gpt2")
    digest = lm.digest()
    editor = Emmet(layer=LAYER, **COMMON)
    patch = editor.edit(lm, FACTS, moments(lm, [LAYER])).patch
    assert lm.digest() == digest
    assert patch.header.notes["layers"] == [LAYER]
    assert editor.edit(lm, [], moments(lm, [LAYER])).patch.is_empty
