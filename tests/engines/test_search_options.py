"""Options of all locate-then-edit methods: each part off is the host, each part does its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from corrigenda.almanac.exam import draw_edits
from corrigenda.almanac.world import load_world
from corrigenda.editor import Editor
from corrigenda.engines.locate import wanted
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.engines.locate.ideal_editor import simulate_ideal
from corrigenda.engines.locate.records import SearchSettings, Targets
from corrigenda.errors import MissingState, NotEnoughFacts
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods.alphaedit.editor import AlphaEdit
from corrigenda.methods.memit.editor import Memit
from corrigenda.methods.pmet.editor import Pmet
from corrigenda.methods.presets import build_editor
from corrigenda.methods.rome.editor import Rome
from corrigenda.patch import Patch
from corrigenda.state import State
from tests.support.locating import FACTS, TWO_LEVEL, model, moments, pocket, pocket_moments

LAYERS = (1, 2)
QUICK = {"contexts": TWO_LEVEL, "steps": 5, "learning_rate": 0.2}
HOSTS = (Memit, AlphaEdit, Pmet)
SAME_SUBJECT = (
    Fact(prompt="Claude Monet was born in", subject="Claude Monet", target="Tokyo"),
    Fact(prompt="Claude Monet died in", subject="Claude Monet", target="Rome"),
    Fact(prompt="The Space Needle is in the city of", subject="Space Needle", target="Paris"),
)
SEARCH = SearchSettings(
    steps=5, learning_rate=0.2, kl_weight=0.1, weight_decay=0.01, clamp=2.0, stop_loss=0.0
)


def make(kind: type[Editor], **options: object) -> Editor:
    """An editor of two layers of a tiny model."""
    return kind(**{"layers": LAYERS, "weight": 0.5, **QUICK, **options})


def fitted(editor: Editor) -> State:
    """Second moments, and projectors where the editor needs them."""
    state = moments(model(), LAYERS)
    if isinstance(editor, AlphaEdit):
        return editor.with_projectors(state, state.moment_sites)
    return state


def draw(seed: int, *shape: int) -> Tensor:
    """Random numbers, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def edit(editor: Editor, facts: tuple[Fact, ...] = FACTS, state: State | None = None) -> Patch:
    """The patch for facts on the tiny model."""
    return editor.edit(model(), facts, state or fitted(editor)).patch


@pytest.fixture(scope="module")
def known() -> list[Fact]:
    """Facts that the shipped model can be taught."""
    return [one.fact for one in draw_edits(load_world(), 4, seed=3)]


def courses(known: list[Fact], **options: object) -> list[dict]:
    """Courses of searches on the shipped model."""
    editor = build_editor("memit", "pocket", contexts=TWO_LEVEL, stop_loss=0.0, **options)
    patch = editor.edit(pocket(), known, pocket_moments((1, 2, 3))).patch
    return patch.header.notes["search"]


def test_most_probable_early_stopping_ends_the_same_search_earlier(known: list[Fact]) -> None:
    whole = courses(known)
    lengths = []
    for count in (1, 3):
        stopped = courses(known, likeliest_stop=count)
        for one, full in zip(stopped, whole, strict=True):
            shown = len(one["losses"])
            for ours, theirs in zip(one["losses"], full["losses"], strict=False):
                assert ours == pytest.approx(theirs, rel=1e-4)
            assert one["stop"] == ("likeliest" if shown < len(full["losses"]) else one["stop"])
        lengths.append([len(one["losses"]) for one in stopped])
    assert all(few < more for few, more in zip(*lengths, strict=True))
    assert max(lengths[1]) < len(whole[0]["losses"])


@pytest.mark.parametrize("kind", [Memit, Pmet])
def test_the_norm_constraint_solves_its_equation_and_shrinks_the_change(kind) -> None:
    state, norms = moments(model(), LAYERS), []
    site, keys, residuals = Site(2), draw(1, 128, 6), draw(2, 32, 6)
    for price in (0.0, 0.5, 5.0, 1e12):
        editor = make(kind, norm_weight=price)
        change = editor.solve(keys, residuals, state, site).to_dense()
        moment = state.factor(site).matrix()
        system = 0.5 * moment + price * torch.eye(128, dtype=torch.float64) + keys @ keys.T
        expected = torch.linalg.solve(system, keys @ residuals.T).T
        assert (change - expected).norm() <= 1e-8 * expected.norm()
        norms.append(float(change.norm()))
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] <= 1e-6 * norms[0]


def test_encore_without_its_two_parts_is_memit_in_sequence() -> None:
    with pytest.warns(UserWarning, match="ENCORE"):
        encore = build_editor("memit", preset="pocket-encore")
    bare = encore.model_copy(update={"norm_weight": 0.0, "likeliest_stop": 0})
    assert bare == build_editor("memit", "pocket", sequential=True)
    small = {"layers": LAYERS, "weight": 0.5, **QUICK}
    one = edit(bare.model_copy(update=small), FACTS, moments(model(), LAYERS))
    searched = bare.model_dump(include={"kl_weight", "weight_decay", "clamp", "stop_on"})
    assert one.changes == edit(Memit(**small, **searched)).changes


def test_protected_keys_join_the_norm_constraint() -> None:
    state, site = moments(model(), LAYERS), Site(2)
    editor = make(Memit, norm_weight=3.0, sequential=True)
    keys, old, residuals = draw(1, 128, 4), draw(3, 128, 50), draw(2, 32, 4)
    change = editor.solve(keys, residuals, editor.protect(state, {site: old}), site).to_dense()
    system = 0.5 * state.factor(site).matrix() + 3.0 * torch.eye(128, dtype=torch.float64)
    system += keys @ keys.T + old @ old.T
    expected = torch.linalg.solve(system, keys @ residuals.T).T
    assert (change - expected).norm() <= 1e-8 * expected.norm()


@pytest.mark.parametrize("kind", HOSTS)
def test_boundary_layers_alone_change_and_one_layer_is_the_host(kind) -> None:
    three = make(kind, layers=(0, 1, 2), boundary=True)
    assert [site.layer for site in three.sites(model())] == [0, 2]
    one, host = make(kind, layers=(1,), boundary=True), make(kind, layers=(1,))
    assert edit(one).changes == edit(host).changes
    both = make(kind, boundary=True)
    assert set(edit(both).changes) == {Site(1), Site(2)}
    assert edit(both).changes != edit(make(kind)).changes


def test_each_boundary_layer_writes_the_delta_of_its_own_search() -> None:
    lm, editor = model("llama", torch.float64), make(Memit, boundary=True, weight=1e-6)
    state = moments(lm, LAYERS)
    first, second = editor.solve_layers(lm, FACTS, state)
    for layer in (first, second):
        written = layer.change @ layer.keys.T
        torch.testing.assert_close(written, layer.share.T, rtol=1e-3, atol=1e-4)
    plan = editor.make_plan(lm, state)
    found, _ = editor.find_wanted(lm, FACTS, plan, LAYERS[0])
    torch.testing.assert_close(first.share.float(), found.deltas, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", HOSTS)
def test_merging_changes_nothing_where_subjects_differ(kind) -> None:
    assert edit(make(kind, merge_subjects=True)).changes == edit(make(kind)).changes


def search(facts: tuple[Fact, ...], *, merged: bool = True, lm: LanguageModel | None = None):
    """Targets at the output of a block, float64."""
    lm = lm or model("llama", torch.float64)
    return wanted.search_targets(
        lm, facts, TWO_LEVEL, layer=2, role="state", settings=SEARCH, merged=merged
    )


def test_facts_of_one_subject_get_one_delta_in_any_order() -> None:
    found = search(SAME_SUBJECT)
    assert torch.equal(found.deltas[0], found.deltas[1])
    assert not torch.equal(found.deltas[0], found.deltas[2])
    alone = search(SAME_SUBJECT, merged=False)
    torch.testing.assert_close(found.anchors, alone.anchors, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.deltas[2], alone.deltas[2])
    turned = search(SAME_SUBJECT[::-1])
    torch.testing.assert_close(turned.deltas.flip(0), found.deltas, rtol=1e-5, atol=1e-6)


def test_one_fact_several_times_has_the_delta_of_one() -> None:
    twice = search((SAME_SUBJECT[0], SAME_SUBJECT[0]))
    once = search(SAME_SUBJECT[:1], merged=False)
    torch.testing.assert_close(twice.deltas[1], once.deltas[0], rtol=1e-4, atol=1e-5)


def test_a_merged_value_is_at_least_as_good_as_the_mean_of_single_ones(known: list[Fact]) -> None:
    lm, (first, *_) = pocket(), known
    pair = (first, replace(first, prompt=f"It is known that {first.prompt}", subject_start=None))
    other = next(one.fact for one in draw_edits(load_world(), 40, seed=4))
    pair = (first, replace(pair[1], target=other.target))
    settings = SEARCH._replace(steps=20, clamp=0.5, kl_weight=0.0, weight_decay=0.0)
    options = {"layer": 3, "role": "state", "settings": settings}
    merged = wanted.search_targets(lm, pair, Contexts(), merged=True, **options)
    single = wanted.search_targets(lm, pair, Contexts(), **options)
    best = merged.traces[0].losses[-1].nll
    start = sum(trace.losses[0].nll for trace in single.traces) / 2
    assert best < start


def test_facts_that_contradict_each_other_are_refused() -> None:
    pair = (SAME_SUBJECT[0], replace(SAME_SUBJECT[0], target="Oslo"))
    with pytest.raises(NotEnoughFacts, match=r"CG106(.|\n)*one prompt"):
        edit(make(Memit, merge_subjects=True), pair)


def targets(seed: int, count: int = 6) -> tuple[Targets, Tensor]:
    """Random targets and outputs."""
    deltas, outputs = draw(seed, count, 32).float(), draw(seed + 1, count, 32).float()
    traces = search(FACTS[:1], merged=False).traces * count
    return Targets(torch.zeros(count, 32), deltas, traces), outputs


def test_values_get_the_length_of_the_anchor_and_keep_their_direction() -> None:
    found, outputs = targets(1)
    solved = outputs + found.deltas
    scaled = wanted.scale_targets(found, outputs, 5.0, 2.0)
    assert scaled.skipped == []
    values = outputs + scaled.targets.deltas
    torch.testing.assert_close(values.norm(dim=1), torch.full((6,), 5.0))
    assert torch.cosine_similarity(values, solved).min() > 1 - 1e-6
    again = wanted.scale_targets(scaled.targets, outputs, 5.0, 2.0)
    torch.testing.assert_close(again.targets.deltas, scaled.targets.deltas)
    same = wanted.scale_targets(
        Targets(found.anchors[:1], found.deltas[:1], found.traces[:1]),
        outputs[:1],
        float(solved[0].norm()),
        2.0,
    )
    torch.testing.assert_close(same.targets.deltas, found.deltas[:1])


def test_a_value_far_beyond_the_anchor_is_left_out_and_said() -> None:
    found, outputs = targets(1)
    longest = int((outputs + found.deltas).norm(dim=1).argmax())
    length = float((outputs + found.deltas).norm(dim=1)[longest]) / 2.001
    scaled = wanted.scale_targets(found, outputs, length, 2.0)
    assert longest in scaled.skipped
    assert scaled.targets.deltas[longest].norm() == 0
    assert scaled.targets.traces[longest].status == "left out"
    assert "left out" in scaled.describe(list(FACTS) * 2)[0]
    free = wanted.scale_targets(found, outputs, length, float("inf"))
    assert free.skipped == []


def test_the_anchor_drops_the_longest_twentieth() -> None:
    assert wanted.trimmed_anchor([1.0] * 20 + [100.0]).length == 1.0
    assert wanted.trimmed_anchor([1.0] * 10 + [100.0]).length == pytest.approx(10.0)
    assert wanted.trimmed_anchor([3.0, 1.0, 2.0]) == wanted.trimmed_anchor([1.0, 2.0, 3.0])


@pytest.mark.parametrize("kind", [Memit, Rome])
def test_an_edit_with_the_anchor_needs_one_measured_with_its_settings(
    kind, known: list[Fact]
) -> None:
    lm, options = pocket(), {"contexts": TWO_LEVEL, "steps": 3, "anchor_facts": 8}
    editor = build_editor(kind.name, "pocket", norm_anchor=True, **options)
    state = editor.fit(lm)
    (length,) = state.meta["locate/anchors"].values()
    assert length["length"] > 0
    patch = editor.edit(lm, known[:1], state).patch
    assert not patch.is_empty
    with pytest.raises(MissingState, match="length of solved values"):
        editor.model_copy(update={"clamp": 0.1}).edit(lm, known[:1], state)


def test_simie_is_the_joint_ridge_solution_of_what_each_edit_did() -> None:
    site, state, weight = Site(2), State(), 0.7
    shift = torch.zeros(32, 40, dtype=torch.float64)
    left, right = torch.zeros(32, 40, dtype=torch.float64), weight * torch.eye(40).double()
    for number in range(5):
        keys = draw(number, 40, 7)
        host = LowRank(draw(50 + number, 32, 2), draw(80 + number, 40, 2))
        wanted_here = shift + host.to_dense()
        corrected, state = simulate_ideal(
            {site: host}, {site: keys}, state, weight=weight, prefix="x/"
        )
        assert corrected[site].rank == 2
        shift = shift + corrected[site].to_dense()
        left += wanted_here @ keys @ keys.T
        right += keys @ keys.T
        assert (shift - torch.linalg.solve(right, left.T).T).norm() <= 1e-9 * shift.norm()


def test_the_limits_of_simie() -> None:
    site, keys = Site(2), draw(1, 40, 7)
    host = LowRank(draw(2, 32, 2), draw(3, 40, 2))
    light, _ = simulate_ideal({site: host}, {site: keys}, State(), weight=1e-9, prefix="x/")
    torch.testing.assert_close(light[site] @ keys, host @ keys, rtol=1e-6, atol=1e-6)
    heavy, _ = simulate_ideal({site: host}, {site: keys}, State(), weight=1e12, prefix="x/")
    assert heavy[site].norm() <= 1e-8 * host.norm()
    nothing, state = simulate_ideal(
        {site: LowRank.zeros(32, 40)}, {site: keys}, State(), weight=1.0, prefix="x/"
    )
    assert nothing[site].norm() == 0
    assert int(state.tensors["x/2.mlp.down/count"]) == 7


@pytest.mark.parametrize("kind", HOSTS)
def test_simie_weakens_each_edit_and_remembers_its_sentences(kind) -> None:
    host, ideal = make(kind), make(kind, ideal_weight=10.0)
    state = fitted(host)
    first = ideal.edit(model(), FACTS[:2], state)
    alone = host.edit(model(), FACTS[:2], state)
    for site, change in first.patch.changes.items():
        assert 0 < change.norm() < alone.patch.changes[site].norm()
        assert int(first.state.tensors[f"{kind.name}/ideal/{site}/count"]) > 10
    second = ideal.edit(model(), FACTS[2:], first.state)
    fresh = ideal.edit(model(), FACTS[2:], state)
    assert second.patch.changes != fresh.patch.changes
