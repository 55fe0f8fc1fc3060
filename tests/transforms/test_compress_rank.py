"""Compression: the closest change of its rank, in every form, and an adapter of what had none."""

from __future__ import annotations

import pytest
import torch

from corrigenda.errors import BadConfig, NotExportable
from corrigenda.exports.peft import export_peft
from corrigenda.linalg.lowrank import LowRank
from corrigenda.patch.changes import dense
from corrigenda.transforms.compress_rank import CompressRank
from corrigenda.transforms.registry import parse_transform
from tests.transforms.conftest import KINDS, SITES, patch_of


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 2])
def test_it_is_the_closest_of_its_rank(kind, rank, lm) -> None:
    patch = patch_of(lm, kind)
    new = CompressRank(rank=rank, energy=1.0)(patch, lm)
    for site in SITES:
        change = new.changes[site]
        assert isinstance(change, LowRank)
        assert change.rank == rank
        before, after = dense(patch.changes[site]), dense(change)
        values = torch.linalg.svdvals(before)
        # Eckart and Young: no change of this rank is closer than the values left out.
        torch.testing.assert_close((before - after).norm(), values[rank:].norm())
        report = new.header.notes["transforms"][0]["report"][str(site)]
        share = float(values[:rank].square().sum() / values.square().sum())
        assert report["energy"] == pytest.approx(share)
        assert report["rank"] == rank


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("energy", [0.5, 0.9])
def test_as_few_directions_as_hold_the_energy(kind, energy, lm) -> None:
    patch = patch_of(lm, kind)
    new = CompressRank(energy=energy)(patch, lm)
    for site in SITES:
        squares = torch.linalg.svdvals(dense(patch.changes[site])).square()
        kept = new.changes[site].rank
        assert squares[:kept].sum() >= energy * squares.sum() > squares[: kept - 1].sum()


@pytest.mark.parametrize("kind", KINDS)
def test_all_the_energy_is_the_same_change(kind, lm) -> None:
    patch = patch_of(lm, kind)
    new = CompressRank(energy=1.0)(patch, lm)
    for site in SITES:
        torch.testing.assert_close(dense(new.changes[site]), dense(patch.changes[site]))


def test_a_dense_patch_becomes_an_adapter(lm, tmp_path) -> None:
    patch = patch_of(lm, "dense")
    with pytest.raises(NotExportable, match="compress"):
        export_peft(patch, lm, tmp_path / "adapter")
    folder = export_peft(parse_transform("compress:rank=2")(patch, lm), lm, tmp_path / "adapter")
    assert (folder / "adapter_model.safetensors").is_file()


def test_no_directions_are_refused() -> None:
    with pytest.raises(BadConfig):
        parse_transform("compress:rank=0")
