"""A full matrix in the smallest exact form."""

from __future__ import annotations

import torch

from corrigenda.linalg.lowrank import LowRank
from corrigenda.patch.changes import Change, Dense, Rows, compact, dense, num_parameters


def matrix() -> torch.Tensor:
    return torch.randn(8, 20, generator=torch.Generator().manual_seed(0))


def check(change: Change, delta: torch.Tensor) -> None:
    assert torch.equal(dense(change, torch.float32), delta)
    assert num_parameters(change) <= delta.numel()


def test_a_full_matrix_stays_dense() -> None:
    change = compact(matrix())
    assert isinstance(change, Dense)
    check(change, matrix())


def test_few_columns_are_low_rank() -> None:
    delta = matrix()
    delta[:, [*range(3), *range(5, 20)]] = 0
    change = compact(delta)
    assert isinstance(change, LowRank)
    assert change.rank == 2
    check(change, delta)


def test_few_rows_are_rows() -> None:
    delta = matrix()
    delta[3:] = 0
    change = compact(delta)
    assert isinstance(change, Rows)
    assert change.index.tolist() == [0, 1, 2]
    check(change, delta)


def test_nothing_has_no_parameters() -> None:
    change = compact(torch.zeros(8, 20))
    assert num_parameters(change) == 0
    check(change, torch.zeros(8, 20))
