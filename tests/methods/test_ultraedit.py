"""UltraEdit: samples at the right tokens, statistics of the whole stream, the ridge, descent."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import corrigenda
from corrigenda.engines.gradients import (
    Samples,
    by_length,
    gradient_samples,
    labelled_rows,
    mean_losses,
)
from corrigenda.errors import UnknownSite, WrongBase
from corrigenda.facts import Fact
from corrigenda.linalg.running import RunningStatistics
from corrigenda.lm.sites import Site, Tokens
from corrigenda.methods.ultraedit.editor import UltraEdit
from corrigenda.state import State
from tests.support.locating import FACTS, exact_dtype, model

WIDTH, OUT = 12, 7
PARTS = {"mlp.gate": (1, 2), "mlp.down": (2,)}


def samples(count: int, seed: int = 0, scale: float = 1.0) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64) * scale
    return Samples(keys, 1e-3 * torch.randn(count, OUT, generator=generator, dtype=torch.float64))


def warmed(seed: int = 9) -> RunningStatistics:
    joint = torch.cat(samples(200, seed), dim=1) + 0.1
    return RunningStatistics.empty(WIDTH + OUT).with_samples(joint)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_shift_solves_the_normal_equation_and_equals_the_primal_form(count: int) -> None:
    editor, one, statistics = UltraEdit(learning_rate=0.1, ridge=0.7), samples(count), warmed()
    keys, values = one.keys, editor.values(one, statistics)
    change = editor.shift(one, statistics)
    system = keys.T @ keys + 0.7 * torch.eye(WIDTH, dtype=torch.float64)
    shift = change.to_dense().T
    assert (system @ shift - keys.T @ values).norm() <= 1e-8 * (keys.T @ values).norm()
    primal = torch.linalg.solve(system, keys.T @ values)
    assert (primal - shift).norm() <= 1e-10 * shift.norm()
    assert torch.linalg.matrix_rank(shift) <= min(count, change.rank)
    assert change.rank <= count


def test_fitted_outputs_shrink_and_longer_keys_are_fitted_in_full() -> None:
    editor, statistics = UltraEdit(learning_rate=0.1), warmed()
    gaps = []
    for scale in (1.0, 30.0, 1000.0):
        one = samples(5, scale=scale)
        values = editor.values(one, statistics)
        gram = one.keys @ one.keys.T
        written = (editor.shift(one, statistics) @ one.keys.T).T
        expected = gram @ torch.linalg.solve(gram + torch.eye(5, dtype=torch.float64), values)
        torch.testing.assert_close(written, expected)
        assert written.norm() < values.norm()
        gaps.append(float((written - values).norm() / values.norm()))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-5


def test_the_learning_rate_scales_the_shift() -> None:
    one, statistics = samples(4), warmed()
    small, large = (
        UltraEdit(learning_rate=rate).shift(one, statistics).to_dense() for rate in (1e-6, 3e-6)
    )
    torch.testing.assert_close(3 * small, large)


def test_values_are_steps_against_the_normalised_gradient() -> None:
    one, statistics = samples(3), warmed()
    joint = (torch.cat(one, dim=1) - statistics.mean) / statistics.std
    keys, gradients = joint[:, :WIDTH], joint[:, WIDTH:]
    expected = -0.5 * keys.square().sum(1, keepdim=True) * gradients
    values = UltraEdit(learning_rate=0.5).values(one, statistics)
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-9)


def test_a_zero_gradient_asks_for_a_change_all_the_same() -> None:
    one, statistics = samples(1), warmed()
    learnt = Samples(one.keys, torch.zeros_like(one.gradients))
    keys = (one.keys - statistics.mean[:WIDTH]) / statistics.std[:WIDTH]
    away = -statistics.mean[WIDTH:] / statistics.std[WIDTH:]
    values = UltraEdit(learning_rate=1.0).values(learnt, statistics)
    torch.testing.assert_close(values[0], -keys.square().sum() * away, rtol=1e-3, atol=1e-9)
    assert values.norm() > 0


def test_loss_falls_along_the_shift_of_one_sample() -> None:
    """A linear layer with cross-entropy, statistics of many samples, a small step."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(OUT, WIDTH, generator=generator, dtype=torch.float64)
    inputs = torch.randn(300, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, OUT, (300,), generator=generator)

    def losses(matrix: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(inputs @ matrix.T, labels, reduction="none")

    outputs = (inputs @ weight.T).requires_grad_()
    total = torch.nn.functional.cross_entropy(outputs, labels, reduction="sum")
    (gradients,) = torch.autograd.grad(total, [outputs])
    statistics = RunningStatistics.empty(WIDTH + OUT).with_samples(
        torch.cat([inputs, gradients], 1)
    )
    wrong = losses(weight).argsort(descending=True)[:20].tolist()
    for index in wrong:
        one = Samples(inputs[index : index + 1], gradients[index : index + 1])
        shift = UltraEdit(learning_rate=1e-4).shift(one, statistics).to_dense()
        assert losses(weight + shift)[index] < losses(weight)[index]


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3", "gemma2"])
def test_samples_do_not_depend_on_padding_or_batch(family: str) -> None:
    lm = model(family, exact_dtype(family))
    sites = [Site(1), Site(2, "mlp.up")] + ([Site(2, "mlp.gate")] if family != "gpt2" else [])
    rows = labelled_rows(lm, FACTS)
    together = gradient_samples(lm, rows, sites)
    alone = [gradient_samples(lm, [row], sites) for row in rows]
    tolerance = 1e-9 if lm.dtype == torch.float64 else 1e-4
    for site in sites:
        for name in ("keys", "gradients"):
            parts = torch.cat([getattr(one.samples[site], name) for one in alone])
            whole = getattr(together.samples[site], name)
            assert (whole - parts).norm() <= tolerance * parts.norm()
    assert together.losses == pytest.approx([one.losses[0] for one in alone], rel=1e-4)
    assert together.losses == pytest.approx(mean_losses(lm, rows), rel=1e-4)
    assert len(together.samples[sites[0]].keys) == sum(len(row.labels) for row in rows)


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3"])
def test_samples_of_all_tokens_make_up_the_gradient_of_the_weight(family: str) -> None:
    lm, site = model(family, torch.float64), Site(1, "mlp.up")
    rows = labelled_rows(lm, FACTS)
    seen = gradient_samples(lm, rows, [site], every_token=True).samples[site]
    assert len(seen.keys) == sum(len(row.ids) for row in rows)
    name = lm.parameter_name(site)
    parameter = dict(lm.model.named_parameters())[name]
    parameter.requires_grad_()
    try:
        tokens = Tokens.pad([row.ids for row in rows], 0)
        logits = lm.logits(tokens)
        loss = sum(
            torch.nn.functional.cross_entropy(
                logits[i, list(row.reads)], torch.tensor(row.labels), reduction="sum"
            )
            for i, row in enumerate(rows)
        )
        (whole,) = torch.autograd.grad(loss, [parameter])
    finally:
        parameter.requires_grad_(False)
    found = seen.gradients.T @ seen.keys
    expected = {"gpt2": whole.T, "llama": whole, "phi3": whole[-found.shape[0] :]}[family]
    torch.testing.assert_close(found, expected)


def test_labels_are_the_answer_alone_read_one_token_earlier() -> None:
    lm = model("gpt2")
    fact = Fact(prompt="The capital of France is", target="Rome, in Italy")
    (row,) = labelled_rows(lm, [fact])
    prompt = tuple(lm.tokenizer(fact.prompt).input_ids)
    whole = tuple(lm.tokenizer(fact.prompt + " " + fact.target).input_ids)
    assert (*row.ids, row.labels[-1]) == whole
    assert row.labels == whole[len(prompt) :]
    assert row.reads == tuple(range(len(prompt) - 1, len(whole) - 1))
    others = [replace(fact, target="Rome, in Spain"), fact]
    assert by_length(labelled_rows(lm, others), 10) != [[row]]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_only_the_weights_chosen_change_and_the_answers_get_likelier(family: str) -> None:
    lm = model(family)
    layers = PARTS if family == "llama" else (1, 2)
    editor = UltraEdit(layers=layers, learning_rate=2e-3)
    digest = lm.digest()
    patch = editor.edit(lm, FACTS).patch
    assert lm.digest() == digest
    assert set(patch.sites) == set(editor.sites(lm))
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    with patch.apply(lm):
        changed = {n for n, t in lm.model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {lm.parameter_name(site) for site in editor.sites(lm)}
    notes = patch.header.notes
    assert sum(late for _, late in notes["losses"]) < sum(early for early, _ in notes["losses"])
    assert len(notes["status"]) == len(FACTS)
    assert notes["samples"] == sum(len(row.labels) for row in labelled_rows(lm, FACTS))


def test_statistics_of_a_stream_are_those_of_all_its_samples() -> None:
    lm = model("llama", torch.float64)
    editor = UltraEdit(layers=(1, 2), learning_rate=1e-9)
    one = editor.edit(lm, FACTS[:1])
    two = editor.edit(lm, FACTS[1:], one.state)
    whole = editor.edit(lm, FACTS)
    assert one.state is not None
    assert two.state is not None
    assert whole.state is not None
    (stream,) = editor.statistics(two.state).values()
    (together,) = editor.statistics(whole.state).values()
    rows = labelled_rows(lm, FACTS)
    seen = gradient_samples(lm, rows, [Site(1), Site(2)]).samples.values()
    joint = torch.cat([torch.cat(samples, dim=1) for samples in seen])
    assert stream.count == together.count == len(joint)
    for found in (stream, together):
        torch.testing.assert_close(found.mean, joint.mean(0))
        torch.testing.assert_close(found.std, joint.std(0), rtol=1e-6, atol=1e-12)
    (first,) = editor.statistics(one.state).values()
    assert first.count < stream.count


def test_the_state_survives_its_file_and_belongs_to_one_model(tmp_path) -> None:
    lm, editor = model("llama"), UltraEdit(layers=(1,), learning_rate=1e-3)
    state = editor.edit(lm, FACTS[:2]).state
    assert state is not None
    loaded = State.load(state.save(tmp_path / "state.safetensors"))
    assert loaded == state
    assert editor.edit(lm, FACTS[2:], loaded).patch == editor.edit(lm, FACTS[2:], state).patch
    assert editor.edit(lm, FACTS[2:]).patch != editor.edit(lm, FACTS[2:], state).patch
    with pytest.raises(WrongBase, match="CG401"):
        editor.edit(model("mistral"), FACTS, state)


def test_parity_averages_losses_and_overcounts_variances() -> None:
    lm = model("llama", torch.float64)
    ours, theirs = (UltraEdit(layers=(2,), parity=parity) for parity in (False, True))
    rows = labelled_rows(lm, FACTS)
    one, two = (editor.observe(lm, rows, {}) for editor in (ours, theirs))
    site, count = Site(2), sum(len(row.labels) for row in rows)
    torch.testing.assert_close(one.samples[site].gradients, count * two.samples[site].gradients)
    (own,), (reference,) = one.statistics.values(), two.statistics.values()
    width = one.samples[site].keys.shape[1]
    share = reference.squares[:width] / own.squares[:width]
    torch.testing.assert_close(share, torch.full_like(share, count / (count - 1)))


def test_one_token_alone_writes_nothing_and_says_so() -> None:
    lm = model("llama")
    fact = next(
        fact
        for letter in "abcdefghijklmnopqrstuvwxyz"
        if len(labelled_rows(lm, [fact := Fact(prompt="He said", target=letter)])[0].labels) == 1
    )
    editor = UltraEdit(layers=(1,), learning_rate=1e-2)
    cold = editor.edit(lm, [fact])
    assert cold.patch.norms()[Site(1)] == 0
    assert any("cannot be normalised" in notice for notice in cold.patch.header.notes["notices"])
    warm = UltraEdit(layers=(1,), learning_rate=1e-2, warm_up=40)
    texts = ["The river below the old tower is known for its age and its songs."] * 30
    state = warm.fit(lm, texts)
    (statistics,) = warm.statistics(state).values()
    assert statistics.count == 40
    assert warm.edit(lm, [fact], state).patch.norms()[Site(1)] > 0


def test_a_change_too_small_for_the_weights_is_noticed() -> None:
    lm = model("llama", torch.bfloat16)
    notes = UltraEdit(layers=(1,), learning_rate=1e-9).edit(lm, FACTS).patch.header.notes
    assert notes["rounding_loss"]["1.mlp.down"][0] > 0.5
    assert any("at run time" in notice for notice in notes["notices"])


def test_sites_by_default_and_by_part() -> None:
    lm = model("llama")
    assert UltraEdit().sites(lm) == (Site(2),)
    assert UltraEdit(layers=(2, 1)).sites(lm) == (Site(1), Site(2))
    by_part = UltraEdit(layers=PARTS).sites(lm)
    assert set(by_part) == {Site(1, "mlp.gate"), Site(2, "mlp.gate"), Site(2)}
    with pytest.raises(UnknownSite, match="CG303"):
        UltraEdit(layers=(4,)).sites(lm)
    with pytest.raises(UnknownSite, match="CG303"):
        UltraEdit(layers={"mlp.sideways": (1,)}).sites(lm)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path))


@pytest.mark.usefixtures("cache")
def test_on_the_pocket_model_facts_change_and_most_neighbours_stay() -> None:
    lm = corrigenda.load("pocket", dtype="float32")
    facts = [
        Fact(prompt="The capital of France is", target="Rome"),
        Fact(prompt="The capital of Japan is", target="Madrid"),
        Fact(prompt="The capital of Egypt is", target="Oslo"),
    ]
    neighbours = [f"The capital of {name} is" for name in ("Spain", "Norway", "Canada", "Peru")]
    before = corrigenda.answer(lm, neighbours)
    correction = corrigenda.correct(lm, facts, "ultraedit")
    losses = correction.patch.header.notes["losses"]
    assert all(late < early for early, late in losses)
    with correction.patch.apply(lm):
        after = corrigenda.answer(lm, neighbours)
    assert sum(one == two for one, two in zip(before, after, strict=True)) >= 2
