"""Running mean and variance: any split and order of the samples gives the same."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.linalg.running import RunningStatistics


def drawn(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 + 2 * torch.randn(count, 4, generator=generator, dtype=torch.float64)


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 1),
    st.randoms(use_true_random=False),
)
def test_any_split_in_any_order_gives_the_statistics_of_all(sizes, shuffler) -> None:
    samples = drawn(sum(sizes), seed=len(sizes))
    parts = list(samples.split(sizes))
    shuffler.shuffle(parts)
    running = RunningStatistics.empty(4)
    for part in parts:
        running = running.with_samples(part)
    assert running.count == len(samples)
    torch.testing.assert_close(running.mean, samples.mean(0))
    torch.testing.assert_close(running.std, samples.std(0))


def test_one_sample_has_no_spread_and_none_changes_nothing() -> None:
    one = RunningStatistics.empty(4).with_samples(drawn(1, 0))
    assert one.std.tolist() == [0.0] * 4
    assert one.with_samples(drawn(1, 0)[:0]) is one
    assert RunningStatistics.empty(4).std.tolist() == [0.0] * 4


def test_earlier_statistics_stay_as_they_are() -> None:
    first = RunningStatistics.empty(4).with_samples(drawn(5, 1))
    mean, squares = first.mean.clone(), first.squares.clone()
    first.with_samples(drawn(7, 2))
    assert torch.equal(first.mean, mean)
    assert torch.equal(first.squares, squares)


def test_tensors_bring_it_back_to_the_bit() -> None:
    one = RunningStatistics.empty(4).with_samples(drawn(5, 1))
    again = RunningStatistics.from_tensors(one.tensors())
    assert again.count == one.count
    assert torch.equal(again.mean, one.mean)
    assert torch.equal(again.squares, one.squares)


def test_the_other_formula_counts_one_variance_more_a_batch() -> None:
    samples = drawn(10, 3)
    ours = RunningStatistics.empty(4).with_samples(samples)
    theirs = RunningStatistics.empty(4).with_samples(samples, unbiased_squares=True)
    torch.testing.assert_close(theirs.squares - ours.squares, samples.var(0))
    single = RunningStatistics.empty(4).with_samples(samples[:1], unbiased_squares=True)
    assert single.squares.tolist() == [0.0] * 4
