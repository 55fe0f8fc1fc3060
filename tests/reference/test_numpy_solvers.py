"""The library's solvers against the slow references, over shapes on both sides of n = d_in."""

import numpy as np
import numpy_solvers as reference
import pytest
import torch

from corrigenda import linalg


def problem(d_out, d_in, n, seed=0):
    """Keys, residuals and a moment of condition number about 100, as arrays."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(d_in, d_in)))
    moment = basis @ np.diag(np.geomspace(0.1, 10, d_in)) @ basis.T
    return rng.normal(size=(d_in, n)), rng.normal(size=(d_out, n)), moment


def tensors(*arrays):
    return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)


def close(ours, theirs, tolerance=1e-9):
    difference = np.linalg.norm(ours.to_dense().numpy() - theirs)
    assert difference <= tolerance * np.linalg.norm(theirs)


@pytest.mark.parametrize(("d_out", "d_in"), [(5, 9), (9, 5), (6, 6), (1, 4)])
def test_rank_one(d_out, d_in):
    K, R, C = problem(d_out, d_in, 2)
    key, other, residual, moment = tensors(K[:, 0], K[:, 1], R[:, 0], C)
    close(linalg.rank_one(key, residual, moment), reference.rome(K[:, 0], R[:, 0], C))
    close(
        linalg.rank_one(key, residual, moment, at=other),
        reference.original_rome(K[:, 0], K[:, 1], R[:, 0], C),
    )


@pytest.mark.parametrize(("d_out", "d_in", "n"), [(5, 9, 1), (5, 9, 4), (3, 9, 7), (9, 5, 5)])
def test_equality(d_out, d_in, n):
    K, R, C = problem(d_out, d_in, n)
    keys, residuals, moment = tensors(K, R, C)
    close(linalg.equality(keys, residuals, moment), reference.emmet(K, R, C), 1e-8)


@pytest.mark.parametrize(
    ("d_out", "d_in", "n", "earlier"),
    [(5, 9, 1, 0), (5, 9, 4, 3), (5, 9, 4, 20), (5, 9, 30, 0), (9, 5, 30, 4), (9, 5, 7, 0)],
)
@pytest.mark.parametrize("weight", [0.01, 1.0, 500.0])
def test_ridge(d_out, d_in, n, earlier, weight):
    K, R, C = problem(d_out, d_in, n + earlier)
    keys, residuals, moment, protected = tensors(K[:, :n], R[:, :n], C, K[:, n:])
    update = linalg.ridge(
        keys, residuals, moment, weight=weight, protected=protected if earlier else None
    )
    close(update, reference.memit(K[:, :n], R[:, :n], C, weight, K[:, n:]))
    assert update.rank <= min(n, d_out, d_in)


@pytest.mark.parametrize("free", [2, 5, 8])
@pytest.mark.parametrize(("n", "earlier"), [(1, 0), (4, 3), (3, 20), (25, 0)])
def test_null_space_ridge(free, n, earlier):
    K, R, C = problem(5, 9, n + earlier)
    threshold = float(np.sort(np.linalg.eigvalsh(C))[free - 1 : free + 1].mean())
    keys, residuals, moment, protected = tensors(K[:, :n], R[:, :n], C, K[:, n:])
    projector = linalg.null_space(moment, threshold=threshold)
    P = reference.projector(C, threshold)
    np.testing.assert_allclose(projector.to_dense().numpy(), P, atol=1e-12)
    update = linalg.null_space_ridge(keys, residuals, projector, protected=protected, weight=0.7)
    close(update, reference.alphaedit(K[:, :n], R[:, :n], P, K[:, n:], 0.7))
    assert update.rank <= min(n, 5)


def test_second_moment():
    keys = np.random.default_rng(1).normal(size=(40, 6))
    moment = linalg.SecondMoment(6)
    for start in range(0, 40, 7):
        moment.update(torch.from_numpy(keys[start : start + 7]))
    np.testing.assert_allclose(
        moment.covariance().numpy(), reference.second_moment(keys), rtol=1e-12, atol=1e-14
    )
