"""Identities of the closed-form updates, on random problems of every shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corrigenda.errors import BadConfig, DependentKeys, IllConditioned, NonFinite
from corrigenda.linalg import (
    Cholesky,
    equality,
    gram_condition,
    key_agreement,
    null_space,
    null_space_ridge,
    rank_one,
    ridge,
)

# Letters: K keys (d_in n) - R residuals (d_out n) - C second moment of keys (d_in d_in)

QUICK = settings(max_examples=25, deadline=None, derandomize=True)


class Problem:
    """Random keys, residuals and a well-conditioned second moment, float64."""

    def __init__(self, seed, d_out, d_in, n):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        basis, _ = torch.linalg.qr(normal(d_in, d_in))
        self.C = basis @ torch.diag(torch.logspace(-1, 1, d_in).double()) @ basis.T
        self.K, self.R = normal(d_in, n), normal(d_out, n)
        self.normal = normal


@st.composite
def problems(draw, most=None):
    d_in = draw(st.integers(3, 12))
    n = draw(st.integers(1, most or max(1, d_in // 2)))
    return Problem(draw(st.integers(0, 2**31)), draw(st.integers(1, 12)), d_in, n)


def assert_close(first, second, tolerance=1e-8):
    assert (first - second).norm() <= tolerance * max(1e-30, float(second.norm()))


@QUICK
@given(problems())
def test_equality_writes_the_residuals_exactly(p):
    assert_close(equality(p.K, p.R, p.C) @ p.K, p.R)


@QUICK
@given(problems(), st.floats(1e-6, 1e6))
def test_equality_does_not_know_the_scale_of_the_moment(p, scale):
    assert_close(equality(p.K, p.R, scale * p.C).to_dense(), equality(p.K, p.R, p.C).to_dense())


@QUICK
@given(problems())
def test_equality_is_the_smallest_change(p):
    best = equality(p.K, p.R, p.C).to_dense()
    free = p.normal(*best.shape)
    free = free - free @ p.K @ torch.linalg.pinv(p.K)
    assert torch.trace((best + free) @ p.C @ (best + free).T) >= torch.trace(best @ p.C @ best.T)
    # First-order condition: the gradient 2 D C is a combination of the constraints.
    gradient = best @ p.C
    assert_close(gradient @ p.K @ torch.linalg.pinv(p.K), gradient)


@QUICK
@given(problems(most=1))
def test_rome_is_emmet_of_one_fact(p):
    one = rank_one(p.K[:, 0], p.R[:, 0], p.C)
    assert one.rank == 1
    assert_close(one.to_dense(), equality(p.K, p.R, p.C).to_dense())
    u = torch.linalg.solve(p.C, p.K[:, 0])
    expected = p.R.norm() * u.norm() / (p.K[:, 0] @ u)
    assert one.norm() == pytest.approx(float(expected), rel=1e-10)


@QUICK
@given(problems())
def test_rank_one_leaves_keys_that_are_orthogonal_in_the_metric(p):
    u = torch.linalg.solve(p.C, p.K[:, :1])
    others = p.normal(p.K.shape[0], 3)
    others -= u @ (u.T @ others) / (u.T @ u)
    change = rank_one(p.K[:, 0], p.R[:, 0], p.C)
    assert (change @ others).norm() <= 1e-10 * change.norm() * others.norm()


@QUICK
@given(problems())
def test_original_rome_writes_at_the_prompt_key(p):
    key, at = p.K[:, 0], p.K[:, 0] + 0.2 * p.normal(p.K.shape[0])
    change = rank_one(key, p.R[:, 0], p.C, at=at)
    assert_close((change @ at[:, None])[:, 0], p.R[:, 0])
    ratio = key_agreement(key, at, p.C)
    assert_close((change @ key[:, None])[:, 0] * ratio, p.R[:, 0])
    assert key_agreement(key, key, p.C) == pytest.approx(1.0)


@QUICK
@given(problems(most=20), st.floats(1e-3, 1e4))
def test_ridge_satisfies_the_normal_equation(p, weight):
    change = ridge(p.K, p.R, p.C, weight=weight).to_dense()
    rest = (change @ p.K - p.R) @ p.K.T + weight * change @ p.C
    assert rest.norm() <= 1e-8 * (p.R @ p.K.T).norm()


@QUICK
@given(problems(), st.floats(1e-3, 1e4))
def test_memit_is_emmet_with_a_ridge(p, gamma):
    S = torch.linalg.solve(p.C, p.K)
    G = p.K.T @ S
    emmet = p.R @ torch.linalg.inv(G + gamma * torch.eye(len(G), dtype=G.dtype)) @ S.T
    memit = ridge(p.K, p.R, p.C, weight=gamma)
    assert_close(memit.to_dense(), emmet)
    written = p.R @ torch.linalg.solve(G + gamma * torch.eye(len(G), dtype=G.dtype), G).T
    assert_close(memit @ p.K, written)


@QUICK
@given(problems(most=20), st.floats(1e-2, 1e3))
def test_ridge_is_a_least_squares_solution(p, weight):
    lower = torch.linalg.cholesky(p.C) * weight**0.5
    left = torch.cat([p.K, lower], dim=1)
    right = torch.cat([p.R, torch.zeros(p.R.shape[0], lower.shape[1], dtype=p.R.dtype)], dim=1)
    expected = torch.linalg.lstsq(left.T, right.T).solution.T
    assert_close(ridge(p.K, p.R, p.C, weight=weight).to_dense(), expected)


@QUICK
@given(problems())
def test_limits_of_the_ridge(p):
    exact = equality(p.K, p.R, p.C).to_dense()
    assert_close(ridge(p.K, p.R, p.C, weight=0.0).to_dense(), exact)
    condition = gram_condition(p.K, p.C).condition
    assert_close(ridge(p.K, p.R, p.C, weight=1e-12).to_dense(), exact, 1e-7 * condition)
    heavy = 1e12
    expected = p.R @ torch.linalg.solve(p.C, p.K).T / heavy
    assert_close(ridge(p.K, p.R, p.C, weight=heavy).to_dense(), expected, 1e-6)


@QUICK
@given(problems(most=8), st.integers(0, 2**31))
def test_the_order_of_facts_does_not_matter(p, seed):
    order = torch.randperm(p.K.shape[1], generator=torch.Generator().manual_seed(seed))
    first = ridge(p.K, p.R, p.C, weight=1.0).to_dense()
    assert_close(ridge(p.K[:, order], p.R[:, order], p.C, weight=1.0).to_dense(), first, 1e-10)


@QUICK
@given(problems())
def test_a_fact_given_twice(p):
    twice = torch.cat([p.K, p.K], dim=1), torch.cat([p.R, p.R], dim=1)
    with pytest.raises(DependentKeys, match="CG202"):
        equality(*twice, p.C)
    once = ridge(p.K, p.R, p.C, weight=0.5)
    assert_close(ridge(*twice, p.C, weight=1.0).to_dense(), once.to_dense())


@QUICK
@given(problems())
def test_orthogonal_keys_can_be_split(p):
    """Keys that are orthogonal in the metric C^-1 do not interact, exactly or with a ridge."""
    factor = Cholesky.of(p.C)
    B, _ = torch.linalg.qr(factor.whiten(p.K))
    K = factor.lower @ B
    half = K.shape[1] // 2
    for solve in (equality, lambda *problem: ridge(*problem, weight=0.3)):
        parts = solve(K[:, :half], p.R[:, :half], p.C) + solve(K[:, half:], p.R[:, half:], p.C)
        assert_close(parts.to_dense(), solve(K, p.R, p.C).to_dense())


@QUICK
@given(problems(most=6), st.integers(1, 15))
def test_two_protected_batches_equal_one_joint_batch(p, second):
    """Recursive least squares: fixed keys and targets, the second batch protecting the first."""
    d_out, d_in = p.R.shape[0], p.K.shape[0]
    K2, R2 = p.normal(d_in, second), p.normal(d_out, second)
    joint = ridge(torch.cat([p.K, K2], dim=1), torch.cat([p.R, R2], dim=1), p.C, weight=2.0)
    first = ridge(p.K, p.R, p.C, weight=2.0)
    left = R2 - first @ K2
    kept = ridge(K2, left, p.C, weight=2.0, protected=p.K)
    assert_close((first + kept).to_dense(), joint.to_dense())
    plain = ridge(K2, left, p.C, weight=2.0)
    assert (first + plain).to_dense().sub(joint.to_dense()).norm() > 1e-6 * joint.norm()


@QUICK
@given(problems(most=15), st.integers(0, 15), st.floats(0.1, 0.9))
def test_null_space_update(p, earlier, share):
    K_p = p.normal(p.K.shape[0], earlier)
    values, vectors = torch.linalg.eigh(p.C)
    rank = max(1, min(len(values) - 1, int(share * len(values))))
    threshold = float(values[rank - 1 : rank + 1].mean())
    projector = null_space(p.C, threshold=threshold)
    assert projector.rank == rank
    P = projector.to_dense()
    assert_close(P @ P, P)
    assert_close(P.T, P)
    change = null_space_ridge(p.K, p.R, projector, protected=K_p, weight=0.4)
    full = change.to_dense()
    assert_close(full @ P, full)
    preserved = vectors[:, rank:]
    assert (full @ preserved).norm() <= 1e-10 * full.norm()
    leak = torch.trace(full @ p.C @ full.T)
    assert leak <= threshold * full.norm() ** 2 * (1 + 1e-9)
    rest = (full @ p.K - p.R) @ p.K.T @ P + 0.4 * full + full @ K_p @ K_p.T @ P
    assert rest.norm() <= 1e-8 * (p.R @ p.K.T).norm()


@QUICK
@given(problems(most=6))
def test_null_space_of_everything_is_ridge_regression(p):
    everything = null_space(p.C, threshold=float("inf"))
    assert everything.rank == p.K.shape[0]
    change = null_space_ridge(p.K, p.R, everything, weight=0.7)
    assert_close(change.to_dense(), ridge(p.K, p.R, None, weight=0.7).to_dense())
    half = p.K.shape[1] // 2
    first = null_space_ridge(p.K[:, :half], p.R[:, :half], everything, weight=0.7)
    left = p.R[:, half:] - first @ p.K[:, half:]
    second = null_space_ridge(p.K[:, half:], left, everything, protected=p.K[:, :half], weight=0.7)
    assert_close((first + second).to_dense(), change.to_dense())


def test_choice_by_energy():
    C = torch.diag(torch.tensor([0.001, 0.004, 0.495, 0.5], dtype=torch.float64))
    chosen = null_space(C, energy=0.006)
    assert (chosen.rank, chosen.complement) == (2, False)
    assert chosen.threshold == pytest.approx(0.004)
    assert chosen.energy == pytest.approx(0.005)
    with pytest.raises(BadConfig, match="no direction of the 4 free"):
        null_space(C, energy=1e-6)


def test_float32_keys_are_solved_in_float64():
    """In float32 the error of this solve passes 1; the answer must still write the residuals."""
    p = Problem(3, 4, 10, 4)
    C = p.C @ torch.diag(torch.logspace(-6, 0, 10).double()) @ p.C
    C = (C + C.T) / 2 + 1e-9 * torch.eye(10)
    change = equality(p.K.float(), p.R.float(), C)
    assert change.left.dtype == torch.float64
    assert_close(change @ p.K.float().double(), p.R.float().double(), 1e-6)


def test_one_factor_serves_many_solves():
    p = Problem(4, 5, 8, 3)
    factor = Cholesky.of(p.C)
    assert torch.equal(
        ridge(p.K, p.R, factor, weight=3.0).to_dense(), ridge(p.K, p.R, p.C, weight=3.0).to_dense()
    )


def test_no_facts_give_no_columns():
    p = Problem(5, 4, 6, 0)
    projector = null_space(p.C, threshold=1.0)
    for change in (
        equality(p.K, p.R, p.C),
        ridge(p.K, p.R, p.C, weight=1.0),
        null_space_ridge(p.K, p.R, projector),
    ):
        assert change.rank == 0
        assert change.norm() == 0.0
        assert change.to_dense().shape == (4, 6)


def test_condition_of_the_gram_matrix():
    K = torch.tensor([[1.0, 100.0], [0.0, 0.01]], dtype=torch.float64)
    report = gram_condition(K, None)
    cosine = 100 / (100**2 + 0.01**2) ** 0.5
    assert report.cosine == pytest.approx(cosine)
    assert report.closest == (0, 1)
    assert report.condition == pytest.approx((1 + cosine) / (1 - cosine), rel=1e-3)
    assert gram_condition(torch.eye(3).double() * torch.tensor([1.0, 9.0, 1e-5]), None)[
        0
    ] == pytest.approx(1.0)
    assert gram_condition(torch.ones(2, 3).double(), None).condition == float("inf")


def test_bad_input_is_named():
    p = Problem(6, 4, 6, 3)
    near = p.K.clone()
    near[:, 2] = near[:, 1] + 1e-7 * p.K[:, 2]
    with pytest.raises(IllConditioned, match=r"nearly dependent.*\n.*keys 1 and 2") as caught:
        equality(near, p.R, p.C)
    assert "ridge" in str(caught.value)
    with pytest.raises(DependentKeys, match="7 keys cannot be independent in 6"):
        equality(p.normal(6, 7), p.normal(4, 7), p.C)
    with pytest.raises(DependentKeys, match="no component"):
        rank_one(torch.zeros(6), p.R[:, 0], p.C)
    with pytest.raises(DependentKeys, match="no component"):
        rank_one(torch.tensor([1.0, 0.0]), torch.ones(1), None, at=torch.tensor([0.0, 1.0]))
    bad = p.K.clone()
    bad[2, 1] = float("nan")
    for solve in (equality, lambda *problem: ridge(*problem, weight=1.0)):
        with pytest.raises(NonFinite, match=r"key holds infinities or NaN.\n  columns 1"):
            solve(bad, p.R, p.C)
    with pytest.raises(NonFinite, match="residual"):
        ridge(p.K, p.R / 0, p.C, weight=1.0)
    with pytest.raises(BadConfig, match="weight"):
        ridge(p.K, p.R, p.C, weight=-1.0)
    with pytest.raises(BadConfig, match="weight"):
        ridge(p.K, p.R, p.C, weight=float("nan"))
    with pytest.raises(BadConfig, match="above 0"):
        null_space_ridge(p.K, p.R, null_space(p.C, threshold=1.0), weight=0.0)
    with pytest.raises(IllConditioned, match="larger one"):
        ridge(torch.cat([p.K, p.K], 1), torch.cat([p.R, p.R], 1), p.C, weight=1e-40)
    with pytest.raises(IllConditioned, match="not positive definite"):
        ridge(p.K, p.R, -p.C, weight=1.0)
    with pytest.raises(NonFinite, match="second moment"):
        ridge(p.K, p.R, p.C / 0, weight=1.0)
