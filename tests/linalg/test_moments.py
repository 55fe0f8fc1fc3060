"""Running second moments: the same whatever the batches, mergeable, resumable."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corrigenda.errors import BadConfig, EmptyCorpus, IllConditioned, NonFinite
from corrigenda.linalg import Cholesky, SecondMoment

QUICK = settings(max_examples=25, deadline=None, derandomize=True)


def moment_of(*batches):
    moment = SecondMoment(batches[0].shape[1])
    for batch in batches:
        moment.update(batch)
    return moment


def keys_of(seed, count, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64).to(dtype)


@QUICK
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 9), st.integers(1, 20))
def test_batches_order_and_merges_do_not_matter(seed, count, width, size):
    keys = keys_of(seed, count, width)
    expected = keys.T @ keys / count
    batches = keys.split(size)
    whole = moment_of(*batches)
    backwards = moment_of(*reversed(batches))
    merged = moment_of(*batches[:1])
    for batch in batches[1:]:
        merged = merged + moment_of(batch)
    for moment in (whole, backwards, merged):
        C = moment.covariance()
        torch.testing.assert_close(C, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(C, C.T)
        assert moment.count == count
        torch.testing.assert_close(moment.mean, keys.mean(0), rtol=1e-12, atol=1e-12)
        assert torch.equal(moment.largest, keys.abs().amax(0))


@QUICK
@given(st.integers(0, 2**31), st.integers(2, 40), st.integers(1, 9))
def test_positive_semidefinite_also_after_centring(seed, count, width):
    keys = keys_of(seed, count, width) + 3
    moment = moment_of(keys)
    C = moment.covariance()
    slack = -1e-10 * float(C.diagonal().mean())
    assert torch.linalg.eigvalsh(C).min() >= slack
    assert torch.linalg.eigvalsh(C - torch.outer(moment.mean, moment.mean)).min() >= slack
    assert float(C.trace()) == pytest.approx(float(keys.square().sum(1).mean()))


def test_merging_changes_neither_side():
    first, second = moment_of(keys_of(0, 9, 4)), moment_of(keys_of(1, 7, 4))
    before = first.covariance().clone(), second.covariance().clone()
    merged = first + second
    merged.update(keys_of(2, 5, 4))
    assert torch.equal(first.covariance(), before[0])
    assert torch.equal(second.covariance(), before[1])
    with pytest.raises(ValueError, match="width 4 and 5"):
        first + SecondMoment(5)


def test_wide_keys_take_the_blocked_path():
    keys = keys_of(3, 50, 700)
    torch.testing.assert_close(moment_of(keys).covariance(), keys.T @ keys / 50)


def test_long_float32_sums_stay_accurate():
    """A million keys of large mean: a float32 running sum is off by 1e-5 and more."""
    keys = keys_of(4, 1000, 3, torch.float32) + 10
    moment = SecondMoment(3)
    for _ in range(1000):
        moment.update(keys)
    expected = keys.double().T @ keys.double() / 1000
    error = (moment.covariance() - expected).norm() / expected.norm()
    assert error < 2e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keys_do_not_overflow(dtype):
    keys = torch.full((4, 2), 300.0, dtype=dtype)
    assert moment_of(keys).covariance()[0, 0] == float(keys[0, 0]) ** 2


def test_going_on_from_saved_sums_is_exact():
    keys = keys_of(5, 30, 4, torch.float32)
    straight = moment_of(keys[:12])
    straight.tensors()
    straight.update(keys[12:])
    resumed = SecondMoment.from_tensors(moment_of(keys[:12]).tensors())
    resumed.update(keys[12:])
    assert torch.equal(straight.covariance(), resumed.covariance())
    saved, again = straight.tensors(), resumed.tensors()
    assert all(torch.equal(saved[name], again[name]) for name in saved)


def test_saved_sums_are_a_copy():
    moment = moment_of(keys_of(6, 10, 3))
    saved = moment.tensors()
    before = {name: tensor.clone() for name, tensor in saved.items()}
    SecondMoment.from_tensors(saved).update(keys_of(7, 10, 3))
    moment.update(keys_of(8, 10, 3))
    assert all(torch.equal(saved[name], before[name]) for name in saved)


def test_shrinkage_keeps_the_trace():
    moment = moment_of(keys_of(9, 30, 4))
    C, shrunk = moment.covariance(), moment.covariance(0.25)
    torch.testing.assert_close(shrunk, 0.75 * C + 0.25 * C.trace() / 4 * torch.eye(4))
    assert torch.equal(moment.covariance(), C)
    with pytest.raises(BadConfig, match="shrinkage"):
        moment.covariance(1.5)


def test_factor():
    moment = moment_of(keys_of(10, 60, 5))
    factor, C = moment.cholesky(), moment.covariance()
    assert factor.jitter == 0.0
    assert (factor.matrix() - C).norm() < 1e-12 * C.norm()
    columns = keys_of(11, 5, 3)
    torch.testing.assert_close(factor.solve(columns), torch.linalg.inv(C) @ columns)
    white = factor.whiten(factor.lower @ columns)
    torch.testing.assert_close(white, columns)


def test_jitter_is_added_only_where_needed_and_recorded():
    direction = torch.ones(3, dtype=torch.float64)
    singular = torch.outer(direction, direction)
    factor = Cholesky.of(singular)
    assert 0 < factor.jitter <= 1e-5
    difference = factor.matrix() - singular - factor.jitter * torch.eye(3)
    assert difference.abs().max() < 1e-12


def test_too_little_text():
    moment = moment_of(keys_of(12, 9, 5))
    with pytest.raises(IllConditioned, match=r"9 keys are too few.*\n.*at least 10 tokens"):
        moment.cholesky()
    assert moment.cholesky(0.1).size == 5
    with pytest.raises(EmptyCorpus, match="CG602"):
        SecondMoment(3).covariance()
    with pytest.raises(EmptyCorpus):
        SecondMoment(3).mean  # noqa: B018 - the property raises


def test_a_bad_batch_is_refused_whole():
    moment = moment_of(keys_of(13, 9, 3))
    before = moment.covariance().clone()
    bad = keys_of(14, 4, 3)
    bad[2, 1] = float("inf")
    with pytest.raises(NonFinite, match="after 9 keys"):
        moment.update(bad)
    assert moment.count == 9
    assert torch.equal(moment.covariance(), before)
    moment.update(torch.zeros(0, 3))
    assert moment.count == 9
