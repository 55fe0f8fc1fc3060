"""The nearest of stored vectors: exact, ties to the lowest index, whoever else is asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.linalg.nearest import NearestSearch


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 12), st.booleans())
def test_it_is_what_comparing_all_pairs_gives(seed: int, n: int, d: int, far: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(n, d, generator=generator) + 100.0 * far
    queries = torch.randn(7, d, generator=generator) + 100.0 * far
    found = NearestSearch(keys).search(queries)
    distances = (queries[:, None].double() - keys.double()).norm(dim=2)
    assert found.distances == pytest.approx(distances.min(1).values.tolist(), rel=1e-4, abs=1e-4)
    taken = distances.gather(1, found.indices[:, None]).squeeze(1)
    torch.testing.assert_close(taken, distances.min(1).values, rtol=1e-4, atol=1e-4)


def test_a_stored_vector_is_at_distance_zero_and_the_first_of_equals_is_found() -> None:
    keys = torch.randn(300, 24, generator=torch.Generator().manual_seed(0)) + 50.0
    keys[200:] = keys[100:200]
    found = NearestSearch(keys).search(keys)
    assert not found.distances.any()
    assert found.indices.tolist() == [*range(200), *range(100, 200)]


def test_company_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    nearest = NearestSearch(torch.randn(500, 16, generator=generator))
    queries = torch.randn(100, 16, generator=generator)
    together = nearest.search(queries)
    for row, query in enumerate(queries):
        alone = nearest.search(query[None])
        assert alone.indices == together.indices[row]
        assert float(alone.distances) == pytest.approx(float(together.distances[row]))


def test_rough_products_are_made_good(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    keys = torch.randn(64, 8, generator=generator)
    queries = keys + 1e-3 * torch.randn(64, 8, generator=generator)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert NearestSearch(keys).search(queries).indices.tolist() == list(range(64))


def test_nothing_stored_is_infinitely_far() -> None:
    found = NearestSearch(torch.empty(0, 4)).search(torch.zeros(2, 4))
    assert len(NearestSearch(torch.empty(0, 4))) == 0
    assert found.distances.tolist() == [torch.inf, torch.inf]
    assert found.indices.tolist() == [-1, -1]


def test_vectors_that_come_later_are_found_as_if_all_had_come_at_once() -> None:
    draw = torch.Generator().manual_seed(0)
    vectors = 5.0 + torch.randn(90, 8, generator=draw)
    queries = torch.cat([vectors[::7], 5.0 + torch.randn(20, 8, generator=draw)])
    for count in (1, 3, 40, 90):
        whole = NearestSearch(vectors[:count]).search(queries)
        grown = NearestSearch(vectors[:1])
        for part in vectors[1:90].split(4):
            grown.extend(part)
            grown.search(queries[:1])
        grown.truncate(count)
        found = grown.search(queries)
        assert torch.equal(found.indices, whole.indices)
        assert torch.equal(found.distances, whole.distances)
