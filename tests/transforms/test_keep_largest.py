"""RECT: how many entries are kept, which, and that they are not touched."""

from __future__ import annotations

import pytest
import torch

from corrigenda.lm.sites import Site
from corrigenda.patch import Dense, Rows, WeightPatch
from corrigenda.patch.changes import dense
from corrigenda.transforms.keep_largest import GUARD, KeepLargest, mark_largest
from tests.transforms.conftest import KINDS, SITES, change_of, patch_of


@pytest.mark.parametrize("keep", [0.2, 0.4, 0.777])
@pytest.mark.parametrize("kind", ["lowrank", "dense"])
def test_the_largest_relative_changes_are_kept_unchanged(keep, kind, lm) -> None:
    patch = patch_of(lm, kind)
    new = KeepLargest(keep=keep)(patch, lm)
    for site in SITES:
        delta, after = dense(patch.changes[site]), dense(new.changes[site])
        relative = delta.abs() / (lm.weight(site).abs() + GUARD)
        kept = after != 0
        assert int(kept.sum()) == round(keep * delta.numel())
        assert relative[kept].min() >= relative[~kept].max()
        assert torch.equal(after[kept], delta[kept])
        report = new.header.notes["transforms"][0]["report"][str(site)]
        assert report["kept"] == int(kept.sum())
        assert report["guarded"] == 0


def test_all_and_none(lm) -> None:
    for kind in KINDS:
        patch = patch_of(lm, kind)
        assert KeepLargest(keep=1)(patch, lm).digest() == patch.digest()
        assert KeepLargest(keep=0)(patch, lm).is_empty


def test_rows_keep_their_form_and_zero_entries_go_first(lm) -> None:
    patch = patch_of(lm, "rows")
    few, many = (KeepLargest(keep=keep)(patch, lm) for keep in (0.01, 0.9))
    for site, change in patch.changes.items():
        assert isinstance(few.changes[site], Rows)
        count = int((dense(few.changes[site]) != 0).sum())
        assert count == round(0.01 * lm.weight(site).numel())
        assert torch.equal(dense(many.changes[site]), dense(change))


def test_scaling_weight_and_change_alike_keeps_the_same_entries(lm) -> None:
    site = Site(1)
    change = change_of(tuple(lm.weight(site).shape), "dense", seed=4, scale=0.1)
    step, weight = KeepLargest(keep=0.3), lm.weight(site).clone()
    first = step.transform_change(site, change, lm, None).change
    try:
        lm.write(site, 16 * weight)
        second = step.transform_change(site, Dense(16 * change.delta), lm, None).change
    finally:
        lm.write(site, weight)
    assert torch.equal(16 * dense(first), dense(second))


def test_weights_of_zero_are_guarded_and_counted(lm) -> None:
    site = Site(1)
    weight = lm.weight(site).clone()
    change = change_of(tuple(weight.shape), "dense", seed=4, scale=0.1)
    zeros = weight.clone()
    zeros[0, :7] = 0
    try:
        lm.write(site, zeros)
        result = KeepLargest(keep=0.3).transform_change(site, change, lm, None)
    finally:
        lm.write(site, weight)
    assert result.report["guarded"] == 7
    assert bool((dense(result.change)[0, :7] != 0).all())


def test_ties_are_broken_by_place_and_the_count_is_exact() -> None:
    values = torch.tensor([[1.0, 2.0, 2.0], [2.0, 3.0, 0.0]])
    assert mark_largest(values, 3).tolist() == [[False, True, True], [False, True, False]]
    assert mark_largest(torch.zeros(2, 3), 4).flatten().tolist() == [True] * 4 + [False] * 2
    assert int(mark_largest(values, 99).sum()) == 6
    assert int(mark_largest(values, 0).sum()) == 0


def test_half_precision_weights_store_single_precision_entries(lm) -> None:
    from corrigenda.testing.tiny import tiny_model

    small = tiny_model("llama", dtype=torch.bfloat16)
    patch = patch_of(small, "lowrank")
    new = KeepLargest(keep=0.5)(patch, small)
    assert all(change.delta.dtype == torch.float32 for change in new.changes.values())
    assert isinstance(new, WeightPatch)
