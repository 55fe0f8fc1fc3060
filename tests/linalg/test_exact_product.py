"""The product of factors that has the same bits in any order, against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corrigenda.linalg.exact_product import exact_product
from corrigenda.linalg.row_buffer import RowBuffer


def factors(seed: int, rows: int, columns: int, rank: int, spread: int):
    draw = torch.Generator().manual_seed(seed)

    def one(count: int) -> torch.Tensor:
        values = torch.randn(count, rank, generator=draw, dtype=torch.float64)
        powers = torch.randint(-spread, spread + 1, (count, rank), generator=draw)
        return torch.ldexp(values, powers)

    return one(rows), one(columns)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 40), spread=st.sampled_from([0, 3, 20]))
def test_entries_are_those_of_exact_arithmetic(seed: int, rank: int, spread: int) -> None:
    left, right = factors(seed, 3, 4, rank, spread)
    found = exact_product(left, right)
    for row, column in ((0, 0), (2, 3), (1, 2)):
        terms = [
            Fraction(a) * Fraction(b)
            for a, b in zip(left[row].tolist(), right[column].tolist(), strict=True)
        ]
        largest = Fraction(float(left[row].abs().max())) * Fraction(
            float(right[column].abs().max())
        )
        assert abs(Fraction(float(found[row, column])) - sum(terms)) <= largest / 2**51 * rank**0.5


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 70))
def test_bits_depend_on_no_order_or_blocking(seed: int, rank: int) -> None:
    left, right = factors(seed, 9, 11, rank, 2)
    whole = exact_product(left, right)
    order = torch.randperm(rank, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(exact_product(left[:, order], right[:, order]), whole)
    blocks = [exact_product(part, right) for part in left.split(4)]
    assert torch.equal(torch.cat(blocks), whole)
    one_by_one = [exact_product(left, part) for part in right.split(1)]
    assert torch.equal(torch.cat(one_by_one, dim=1), whole)


def test_extremes() -> None:
    zero = torch.zeros(2, 3)
    assert not exact_product(zero, zero).any()
    assert exact_product(zero[:, :0], zero[:, :0]).shape == (2, 2)
    tiny = torch.full((1, 2), 1e-310, dtype=torch.float64)
    assert exact_product(tiny, torch.ones(1, 2)).item() == pytest.approx(2e-310, rel=1e-3)
    large = torch.full((1, 2), 1e300, dtype=torch.float64)
    assert exact_product(large, large).item() == torch.inf


def test_rows_stay_valid_while_others_are_appended() -> None:
    buffer = RowBuffer()
    buffer.append(torch.arange(3.0)[:, None])
    early = buffer.rows
    for number in range(3, 200):
        buffer.append(torch.tensor([[float(number)]]))
    assert early.flatten().tolist() == [0.0, 1.0, 2.0]
    assert buffer.rows.flatten().tolist() == list(map(float, range(200)))
    buffer.remove(1, 199)
    assert buffer.rows.flatten().tolist() == [0.0, 199.0]
    buffer.remove(1, 2)
    buffer.append(torch.tensor([[5.0]]))
    assert buffer.rows.flatten().tolist() == [0.0, 5.0]
