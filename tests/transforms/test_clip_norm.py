"""Norm clipping: bounds are kept, directions too, and short things stay to the bit."""

from __future__ import annotations

import pytest
import torch

from corrigenda.patch.changes import dense
from corrigenda.transforms.clip_norm import ClipNorm
from tests.transforms.conftest import KINDS, SITES, patch_of

SIZES = {
    ("matrix", "frobenius"): lambda matrix: matrix.norm()[None],
    ("matrix", "spectral"): lambda matrix: torch.linalg.matrix_norm(matrix, 2)[None],
    ("rows", "frobenius"): lambda matrix: matrix.norm(dim=1),
    ("columns", "frobenius"): lambda matrix: matrix.norm(dim=0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("of", "norm"), SIZES)
@pytest.mark.parametrize("bound", [{"relative": 0.05}, {"absolute": 0.4}], ids=str)
def test_nothing_exceeds_the_bound_and_the_rest_is_unchanged(kind, of, norm, bound, lm) -> None:
    size, patch = SIZES[of, norm], patch_of(lm, kind, scale=0.2)
    new = ClipNorm(of=of, norm=norm, **bound)(patch, lm)
    for site in SITES:
        before, after = dense(patch.changes[site]), dense(new.changes[site])
        lengths = size(before)
        most = torch.full_like(lengths, 0.4)
        if "relative" in bound:
            most = 0.05 * size(lm.weight(site))
        assert bool((size(after) <= most * (1 + 1e-12)).all())
        factors = torch.where(lengths > most, most / lengths.clamp_min(1e-30), 1.0)
        factors = factors[:, None] if of == "rows" else factors
        torch.testing.assert_close(after, before * factors)
        report = new.header.notes["transforms"][0]["report"][str(site)]
        assert report["clipped"] == int((lengths > most).sum())
        assert type(new.changes[site]) is type(patch.changes[site])


@pytest.mark.parametrize("of", ["matrix", "rows", "columns"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_generous_bound_changes_nothing(of, kind, lm) -> None:
    patch = patch_of(lm, kind, scale=1e-3)
    new = ClipNorm(absolute=1e3, of=of)(patch, lm)
    assert new.digest() == patch.digest()
    assert new.header.method == "test > clip-norm"


def test_a_zero_change_is_not_divided_by(lm) -> None:
    patch = patch_of(lm, "lowrank").scale(0.0)
    for of in ("matrix", "rows", "columns"):
        assert ClipNorm(relative=0.1, of=of)(patch, lm).digest() == patch.digest()
