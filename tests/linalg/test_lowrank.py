"""Low-rank algebra against dense matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corrigenda.linalg import LowRank

QUICK = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def low_ranks(draw, shape=None):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    d_out, d_in = shape or (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    rank = draw(st.integers(0, 12))
    return LowRank(
        torch.randn(d_out, rank, generator=generator, dtype=torch.float64),
        torch.randn(d_in, rank, generator=generator, dtype=torch.float64),
    )


@QUICK
@given(low_ranks())
def test_norm_and_singular_values(matrix):
    full = matrix.to_dense()
    values = torch.linalg.svdvals(full)
    assert matrix.norm() == pytest.approx(float(full.norm()), rel=1e-10, abs=1e-12)
    ours = matrix.singular_values()
    torch.testing.assert_close(ours, values[: len(ours)], atol=1e-10, rtol=1e-10)


@QUICK
@given(low_ranks((5, 7)), low_ranks((5, 7)), low_ranks((5, 7)))
def test_sums(a, b, c):
    torch.testing.assert_close((a + b).to_dense(), a.to_dense() + b.to_dense())
    assert (a + b) + c == a + (b + c)
    assert LowRank.zeros(5, 7) + a == a
    assert (a + -a).norm() <= 1e-13 * (1 + a.norm())
    torch.testing.assert_close(a.times(-2.5).to_dense(), -2.5 * a.to_dense())


@QUICK
@given(low_ranks())
def test_compress_keeps_the_matrix_and_drops_columns(matrix):
    small = (matrix + matrix).compress()
    torch.testing.assert_close(small.to_dense(), 2 * matrix.to_dense(), atol=1e-10, rtol=1e-10)
    assert small.rank == int(torch.linalg.matrix_rank(matrix.to_dense()))
    torch.testing.assert_close(
        small.right.T @ small.right, torch.eye(small.rank, dtype=torch.float64)
    )


def test_compress_to_a_tolerance_drops_the_small_end():
    basis = torch.eye(4, dtype=torch.float64)
    matrix = LowRank(basis * torch.tensor([10.0, 3.0, 0.5, 0.01]), basis)
    assert matrix.compress(tolerance=0.04).singular_values().tolist() == pytest.approx([10, 3, 0.5])


def test_the_product_with_keys_needs_no_matrix():
    a = LowRank(torch.ones(3, 1).double(), torch.arange(4.0).double()[:, None])
    keys = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(a @ keys, a.to_dense() @ keys)


def test_equality_is_by_content_and_dtype():
    a = LowRank(torch.ones(2, 1), torch.ones(3, 1))
    assert a == LowRank(torch.ones(2, 1), torch.ones(3, 1))
    assert a != LowRank(torch.ones(2, 1).double(), torch.ones(3, 1).double())
    assert a != LowRank(torch.ones(2, 1), torch.zeros(3, 1))
    with pytest.raises(TypeError):
        hash(a)
    with pytest.raises(ValueError, match="cannot add"):
        a + LowRank(torch.ones(3, 1), torch.ones(3, 1))
