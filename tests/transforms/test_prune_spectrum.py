"""PRUNE: the function on singular values, untouched directions, a bounded condition number."""

from __future__ import annotations

import math

import pytest
import torch

from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.sites import Site
from corrigenda.patch import Dense, WeightPatch, header_for
from corrigenda.patch.changes import dense
from corrigenda.transforms.prune_spectrum import PruneSpectrum
from corrigenda.transforms.spectra import compute_spectral_norm
from tests.transforms.conftest import KINDS, SITES, patch_of


@pytest.mark.parametrize("kind", KINDS)
def test_small_changes_stay_to_the_bit(kind, lm) -> None:
    patch = patch_of(lm, kind, scale=1e-3)
    new = PruneSpectrum()(patch, lm)
    assert new.digest() == patch.digest()
    # Too large for the cheap bound, still below sigma.
    full = patch_of(lm, kind, scale=1.0)
    near = {s: c for s, c in full.changes.items()}
    for site, change in near.items():
        sigma = compute_spectral_norm(lm.weight(site))
        factor = 0.99 * sigma / compute_spectral_norm(dense(change))
        near[site] = Dense(dense(change) * factor)
    patch = WeightPatch(near, full.header)
    assert PruneSpectrum()(patch, lm).digest() == patch.digest()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", [math.e, 2.0, 1.2])
def test_singular_values_follow_the_function_and_directions_stay(kind, base, lm) -> None:
    patch, step = patch_of(lm, kind, scale=2.0), PruneSpectrum(base=base)
    new = step(patch, lm)
    for site in SITES:
        sigma = float(torch.linalg.matrix_norm(lm.weight(site), 2))
        before, after = dense(patch.changes[site]), dense(new.changes[site])
        u, s, vh = torch.linalg.svd(before, full_matrices=False)
        wanted = torch.where(
            s >= sigma,
            torch.minimum(s, sigma + (s / sigma).clamp_min(1e-30).log() / math.log(base)),
            s,
        )
        assert (after - (u * wanted) @ vh).norm() <= 1e-9 * before.norm()
        edited = lm.weight(site) + after
        found = torch.linalg.svdvals(edited - lm.weight(site))
        torch.testing.assert_close(found, wanted.sort(descending=True).values)
        assert after.norm() <= before.norm() * (1 + 1e-12)
        report = new.header.notes["transforms"][0]["report"][str(site)]
        assert report["largest_of_weight"] == pytest.approx(sigma)
        assert report["largest_now"] == pytest.approx(float(wanted.max()))
        assert report["restrained"] == int((wanted < s).sum())


def test_a_weak_base_never_makes_a_value_larger() -> None:
    values = torch.linspace(0.1, 3.0, 50, dtype=torch.float64)
    sigma, base = 0.5, 1.2
    assert sigma * math.log(base) < 1, "the formula alone would enlarge values above sigma"
    new = PruneSpectrum(base=base).restrain(values, sigma)
    assert bool((new <= values).all())
    assert torch.equal(new[values < sigma], values[values < sigma])
    assert bool((new.diff() >= 0).all())


def test_linear_restraint_halves_what_is_above() -> None:
    values = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert PruneSpectrum(restraint="linear").restrain(values, 2.0).tolist() == [1.0, 2.0, 3.0]


def test_twice_is_more_than_once(lm) -> None:
    patch, step = patch_of(lm, "lowrank", scale=20.0), PruneSpectrum()
    once = step(patch, lm)
    twice = step(once, lm)
    assert any(twice.norms()[site] < 0.999 * once.norms()[site] for site in SITES)


def test_condition_number_is_bounded(lm) -> None:
    """Ever larger changes: without PRUNE it grows as they do, with it as their logarithm."""
    site = Site(1)
    weight = lm.weight(site)
    d_out, d_in = weight.shape
    sigma = compute_spectral_norm(weight)
    generator = torch.Generator().manual_seed(3)
    left = torch.linalg.qr(torch.randn(d_out, 2, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(d_in, 2, generator=generator, dtype=torch.float64)).Q
    for factor in (10.0, 100.0, 1e4):
        header = header_for(lm, method="test")
        patch = WeightPatch({site: LowRank(left * factor * sigma, right)}, header)
        new = PruneSpectrum()(patch, lm)
        raw, pruned = (weight + dense(p.changes[site]) for p in (patch, new))
        values = torch.linalg.svdvals(pruned)
        bound = 2 * sigma + math.log(factor)
        assert values[0] <= bound + 1e-9
        # The change has rank 2, so all but the two smallest singular values keep their distance
        # from 0 (Weyl), and the condition number on their span is bounded outright.
        lowest = torch.linalg.svdvals(weight)[-1]
        assert values[-3] >= lowest - 1e-9
        assert values[0] / values[-3] <= bound / lowest
        assert torch.linalg.cond(pruned) < torch.linalg.cond(raw)
        assert torch.linalg.cond(raw) > 0.3 * factor
        assert torch.linalg.cond(pruned) < 100 * (1 + math.log(factor))


def test_the_unedited_weight_counts_not_the_edited_one(lm) -> None:
    site = Site(1)
    big = patch_of(lm, "lowrank", scale=20.0, seed=11)
    sigma = compute_spectral_norm(lm.weight(site))
    with big.apply(lm):
        assert compute_spectral_norm(lm.weight(site)) > 2 * sigma
        patch = patch_of(lm, "lowrank", scale=20.0)
        report = PruneSpectrum()(patch, lm).header.notes["transforms"][0]["report"]
    assert report[str(site)]["largest_of_weight"] == pytest.approx(sigma)
