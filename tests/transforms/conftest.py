"""A small model, and patches of every form for two of its weights."""

from __future__ import annotations

import pytest
import torch

from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch import Change, Dense, Rows, WeightPatch, header_for
from corrigenda.testing.tiny import tiny_model
from tests.support.locating import FACTS

KINDS = ("lowrank", "dense", "rows")
SITES = (Site(1), Site(2, "mlp.up"))


def change_of(shape: tuple[int, int], kind: str, *, seed: int, scale: float) -> Change:
    """A random change, float64."""
    generator = torch.Generator().manual_seed(seed)
    d_out, d_in = shape
    if kind == "dense":
        return Dense(scale * torch.randn(d_out, d_in, generator=generator, dtype=torch.float64))
    if kind == "rows":
        index = torch.randperm(d_out, generator=generator)[:5].sort().values
        values = torch.randn(5, d_in, generator=generator, dtype=torch.float64)
        return Rows(index, scale * values, d_out)
    left = torch.randn(d_out, 3, generator=generator, dtype=torch.float64)
    return LowRank(scale * left, torch.randn(d_in, 3, generator=generator, dtype=torch.float64))


def patch_of(
    lm: LanguageModel, kind: str, *, seed: int = 0, scale: float = 0.05, facts: int = 2
) -> WeightPatch:
    """A patch of both weights whose header names facts."""
    changes = {
        site: change_of(tuple(lm.weight(site).shape), kind, seed=seed + place, scale=scale)
        for place, site in enumerate(SITES)
    }
    return WeightPatch(changes, header_for(lm, method="test", facts=FACTS[:facts]))


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    """Llama's layout, float64."""
    return tiny_model("llama", dtype=torch.float64)


@pytest.fixture(scope="session")
def gpt2() -> LanguageModel:
    """GPT-2's layout with transposed weights and biases, float64."""
    return tiny_model("gpt2", dtype=torch.float64)
