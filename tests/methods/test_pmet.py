"""PMET: two vectors in one search against a plain loop, the spread, and what is written."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from corrigenda.almanac.exam import draw_edits
from corrigenda.almanac.world import load_world
from corrigenda.engines.locate import pipeline
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.engines.locate.layers import SpreadEditor
from corrigenda.engines.locate.pipeline import LocateThenEdit
from corrigenda.engines.locate.target_search import SearchRow, SearchSettings, Targets, find_targets
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens, value
from corrigenda.methods.memit.editor import Memit
from corrigenda.methods.pmet.editor import Pmet
from corrigenda.methods.presets import build_editor
from corrigenda.patch import WeightPatch
from tests.support.locating import (
    FACTS,
    PLAIN,
    TWO_LEVEL,
    model,
    moments,
    pocket,
    pocket_moments,
)

LAYERS = (1, 2)
SETTINGS = SearchSettings(
    steps=8,
    learning_rate=0.2,
    kl_weight=0.5,
    weight_decay=0.01,
    clamp=4.0,
    stop_loss=0.0,
    settled_weight=0.1,
    settled_kl=0.01,
)


def pmet(**options: object) -> Pmet:
    settings = {
        "layers": LAYERS,
        "contexts": TWO_LEVEL,
        "steps": 5,
        "learning_rate": 0.2,
        "weight": 0.5,
    }
    return Pmet(**{**settings, **options})


def search(
    lm: LanguageModel, facts: tuple[Fact, ...] = FACTS, settings: SearchSettings = SETTINGS
) -> Targets:
    rows = pipeline.rewrite_rows(lm, facts, PLAIN)
    names = [fact.label for fact in facts]
    return find_targets(lm, rows, layer=1, role="components", settings=settings, names=names)


def plain_search(
    lm: LanguageModel, rows: list[SearchRow], settings: SearchSettings
) -> tuple[Tensor, list[list[float]]]:
    """One fact, full passes with both vectors swapped in, the rules of the paper step by step."""
    tokens = Tokens.pad([list(row.ids) for row in rows], 0)
    starts, every = torch.tensor([row.start for row in rows]), torch.arange(len(rows))
    points = [value(Site(1, "attn.out")), value(Site(1))]
    seen = lm.tap(tokens, points, positions=starts)
    anchors = [seen[point][0].clone() for point in points]
    deltas = [torch.zeros_like(anchor, requires_grad=True) for anchor in anchors]
    optimiser = torch.optim.Adam(deltas, lr=settings.learning_rate)
    before, weight, losses = None, 1.0, []

    def adder(delta: Tensor):
        return lambda x: x.index_put((every, starts), delta.expand(len(rows), -1), accumulate=True)

    for step in range(settings.steps):
        with lm.swap({point: adder(d) for point, d in zip(points, deltas, strict=True)}):
            log_p = lm.logits(tokens).log_softmax(dim=-1)
        picked = [
            (log_p[i, read, label], log_p[i, read].max(), len(row.labels))
            for i, row in enumerate(rows[:-1])
            for read, label in zip(row.reads, row.labels, strict=True)
        ]
        nll = -sum(own / count for own, _, count in picked) / (len(rows) - 1)
        now = log_p[-1, rows[-1].start]
        before = now.detach() if before is None else before
        kl = settings.kl_weight * (now.exp() * (now - before)).sum()
        decay = settings.weight_decay * sum(
            delta.norm() / anchor.norm() ** 2 for delta, anchor in zip(deltas, anchors, strict=True)
        )
        loss = weight * nll + kl + decay
        losses.append([float(part.detach()) for part in (loss, nll, kl, decay)])
        settled = all(bool(own == most) for own, most, _ in picked)
        weight = settings.settled_weight if settled else 1.0
        if step == settings.steps - 1 or (settled and float(kl.detach()) <= settings.settled_kl):
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for delta, anchor in zip(deltas, anchors, strict=True):
                delta.mul_(min(1.0, float(settings.clamp * anchor.norm() / delta.norm())))
    return torch.cat(deltas).detach(), losses


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma2"])
def test_the_batched_search_equals_the_plain_one(family: str) -> None:
    # Gemma 2 computes its attention in float32, where the masks of float64 overflow.
    dtype, tolerance = (torch.float32, 5e-3) if family == "gemma2" else (torch.float64, 1e-5)
    lm = model(family, dtype)
    found = search(lm)
    for index, fact in enumerate(FACTS):
        rows = pipeline.rewrite_rows(lm, [fact], PLAIN)
        delta, losses = plain_search(lm, rows, SETTINGS)
        assert (found.deltas[index] - delta).norm() <= tolerance * delta.norm()
        torch.testing.assert_close(
            torch.tensor(found.traces[index].losses), torch.tensor(losses), rtol=1e-4, atol=1e-6
        )


def rows_of_a_token(lm: LanguageModel, place: int) -> list[SearchRow]:
    """A subject alone, whose target is the token at this place of the model's own order."""
    essence = pipeline.rewrite_rows(lm, FACTS[:1], Contexts())[-1]
    order = lm.logits(Tokens.pad([essence.ids], 0))[0, -1].argsort(descending=True)
    return [essence._replace(labels=(int(order[place]),), anchor=True), essence]


@pytest.mark.parametrize(("limit", "stop"), [(0.0, "steps"), (1e9, "settled")])
def test_a_settled_target_counts_less_and_ends_the_search_if_the_essence_stayed(
    limit: float, stop: str
) -> None:
    lm = model("llama", torch.float64)
    rows = rows_of_a_token(lm, 3)
    settings = SETTINGS._replace(steps=20, learning_rate=0.1, settled_kl=limit)
    found = find_targets(lm, rows, layer=1, role="components", settings=settings, names=["a token"])
    delta, losses = plain_search(lm, rows, settings)
    trace = found.traces[0]
    assert (found.deltas[0] - delta).norm() <= 1e-5 * delta.norm()
    torch.testing.assert_close(
        torch.tensor(trace.losses), torch.tensor(losses), rtol=1e-4, atol=1e-6
    )
    eased = [one for one in trace.losses if one.total < one.nll + one.kl + one.decay - 1e-6]
    for one in eased:
        assert one.total == pytest.approx(0.1 * one.nll + one.kl + one.decay, rel=1e-5)
    assert bool(eased) is (stop == "steps")
    assert len(trace.losses) > 2
    assert trace.stop == stop
    assert trace.status == "written"


def test_what_the_model_says_already_ends_after_one_pass_and_changes_nothing() -> None:
    lm = model("llama", torch.float64)
    rows = rows_of_a_token(lm, 0)
    found = find_targets(lm, rows, layer=1, role="components", settings=SETTINGS, names=["known"])
    assert not found.deltas.any()
    assert found.traces[0].stop == "settled"
    assert found.traces[0].status == "written"
    assert len(found.traces[0].losses) == 1


@pytest.mark.parametrize(
    ("family", "parallel"), [("gptj", True), ("gpt_neox", True), ("llama", False)]
)
def test_both_vectors_are_one_in_parallel_blocks_only(family: str, parallel: bool) -> None:
    lm = model(family, torch.float64)
    for steps in (2, 5):
        free = SETTINGS._replace(steps=steps, weight_decay=0.0, clamp=1e6)
        attention, mlp = search(lm, settings=free).deltas.chunk(2, dim=1)
        difference = float((attention - mlp).norm() / mlp.norm())
        assert (difference < 1e-3) is parallel


def test_each_vector_has_its_own_ball() -> None:
    found = search(model(), settings=SETTINGS._replace(clamp=0.02))
    for deltas, anchors in zip(found.deltas.chunk(2, 1), found.anchors.chunk(2, 1), strict=True):
        ratio = deltas.norm(dim=1) / anchors.norm(dim=1)
        torch.testing.assert_close(ratio, torch.full_like(ratio, 0.02))
    assert {trace.status for trace in found.traces} == {"clamped"}


def test_with_one_vector_in_the_stream_and_an_even_spread_it_is_memit() -> None:
    class Frozen(Pmet):
        role = "state"
        search = LocateThenEdit.search
        remaining_residuals = SpreadEditor.remaining_residuals
        layer_share = SpreadEditor.layer_share

    lm = model("llama")
    state = moments(lm, LAYERS)
    options = pmet().model_dump(exclude={"contexts"})
    one = Frozen(**options, contexts=TWO_LEVEL).edit(lm, FACTS, state).patch
    two = Memit(**options, contexts=TWO_LEVEL).edit(lm, FACTS, state).patch
    other = pmet().edit(lm, FACTS, state).patch
    for site in two.sites:
        assert torch.equal(one.changes[site].to_dense(), two.changes[site].to_dense())
        assert not torch.allclose(other.changes[site].to_dense(), two.changes[site].to_dense())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_layer_solves_its_least_squares(family: str) -> None:
    lm, editor = model(family, torch.float64), pmet()
    state = moments(lm, LAYERS)
    for layer in editor.solve_layers(lm, FACTS, state):
        keys, share, change = layer.keys.T, layer.share.T, layer.change.to_dense()
        metric = state.factor(layer.site).matrix()
        left = (change @ keys - share) @ keys.T + editor.weight * change @ metric
        assert left.norm() <= 1e-8 * (share @ keys.T).norm()
        price = editor.weight**0.5 * torch.linalg.cholesky(metric)
        zeros = share.new_zeros(len(share), len(price))
        system, wanted = torch.cat([keys, price], dim=1), torch.cat([share, zeros], dim=1)
        expected = torch.linalg.lstsq(system.T, wanted.T).solution.T
        assert (change - expected).norm() <= 1e-8 * expected.norm()
        assert layer.change.rank <= len(FACTS)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_what_is_missing_is_measured_behind_the_last_down_projection(family: str) -> None:
    lm, editor = model(family), pmet()
    state = moments(lm, LAYERS)
    first, second = editor.solve_layers(lm, FACTS, state)
    rows = pipeline.rewrite_rows(lm, FACTS, TWO_LEVEL)
    names = [fact.label for fact in FACTS]
    targets = find_targets(
        lm, rows, layer=2, role="components", settings=editor.search, names=names
    )
    mlp = targets.deltas[:, lm.d_model :].double()
    if lm.family.mlp_norm is None:
        torch.testing.assert_close(first.share * math.sqrt(2), mlp, rtol=1e-4, atol=1e-5)
    clean, point = pipeline.subject_tokens(lm, FACTS, Contexts()), value(Site(2))
    patch = editor.edit(lm, FACTS, state).patch
    lower = WeightPatch({first.site: patch.changes[first.site]}, patch.header)
    with lower.apply(lm):
        now = pipeline.capture_last(lm, clean, [point])[point]
    wanted = targets.wanted[:, lm.d_model :] - now
    torch.testing.assert_close(second.share.float(), wanted, rtol=1e-3, atol=1e-4)


def test_the_square_root_spreads_the_gap_as_stated() -> None:
    for count, expected in ((6, (0.41, 0.27, 0.16, 0.09, 0.05, 0.02)), (1, (1.0,))):
        gap, closed = torch.ones(1, 1), []
        for done in range(count):
            part = pmet().layer_share(gap, count - done)
            closed.append(float(part))
            gap = gap - part
        assert closed == pytest.approx(expected, abs=0.006)
        assert gap.abs() < 1e-6


def test_only_down_projections_change_and_the_notes_say_what_was_missing() -> None:
    lm, editor = model("llama"), pmet()
    digest, state = lm.digest(), moments(lm, LAYERS)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    patch = editor.edit(lm, FACTS, state).patch
    assert lm.digest() == digest
    with patch.apply(lm):
        after = lm.model.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {lm.parameter_name(Site(layer)) for layer in LAYERS}
    missing = patch.header.notes["missing"]
    assert [len(missing[str(Site(layer))]) for layer in LAYERS] == [len(FACTS)] * 2
    assert patch == editor.edit(lm, FACTS, state).patch
    assert editor.edit(lm, FACTS, state).state == state
    assert editor.edit(lm, [], state).patch.is_empty


def test_facts_of_the_pocket_model_take_and_others_stay() -> None:
    lm = pocket()
    editor = build_editor("pmet", "pocket", contexts=TWO_LEVEL)
    cases = draw_edits(load_world(), 4)
    patch = editor.edit(lm, [case.fact for case in cases], pocket_moments(editor.layers)).patch
    prompts, targets = [c.fact.prompt for c in cases], [c.fact.target for c in cases]
    neighbours = [fact for case in cases for fact in case.fact.neighbours]
    before = answer(lm, neighbours)
    with patch.apply(lm):
        said, after = answer(lm, prompts), answer(lm, neighbours)
    assert sum(a.startswith(t) for a, t in zip(said, targets, strict=True)) >= 2
    assert sum(a == b for a, b in zip(before, after, strict=True)) >= 0.7 * len(before)
