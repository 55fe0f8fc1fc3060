"""AlphaEdit: what stays free, what leaks, sequences against joint batches, what the state holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from corrigenda.almanac.exam import draw_edits
from corrigenda.almanac.world import load_world
from corrigenda.engines.locate import pipeline
from corrigenda.errors import BadConfig, MissingState
from corrigenda.linalg.solve import ridge
from corrigenda.lm.decoding import answer
from corrigenda.lm.sites import Site, key
from corrigenda.methods.alphaedit.editor import AlphaEdit
from corrigenda.methods.presets import build_editor
from corrigenda.state import State
from corrigenda.statistics import Corpus
from tests.support.locating import FACTS, TWO_LEVEL, model, moments, pocket, pocket_moments

LAYERS = (1, 2)
SITE = Site(2)
WIDTH = 80  # of the down projections of the tiny Llama


def alphaedit(**options: object) -> AlphaEdit:
    settings = {
        "layers": LAYERS,
        "contexts": TWO_LEVEL,
        "steps": 5,
        "learning_rate": 0.2,
        "weight": 0.5,
        "energy": 0.3,
    }
    return AlphaEdit(**{**settings, **options})


def fitted(editor: AlphaEdit, family: str = "llama") -> State:
    state = moments(model(family), LAYERS)
    return editor.with_projectors(state, state.moment_sites)


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def leaks(change: Tensor, state: State, site: Site) -> Tensor:
    return torch.trace(change @ state.moment(site).covariance() @ change.T)


@pytest.mark.parametrize("energy", [0.1, 0.6])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_layer_meets_its_equation_inside_the_free_directions(
    family: str, energy: float
) -> None:
    lm, editor = model(family, torch.float64), alphaedit(energy=energy)
    state = fitted(editor, family)
    for layer in editor.solve_layers(lm, FACTS, state):
        keys, share, change = layer.keys.T, layer.share.T, layer.change.to_dense()
        free = editor.projector(state, layer.site)
        dense = free.to_dense()
        assert (change @ dense - change).norm() <= 1e-12 * change.norm()
        rest = (change @ keys - share) @ keys.T @ dense + editor.weight * change
        assert rest.norm() <= 1e-8 * (share @ keys.T).norm()
        assert layer.change.rank <= min(len(FACTS), free.rank)
        values, vectors = torch.linalg.eigh(state.moment(layer.site).covariance())
        kept_away = vectors[:, values > free.threshold * (1 + 1e-9)]
        assert kept_away.shape[1] == free.width - free.rank > 0
        assert (change @ kept_away).norm() <= 1e-10 * change.norm()


def test_protected_directions_keep_their_outputs_and_the_leak_has_its_bound() -> None:
    lm, editor = model("llama", torch.float64), alphaedit(energy=0.1)
    state = fitted(editor)
    patch = editor.edit(lm, FACTS, state).patch
    for site in patch.sites:
        change, free = patch.changes[site].to_dense(), editor.projector(state, site)
        bound = free.threshold * change.norm() ** 2
        leak = leaks(change, state, site)
        assert 0 < leak <= bound * (1 + 1e-9)
        anywhere = draw(3, *change.shape)
        anywhere *= change.norm() / anywhere.norm()
        assert leaks(anywhere, state, site) > bound
        kept = draw(4, free.width, 5)
        kept -= free.project(kept)
        assert (change @ kept).norm() <= 1e-10 * change.norm() * kept.norm()


def test_the_choice_of_directions_is_by_energy_or_by_threshold() -> None:
    by_energy = alphaedit(energy=0.2)
    state = fitted(by_energy)
    free = by_energy.projector(state, SITE)
    values = torch.linalg.eigvalsh(state.moment(SITE).covariance())
    assert values[: free.rank].sum() <= 0.2 * values.sum() < values[: free.rank + 1].sum()
    assert free.threshold == pytest.approx(float(values[free.rank - 1]))
    assert free.energy == pytest.approx(float(values[: free.rank].sum() / values.sum()))
    middle = float(values[50:52].mean())
    by_threshold = alphaedit(threshold=middle)
    assert by_threshold.projector(fitted(by_threshold), SITE).rank == 51
    with pytest.raises(BadConfig, match="leaves no direction"):
        fitted(alphaedit(threshold=float(values[0]) / 2))
    with pytest.raises(BadConfig, match="threshold"):
        alphaedit(threshold=0.0)


def test_with_everything_free_it_is_plain_ridge_regression_and_a_notice_says_so() -> None:
    editor = alphaedit(threshold=1e9)
    state = fitted(editor)
    keys, residuals = draw(1, WIDTH, 6), draw(2, 32, 6)
    change = editor.solve(keys, residuals, state, SITE).to_dense()
    torch.testing.assert_close(change, ridge(keys, residuals, None, weight=0.5).to_dense())
    notes = editor.edit(model("llama"), FACTS[:1], state).patch.header.notes
    assert any("hardly anything is protected" in notice for notice in notes["notices"])
    quiet = alphaedit().edit(model("llama"), FACTS[:1], fitted(alphaedit())).patch
    assert not any("hardly anything" in notice for notice in quiet.header.notes["notices"])


def test_the_limits_of_the_weight() -> None:
    state = fitted(alphaedit())
    keys, residuals = draw(1, WIDTH, 4), draw(2, 32, 4)
    heavy = alphaedit(weight=1e12).solve(keys, residuals, state, SITE)
    light = alphaedit(weight=1e-10).solve(keys, residuals, state, SITE)
    assert heavy.norm() <= 1e-8 * light.norm()
    torch.testing.assert_close(light @ keys, residuals, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("energy", [0.1, 0.6])
@pytest.mark.parametrize("sizes", [(3, 5, 2), (30, 1, 90, 7)])
def test_a_sequence_with_fixed_keys_and_targets_equals_the_joint_batch(
    sizes: tuple[int, ...], energy: float
) -> None:
    """Recursive least squares, through the state and past the point where columns are dropped."""
    editor = alphaedit(energy=energy)
    state = kept = fitted(editor)
    keys, wanted = draw(1, WIDTH, sum(sizes)), draw(2, 32, sum(sizes))
    joint = editor.solve(keys, wanted, state, SITE).to_dense()
    change, forgetful = torch.zeros_like(joint), torch.zeros_like(joint)
    for own, target in zip(keys.split(sizes, dim=1), wanted.split(sizes, dim=1), strict=True):
        change += editor.solve(own, target - change @ own, kept, SITE).to_dense()
        kept = editor.protect(kept, {SITE: own})
        forgetful += editor.solve(own, target - forgetful @ own, state, SITE).to_dense()
    assert (change - joint).norm() <= 1e-8 * joint.norm()
    assert (forgetful - joint).norm() >= 1e-2 * joint.norm()


def test_the_keys_of_a_batch_are_those_of_the_edited_model_and_protect_it() -> None:
    lm, editor = model("llama", torch.float64), alphaedit()
    state = fitted(editor)
    first = editor.edit(lm, FACTS[:2], state)
    points = [key(Site(layer)) for layer in LAYERS]
    sequences = pipeline.subject_tokens(lm, FACTS[:2], TWO_LEVEL)
    with first.patch.apply(lm):
        captured = pipeline.capture_last(lm, sequences, points)
        second = editor.edit(lm, FACTS[2:], first.state)
        layers = editor.solve_layers(lm, FACTS[2:], first.state)
    for layer, point in zip(layers, points, strict=True):
        old = pipeline.average(captured[point], TWO_LEVEL.weights).T
        free = editor.projector(state, layer.site)
        kept = first.state.tensors[f"alphaedit/protected/{layer.site}/columns"]
        torch.testing.assert_close(kept, free.coordinates(old))
        keys, share, change = layer.keys.T, layer.share.T, layer.change.to_dense()
        rest = (change @ keys - share) @ keys.T + change @ old @ old.T
        rest = rest @ free.to_dense() + editor.weight * change
        assert rest.norm() <= 1e-8 * (share @ keys.T).norm()
        torch.testing.assert_close(second.patch.changes[layer.site].to_dense(), change)
        assert second.state.tensors[f"alphaedit/protected/{layer.site}/count"] == len(FACTS)


def test_a_step_back_is_exact_for_weights_and_for_what_is_protected(tmp_path: Path) -> None:
    lm, editor = model("llama"), alphaedit()
    digest, state = lm.digest(), fitted(editor)
    first = editor.edit(lm, FACTS[:2], state)
    saved = State.load(first.state.save(tmp_path / "state.safetensors"))
    assert saved == first.state != state
    with first.patch.apply(lm):
        once = lm.digest()
        second = editor.edit(lm, FACTS[2:], saved)
        with second.patch.apply(lm):
            assert second.state != first.state
        assert lm.digest() == once
        assert saved == first.state
        assert editor.edit(lm, FACTS[2:], first.state).patch == second.patch
    assert lm.digest() == digest
    assert not any(name.startswith("alphaedit/protected") for name in state.tensors)


def test_two_editors_share_nothing() -> None:
    lm, editor = model("llama"), alphaedit()
    state = fitted(editor)
    alone = editor.edit(lm, FACTS[2:], state).patch
    alphaedit(weight=3.0).edit(lm, FACTS[:2], state)
    editor.edit(lm, FACTS[:2], state)
    assert editor.edit(lm, FACTS[2:], state).patch == alone
    assert editor.edit(lm, [], state).patch.is_empty
    assert editor.edit(lm, [], state).state == state


def test_a_projector_by_another_rule_is_refused() -> None:
    lm, editor = model("llama"), alphaedit()
    with pytest.raises(MissingState, match=r"CG503(.|\n)*the state holds none"):
        editor.edit(lm, FACTS[:1], moments(lm, LAYERS))
    with pytest.raises(MissingState, match=r"threshold(.|\n)*'energy': 0.3"):
        alphaedit(threshold=0.5).edit(lm, FACTS[:1], fitted(editor))
    with pytest.raises(MissingState, match="CG503"):
        editor.edit(lm, FACTS[:1])


def test_fit_finds_the_projectors_and_says_when_text_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path))
    lm, editor = model("llama"), alphaedit(layers=(1,), energy=0.05)
    text = Corpus(["A town of seven people and its bridge."] * 5, num_tokens=32)
    with pytest.warns(UserWarning, match="Few keys"):
        state = editor.fit(lm, text)
    assert editor.projector(state, Site(1)).rank >= 1
    notes = editor.edit(lm, FACTS[:1], state).patch.header.notes
    assert any("fit on more text" in notice for notice in notes["notices"])


def test_a_sequence_on_the_pocket_model_takes_and_others_stay() -> None:
    lm = pocket()
    editor = build_editor("alphaedit", "pocket", contexts=TWO_LEVEL)
    state = pocket_moments(editor.layers)
    state = editor.with_projectors(state, state.moment_sites)
    cases = draw_edits(load_world(), 4)
    neighbours = [fact for case in cases for fact in case.fact.neighbours]
    before, digest = answer(lm, neighbours), lm.digest()
    first = editor.edit(lm, [case.fact for case in cases[::2]], state)
    with first.patch.apply(lm):
        second = editor.edit(lm, [case.fact for case in cases[1::2]], first.state)
        with second.patch.apply(lm):
            said = answer(lm, [case.fact.prompt for case in cases])
            after = answer(lm, neighbours)
    took = [text.startswith(case.fact.target) for text, case in zip(said, cases, strict=True)]
    assert sum(took) >= 3
    assert sum(a == b for a, b in zip(before, after, strict=True)) >= 0.7 * len(before)
    assert lm.digest() == digest
