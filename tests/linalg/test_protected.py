"""Keys of earlier edits: exact however they are kept, whatever came before."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corrigenda.errors import IllConditioned
from corrigenda.linalg import Protected, null_space, null_space_ridge, ridge

QUICK = settings(max_examples=25, deadline=None, derandomize=True)
SIZE = 12


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_close(first, second, tolerance=1e-9):
    assert (first - second).norm() <= tolerance * max(1e-30, float(second.norm()))


@QUICK
@given(st.lists(st.integers(0, 16), min_size=1, max_size=6), st.floats(1e-2, 1e3))
def test_every_solve_equals_the_dense_one(counts, weight):
    kept, seen = Protected.empty(SIZE, weight), normal(0, SIZE, 0)
    for index, count in enumerate(counts):
        batch = normal(index + 1, SIZE, count)
        system = weight * torch.eye(SIZE, dtype=torch.float64) + seen @ seen.T + batch @ batch.T
        expected = torch.linalg.solve(system, batch)
        assert_close(kept.solve(batch), expected)
        assert_close(Protected.from_tensors(kept.tensors()).solve(batch), expected)
        assert_close(kept.with_weight(7.0).with_weight(weight).solve(batch), expected)
        kept, seen = kept.with_keys(batch), torch.cat([seen, batch], dim=1)
        assert kept.count == seen.shape[1]


def test_what_is_kept_stops_growing():
    kept = Protected.empty(SIZE, 1.0)
    sizes = []
    for index in range(3 * SIZE):
        kept = kept.with_keys(normal(index, SIZE, 1))
        sizes.append(sum(tensor.numel() for tensor in kept.tensors().values()))
    assert kept.columns is None
    assert max(sizes) == sizes[-1] == SIZE**2 + 2
    assert sizes[0] < sizes[1] < sizes[2] < sizes[-1]


def test_few_keys_stay_columns_and_a_step_back_is_the_value_before():
    first = Protected.empty(SIZE, 1.0).with_keys(normal(1, SIZE, 2))
    before = {name: tensor.clone() for name, tensor in first.tensors().items()}
    first.with_keys(normal(2, SIZE, 1)).with_keys(normal(3, SIZE, 20))
    assert torch.equal(first.columns, normal(1, SIZE, 2))
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, before[name])


def test_solvers_take_kept_keys_or_plain_ones():
    keys, residuals, old = normal(1, SIZE, 3), normal(2, 5, 3), normal(3, SIZE, 9)
    moment = normal(4, SIZE, 40) @ normal(4, SIZE, 40).T / 40
    lower = torch.linalg.cholesky(moment)
    whitened = torch.linalg.solve_triangular(lower, old, upper=False)
    kept = Protected.empty(SIZE, 2.0).with_keys(whitened[:, :2]).with_keys(whitened[:, 2:])
    assert_close(
        ridge(keys, residuals, moment, weight=2.0, protected=kept).to_dense(),
        ridge(keys, residuals, moment, weight=2.0, protected=old).to_dense(),
    )
    for threshold in (0.3, 1.5):
        free = null_space(moment, threshold=threshold)
        seen = free.coordinates(old)
        kept = Protected.empty(len(seen), 2.0).with_keys(seen)
        change = null_space_ridge(keys, residuals, free, weight=2.0, protected=kept).to_dense()
        plain = null_space_ridge(keys, residuals, free, weight=2.0, protected=old).to_dense()
        assert_close(change, plain)
        assert_close(change @ free.to_dense(), change, 1e-14)


def test_a_weight_lost_to_rounding_is_named():
    with pytest.raises(IllConditioned, match="choose a larger one"):
        Protected.empty(SIZE, 1e-40).with_keys(torch.ones(SIZE, 2))
