"""Search is exact: it agrees with a full sort, whatever the chunks; ties go to the lowest index."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.retrieval import Index
from corrigenda.retrieval import index as module


def drawn(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator)


def sorted_in_full(vectors: torch.Tensor, queries: torch.Tensor, k: int) -> torch.Tensor:
    scores = (queries.double() @ vectors.double().T).float()
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    monkeypatch.setattr(module, "_STORED_AT_ONCE", 7)
    monkeypatch.setattr(module, "_QUERIES_AT_ONCE", 2)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("count", [1, 6, 7, 8, 50])
@pytest.mark.parametrize("k", [1, 3, 100])
def test_the_best_are_those_of_a_full_sort(count: int, k: int) -> None:
    vectors, queries = drawn(count), drawn(5, seed=1)
    found = Index(vectors).search(queries, k)
    assert torch.equal(found.indices, sorted_in_full(vectors, queries, k))
    scores = (queries.double() @ vectors.double().T).float()
    assert torch.equal(found.scores, scores.gather(1, found.indices))


@pytest.mark.usefixtures("small_chunks")
def test_equal_vectors_come_in_the_order_stored() -> None:
    vectors = drawn(3).repeat(10, 1)
    queries = drawn(4, seed=2)
    found = Index(vectors).search(queries, 12)
    assert torch.equal(found.indices, sorted_in_full(vectors, queries, 12))
    best = found.indices[:, :10]
    assert torch.equal(best, best.sort(1).values)


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=40))
def test_order_and_values_survive_the_packing(numbers: list[float]) -> None:
    scores = torch.tensor(numbers)[:, None]
    found = Index(scores).search(torch.ones(1, 1), len(numbers))
    order = sorted(range(len(numbers)), key=lambda i: (-float(scores[i]), i))
    assert found.indices[0].tolist() == order
    assert found.scores[0].tolist() == [float(scores[i]) for i in order]


def test_a_query_finds_the_same_alone_and_among_others() -> None:
    vectors, queries = drawn(500), drawn(40, seed=3)
    together = Index(vectors).search(queries, 9)
    for row, query in enumerate(queries):
        alone = Index(vectors).search(query[None], 9)
        assert torch.equal(alone.indices[0], together.indices[row])
        assert torch.equal(alone.scores[0], together.scores[row])


def test_zeros_of_either_sign_are_equal() -> None:
    found = Index(torch.tensor([[-0.0], [0.0], [-0.0]])).search(torch.ones(1, 1), 3)
    assert found.indices.tolist() == [[0, 1, 2]]


def test_nothing_stored_and_nothing_asked() -> None:
    assert Index(torch.zeros(0, 4)).search(drawn(3, 4), 5).indices.shape == (3, 0)
    assert Index(drawn(5, 4)).search(torch.zeros(0, 4), 2).indices.shape == (0, 2)


@pytest.mark.slow
def test_a_million_vectors() -> None:
    vectors = torch.nn.functional.normalize(drawn(1_000_000, 32), dim=1)
    wanted = torch.tensor([0, 999_999, 123_456])
    found = Index(vectors).search(vectors[wanted], 4)
    assert found.indices[:, 0].tolist() == wanted.tolist()
    assert torch.equal(found.indices, sorted_in_full(vectors, vectors[wanted], 4))
