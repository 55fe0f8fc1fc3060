"""T-Patcher: neurons that fire on one query each, their losses, the memory, taking them off."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch.nn.functional import linear

import corrigenda
from corrigenda.errors import UnknownSite, WrongBase
from corrigenda.facts import Fact
from corrigenda.lm.sites import Site, Tokens, key, value
from corrigenda.methods.t_patcher.editor import NeuronPatch, TPatcher
from corrigenda.methods.t_patcher.neurons import (
    Neurons,
    QueryMemory,
    _first_parameters,
    losses_of_neurons,
    raise_gate,
    read_logits,
    train,
    wrong_tokens,
)
from corrigenda.patch import header_for, load_patch
from corrigenda.state import State
from tests.support.locating import FACTS, model, pocket

QUICK = {
    "memory_size": 40,
    "validation_size": 10,
    "steps": 6,
    "first_check": 2,
    "check_every": 2,
    "learning_rate": 0.05,
}
TEXTS = [
    f"{place} is a town of {number} people, known for the river below it."
    for number, place in enumerate(("Arles", "Bergen", "Cork", "Delft", "Essen"), start=7)
]


@cache
def fitted(family: str = "gpt2") -> State:
    return TPatcher(**QUICK).fit(model(family), TEXTS)


def made(lm, neurons: Neurons, activation: str = "relu") -> NeuronPatch:
    owners = torch.arange(len(neurons.biases))
    notes = {"activation": activation, "layer": lm.num_layers - 1}
    header = header_for(lm, method="t-patcher", facts=FACTS[: len(owners)], notes=notes)
    return NeuronPatch({**neurons._asdict(), "owners": owners}, header)


def random_neurons(lm, count: int = 3, bias: float = 0.0) -> Neurons:
    generator = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(count, lm.d_model, generator=generator) for _ in range(2))
    return Neurons(keys, torch.full((count,), bias), values)


def tokens_of(lm, texts) -> Tokens:
    return Tokens.pad([lm.tokenizer(text).input_ids for text in texts], 0)


def test_the_own_activation_value_begins_at_one_and_values_at_zero() -> None:
    queries = torch.randn(4, 32) * torch.tensor([[1.0], [7.0], [50.0], [0.01]])
    editor = TPatcher()
    neurons = _first_parameters(queries, editor.training, seed=0).neurons()
    torch.testing.assert_close((queries * neurons.keys).sum(1) + neurons.biases, torch.ones(4))
    assert not neurons.values.any()
    noisy = _first_parameters(queries, TPatcher(value_noise=1.0).training, seed=0).neurons()
    assert float(noisy.values.detach().std()) == pytest.approx(10.0, rel=0.3)


def test_losses_fall_with_the_own_value_and_rise_with_the_memory() -> None:
    training = TPatcher(top_memory=5).training
    own, memory = torch.randn(2, 8), torch.randn(30, 8)
    keys = torch.randn(2, 8)

    def losses(bias: float, extra: float) -> tuple[float, float]:
        neurons = Neurons(keys, torch.full((2,), bias), keys)
        shifted = memory + extra * keys.sum(0)
        loud, quiet = losses_of_neurons(neurons, own, shifted, training)
        return float(loud), float(quiet)

    assert losses(1.0, 0.0)[0] < losses(0.0, 0.0)[0]
    one = Neurons(keys[:1], torch.zeros(1), keys[:1])
    lower, higher = (
        losses_of_neurons(one, own[:1], memory + step * keys[:1], training)[1]
        for step in (0.0, 0.1)
    )
    assert float(higher) > float(lower)


def test_losses_are_those_of_the_paper() -> None:
    training = TPatcher(top_memory=2, top_own=1, activation_margin=0.5).training
    one = Neurons(torch.tensor([[1.0]]), torch.tensor([0.25]), torch.tensor([[0.0]]))
    own, memory = torch.tensor([[2.0]]), torch.tensor([[-1.0], [1.0], [-3.0]])
    z, heard = torch.tensor(2.25), torch.tensor([1.25, -0.75])
    loud, quiet = losses_of_neurons(one, own, memory, training)
    torch.testing.assert_close(loud, (-z + 0.5).exp())
    expected = (heard - z + 3.0).exp().mean() + (heard + 3.0).exp().mean()
    torch.testing.assert_close(quiet, expected)


def test_the_gradient_of_the_silence_is_a_positive_mix_of_the_memory() -> None:
    training = TPatcher(memory_margin=-1e9).training
    memory = torch.randn(6, 8, dtype=torch.float64)
    keys = torch.randn(1, 8, dtype=torch.float64, requires_grad=True)
    neurons = Neurons(keys, torch.zeros(1, dtype=torch.float64), keys)
    _, quiet = losses_of_neurons(neurons, memory[:1], memory, training)
    (gradient,) = torch.autograd.grad(quiet, [keys])
    weights = torch.linalg.lstsq(memory.T, gradient.T).solution[:, 0]
    torch.testing.assert_close(memory.T @ weights, gradient[0])
    assert bool((weights > 0).all())


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma2", "phi3", "opt"])
def test_neurons_add_what_a_wider_block_would(family: str) -> None:
    """A patch equals keys appended to the block's first layer and values to its second."""
    lm = model(family)
    neurons, site = random_neurons(lm), Site(lm.num_layers - 1)
    tokens = tokens_of(lm, [fact.prompt for fact in FACTS[:2]])
    queries = lm.tap(tokens, [key(Site(site.layer, "mlp.up"))])[key(Site(site.layer, "mlp.up"))]
    inner = lm.tap(tokens, [key(site)])[key(site)]
    wide_inner = torch.cat([inner, torch.relu(linear(queries, neurons.keys, neurons.biases))], -1)
    wide = linear(wide_inner, torch.cat([lm.weight(site), neurons.values.T], 1), lm.bias(site))
    with made(lm, neurons).apply(lm):
        seen = lm.tap(tokens, [value(site)])[value(site)]
    torch.testing.assert_close(seen, wide, rtol=1e-4, atol=1e-4)


def test_silent_neurons_leave_every_bit() -> None:
    lm = model("llama")
    tokens = tokens_of(lm, [fact.prompt for fact in FACTS])
    before = lm.logits(tokens)
    with made(lm, random_neurons(lm, bias=-1e3)).apply(lm):
        assert torch.equal(lm.logits(tokens), before)
    one = random_neurons(lm, bias=5.0)
    with made(lm, one._replace(values=torch.zeros_like(one.values))).apply(lm):
        assert torch.equal(lm.logits(tokens), before)
    with made(lm, one).apply(lm):
        assert not torch.equal(lm.logits(tokens), before)


def test_the_activation_of_the_model_may_be_asked_for() -> None:
    lm = model("llama")
    tokens = tokens_of(lm, [FACTS[0].prompt])
    neurons = random_neurons(lm, bias=-2.0)
    before = lm.logits(tokens)
    with made(lm, neurons, "host").apply(lm):
        assert not torch.equal(lm.logits(tokens), before)


def test_only_wrong_tokens_get_neurons_and_no_more_than_allowed() -> None:
    lm, state = model("gpt2"), fitted()
    notes = TPatcher(**QUICK).edit(lm, FACTS[1:2], state).patch.header.notes
    assert all(count <= 5 for count in notes["neurons"])
    few = TPatcher(**QUICK, max_neurons=2).edit(lm, FACTS[1:2], state).patch
    assert few.header.notes["tokens"] == [notes["tokens"][0][:2]]
    one, _ = TPatcher()._run_fact(lm, FACTS[1], Site(lm.num_layers - 1))
    known = one._replace(labels=read_logits(lm, one, None, torch.relu).argmax(1))
    memory = QueryMemory(torch.randn(5, lm.d_model), torch.randn(5, lm.d_model))
    trained = train(
        lm, known, memory, TPatcher().training, act=torch.relu, most=5, seed=0, where="fact"
    )
    assert trained.stop == "nothing to mend"
    assert trained.neurons.keys.shape == (0, lm.d_model)


def test_training_separates_the_own_query_from_the_memory() -> None:
    lm = model("llama")
    editor = TPatcher(
        **{**QUICK, "steps": 150, "first_check": 50, "check_every": 25, "smoothing": 0.0},
    )
    one, _ = editor._run_fact(lm, FACTS[0], Site(lm.num_layers - 1))
    memory = torch.randn(60, lm.d_model, generator=torch.Generator().manual_seed(3))
    memory = memory * one.queries.norm(dim=1).mean() / lm.d_model**0.5
    trained = train(
        lm,
        one,
        QueryMemory(memory[:40], memory[40:]),
        editor.training,
        act=torch.relu,
        most=5,
        seed=0,
        where="fact",
    )
    assert wrong_tokens(lm, one, trained.neurons, torch.relu) == []
    z = (one.queries[trained.tokens] * trained.neurons.keys).sum(1) + trained.neurons.biases
    heard = trained.neurons.activations(memory)
    assert bool((z > heard[:40].amax(0)).all())
    assert float((heard[40:] > 0).double().mean()) < 0.2


def test_a_batch_is_the_sequence_of_its_facts() -> None:
    lm, state, editor = model("gpt2"), fitted(), TPatcher(**QUICK)
    together = editor.edit(lm, FACTS[:2], state)
    first = editor.edit(lm, FACTS[:1], state)
    assert isinstance(together.patch, NeuronPatch)
    mine = together.patch.stored["owners"] == 0
    assert torch.equal(together.patch.neurons.keys[mine], first.patch.neurons.keys)
    assert together.state is not None
    assert first.state is not None
    grown = len(together.state.tensors["t-patcher/edits"])
    rows = [lm.tokenizer(f"{fact.prompt} {fact.target}").input_ids for fact in FACTS[:2]]
    assert grown == sum(len(row) - 1 for row in rows)
    assert 0 < len(first.state.tensors["t-patcher/edits"]) < grown


def test_a_fact_can_be_taken_out_and_the_others_stay() -> None:
    lm, editor = model("gpt2"), TPatcher(**QUICK)
    patch = editor.edit(lm, FACTS[:3], fitted()).patch
    fewer = patch.without(1)
    owners = patch.stored["owners"]
    for name in ("keys", "biases", "values"):
        assert torch.equal(fewer.stored[name], patch.stored[name][owners != 1])
    assert set(fewer.stored["owners"].tolist()) == {0, 1}
    assert [fact.prompt for fact in fewer.facts] == [FACTS[0].prompt, FACTS[2].prompt]
    alone = editor.edit(lm, FACTS[:1], fitted()).patch
    tokens = tokens_of(lm, [fact.prompt for fact in FACTS])
    with patch.without(2).without(1).apply(lm):
        left = lm.logits(tokens)
    with alone.apply(lm):
        assert torch.equal(lm.logits(tokens), left)


def test_the_same_prompt_can_be_edited_again() -> None:
    """Its query is in the memory by then, and cannot be told from itself."""
    lm, editor = model("gpt2"), TPatcher(**{**QUICK, "steps": 40, "memory_weight": 0.1})
    first = editor.edit(lm, FACTS[:1], fitted())
    with first.patch.apply(lm):
        again = Fact(prompt=FACTS[0].prompt, target="Oslo")
        second = editor.edit(lm, [again], first.state).patch
    losses = second.header.notes["losses"][0]
    assert losses[-1] < losses[0]


def test_the_state_belongs_to_one_model_and_the_patch_survives_its_file(tmp_path) -> None:
    lm, editor = model("gpt2"), TPatcher(**QUICK)
    patch, state = editor.edit(lm, FACTS[:1], fitted())
    assert load_patch(patch.save(tmp_path / "patch.safetensors")) == patch
    loaded = State.load(state.save(tmp_path / "state.safetensors"))
    assert editor.edit(lm, FACTS[1:2], loaded).patch == editor.edit(lm, FACTS[1:2], state).patch
    with pytest.raises(WrongBase, match="CG401"):
        editor.edit(model("llama"), FACTS[:1], state)


def test_a_mixture_of_experts_is_refused() -> None:
    with pytest.raises(UnknownSite, match="CG303"):
        TPatcher(**QUICK).sites(model("qwen3_moe"))


def test_on_the_pocket_model_a_fact_changes_and_neighbours_stay(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path))
    lm = pocket()
    fact = Fact(prompt="The capital of France is", target="Rome")
    neighbours = [f"The capital of {name} is" for name in ("Spain", "Norway", "Canada", "Peru")]
    before = corrigenda.answer(lm, neighbours)
    editor = TPatcher(memory_size=600, validation_size=100, top_memory=200, steps=100)
    patch = editor.edit(lm, [fact], editor.fit(lm)).patch
    with patch.apply(lm):
        assert corrigenda.answer(lm, [fact.prompt]) == ["Rome"]
        after = corrigenda.answer(lm, neighbours)
    assert sum(one == two for one, two in zip(before, after, strict=True)) >= 3


def test_only_silent_neurons_promise_to_contain_the_edit() -> None:
    assert TPatcher(gate=0.5).supports.contained
    assert not TPatcher().supports.contained
    assert not TPatcher(gate=0.5, activation="host").supports.contained


def test_a_query_that_hardly_excites_a_neuron_is_silent_by_a_margin() -> None:
    """Silence must not hang on the rounding of a value near zero, which differs by processor."""
    lm, state = model("llama"), fitted("llama")
    quick = {**QUICK, "steps": 60, "first_check": 60, "learning_rate": 0.2}
    editor = TPatcher(**quick, gate=0.5)
    (site,) = editor.sites(lm)
    patch = editor.edit(lm, FACTS[:1], state).patch
    assert isinstance(patch, NeuronPatch)
    one, _ = editor._run_fact(lm, FACTS[0], site)
    own = one.queries[patch.header.notes["tokens"][0]]
    neurons = patch.neurons
    z = (own * neurons.keys).sum(1) + neurons.biases
    assert bool((z > 0).all())
    # As published, the bias is higher by as much as z, which is half of the value then.
    published = Neurons(neurons.keys, neurons.biases + z, neurons.values / 2)
    along = neurons.keys / neurons.keys.square().sum(1, keepdim=True)
    for share, silent in ((0.45, True), (0.55, False)):
        queries = own - (1 - share) * 2 * z[:, None] * along
        heard = published.activations(queries).diagonal()
        torch.testing.assert_close(heard, share * 2 * z)
        assert bool((neurons.activations(queries).diagonal() > 0).all()) is not silent
    terms = [
        torch.relu(some.activations(own).diagonal())[:, None] * some.values
        for some in (neurons, published)
    ]
    torch.testing.assert_close(*terms)


def test_without_a_gate_neurons_are_the_published_ones_and_promise_nothing() -> None:
    neurons, own = Neurons(torch.ones(2, 3), torch.zeros(2), torch.ones(2, 3)), torch.ones(2, 3)
    assert all(map(torch.equal, raise_gate(neurons, own, 0.0), neurons))
    silent = Neurons(torch.ones(2, 3), torch.full((2,), -5.0), torch.ones(2, 3))
    assert all(map(torch.equal, raise_gate(silent, own, 0.5), silent))
