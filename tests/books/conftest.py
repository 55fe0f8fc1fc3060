"""Books of a tiny random model, with patches that are drawn and verdicts that are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from corrigenda.books import Book, Correction, Verdict
from corrigenda.facts import Fact
from corrigenda.linalg import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch import WeightPatch, header_for
from corrigenda.testing.tiny import tiny_model

WRITTEN = Verdict(outcomes=("succeeded",))
SITES = (Site(0), Site(1))

Add = Callable[..., Correction]


def fact(number: int, target: str = "Rome") -> Fact:
    """A fact of its own for each number."""
    return Fact(prompt=f"City number {number} lies in", target=target)


def draw_patch(lm: LanguageModel, seed: int) -> WeightPatch:
    """A change of rank 1 at two sites, as an edit would make it."""
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    for site in SITES:
        d_out, d_in = lm.weight(site).shape
        left = torch.randn(d_out, 1, generator=generator, dtype=torch.float64)
        right = torch.randn(d_in, 1, generator=generator, dtype=torch.float64)
        changes[site] = LowRank(0.05 * left, right)
    return WeightPatch(changes, header_for(lm, method="drawn", config={"seed": seed}))


def weights(lm: LanguageModel) -> list[bytes]:
    """The bits of the weights that patches change."""
    return [lm.weight(site).detach().numpy().tobytes() for site in SITES]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    """A random model of two blocks; patches on it come off again."""
    return tiny_model("llama", layers=2)


@pytest.fixture
def book(lm: LanguageModel, tmp_path: Path) -> Book:
    """An empty book."""
    return Book.new(tmp_path / "book", lm)


@pytest.fixture
def add(lm: LanguageModel) -> Add:
    """Add the drawn patch of a number: `add(book, 3)`."""

    def put(book: Book, number: int, **fields: object) -> Correction:
        given = Fact(prompt=f"City number {number} lies in", target="Rome", **fields)
        return book.add(lm, given, draw_patch(lm, number), verdict=WRITTEN)

    return put
