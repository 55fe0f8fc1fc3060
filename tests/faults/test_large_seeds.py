"""The largest seed is as good as another."""

from __future__ import annotations

import pytest
import torch

from corrigenda.methods.presets import build_editor
from corrigenda.methods.wise.side_memory import random_mask
from corrigenda.statistics import Corpus
from corrigenda.testing.tiny import tiny_model
from tests.faults.test_nothing_asked import OPTIONS, PAIRS, TEXTS

SEEDED = ("calinet", "grace", "ike", "melo", "serac", "t-patcher", "truthx", "wise")


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63) + 1])
@pytest.mark.parametrize("method", SEEDED)
def test_the_largest_seeds_edit(method: str, seed: int, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path))
    lm = tiny_model("llama", seed=0)
    editor = build_editor(method, **{**OPTIONS[method], "seed": seed})
    material = PAIRS if editor.requires.training_set else Corpus(TEXTS, length=16)
    assert not editor.edit(lm, PAIRS[:1], editor.fit(lm, material)).patch.is_empty


def test_usual_masks_stay_as_they_are() -> None:
    for seed in (0, 3, -2):
        generator = torch.Generator().manual_seed(1_000_003 * seed + 1)
        drawn = torch.rand((4, 5), generator=generator) < 0.5
        assert torch.equal(random_mask((4, 5), 0.5, seed=seed, number=1), drawn)
