"""Norm anchoring: lengths of values at the keys, their directions, ROME with a rescaled value."""

from __future__ import annotations

import pytest
import torch

from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.solve import rank_one
from corrigenda.lm.sites import Site
from corrigenda.methods.rome.editor import Rome
from corrigenda.patch.changes import dense
from corrigenda.transforms.anchor_norm import AnchorNorm
from corrigenda.transforms.transform import collect_keys
from tests.support.locating import FACTS, PLAIN, moments
from tests.transforms.conftest import KINDS, SITES, patch_of


def outputs(lm, site, change, keys):
    bias = lm.bias(site)
    weight = lm.weight(site) + (0 if change is None else dense(change))
    return weight @ keys + (0 if bias is None else bias[:, None])


@pytest.mark.parametrize("model", ["lm", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"reference": "own"}, {"norm": 2.5}], ids=str)
def test_values_get_the_length_and_keep_the_direction(model, kind, options, request) -> None:
    lm = request.getfixturevalue(model)
    patch = patch_of(lm, kind, scale=0.5)
    keys, new = collect_keys(patch, lm), AnchorNorm(**options)(patch, lm)
    for site in SITES:
        clean, old, now = (
            outputs(lm, site, change, keys[site])
            for change in (None, patch.changes[site], new.changes[site])
        )
        lengths = clean.norm(dim=0)
        anchor = lengths if "reference" in options else lengths.mean().expand(2)
        if "norm" in options:
            anchor = torch.full((2,), 2.5, dtype=torch.float64)
        torch.testing.assert_close(now.norm(dim=0), anchor)
        cosine = torch.nn.functional.cosine_similarity(old, now, dim=0)
        torch.testing.assert_close(cosine, torch.ones_like(cosine))
        report = new.header.notes["transforms"][0]["report"][str(site)]
        assert report["length_now"] == pytest.approx(anchor.tolist(), rel=1e-5)
        if isinstance(patch.changes[site], LowRank):
            rows = torch.linalg.qr(patch.changes[site].right).Q
            after = dense(new.changes[site])
            assert (after - after @ rows @ rows.T).norm() <= 1e-9 * after.norm()


@pytest.mark.parametrize("family", ["lm", "gpt2"])
def test_for_rome_it_is_the_edit_made_with_the_rescaled_value(family, request) -> None:
    lm, site = request.getfixturevalue(family), Site(2)
    editor = Rome(layer=2, variant="p-rome", contexts=PLAIN, steps=6, learning_rate=1.0, clamp=9.0)
    state = moments(lm, [2])
    patch = editor.edit(lm, FACTS[:1], state).patch
    keys = collect_keys(patch, lm)[site]
    clean = outputs(lm, site, None, keys)[:, 0]
    value = outputs(lm, site, patch.changes[site], keys)[:, 0]
    rescaled = value * clean.norm() / value.norm()
    expected = rank_one(keys[:, 0], rescaled - clean, state.factor(site))
    new = AnchorNorm()(patch, lm).changes[site]
    assert isinstance(new, LowRank)
    assert new.rank == 1
    torch.testing.assert_close(new.to_dense(), expected.to_dense())


def test_more_facts_than_directions_are_met_by_least_squares(lm) -> None:
    patch = patch_of(lm, "lowrank", scale=0.5, facts=4)
    new = AnchorNorm()(patch, lm)
    for site in SITES:
        assert new.changes[site].rank <= 3
        report = new.header.notes["transforms"][0]["report"][str(site)]
        assert len(report["length_now"]) == 4


def test_facts_that_share_a_key_are_averaged_and_not_blown_up(lm) -> None:
    patch = patch_of(lm, "lowrank", scale=0.5, facts=1)
    fields = patch.header.model_dump()
    doubled = patch.header.model_validate({**fields, "facts": patch.header.facts * 2})
    twin = type(patch)(patch.changes, doubled)
    one, two = AnchorNorm()(patch, lm), AnchorNorm()(twin, lm)
    for site in SITES:
        torch.testing.assert_close(dense(one.changes[site]), dense(two.changes[site]))


def test_without_facts_nothing_is_anchored(lm) -> None:
    patch = patch_of(lm, "dense", facts=0)
    assert AnchorNorm()(patch, lm).digest() == patch.digest()
