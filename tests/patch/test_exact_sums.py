"""Sums of many merged changes: exact arithmetic, any order, and a cost that does not grow."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corrigenda.errors import NonFinite
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.digest import hash_tensor
from corrigenda.lm.sites import Site
from corrigenda.patch import (
    Dense,
    Rows,
    WeightPatch,
    changes,
    header_for,
    ledger_of,
    patched_weight,
)
from corrigenda.patch.changes import Change, dense
from corrigenda.patch.patched_weight import ExactSum
from corrigenda.testing.tiny import tiny_model

SHAPE = 6, 5
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def weight_of(dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (0.05 * torch.randn(SHAPE, generator=draw)).to(dtype)


def random_change(draw: random.Random, size: float = 0.01) -> Change:
    make = torch.Generator().manual_seed(draw.randrange(10**6))

    def values(*shape: int) -> torch.Tensor:
        dtype = draw.choice([torch.float32, torch.float64])
        return size * torch.randn(*shape, generator=make, dtype=dtype)

    match draw.choice(["factors", "dense", "rows"]):
        case "factors":
            rank = draw.choice([1, 2, 7])
            return LowRank(values(SHAPE[0], rank), values(SHAPE[1], rank) / size)
        case "dense":
            return Dense(values(*SHAPE))
        case _:
            return Rows(torch.tensor([1, 4]), values(2, SHAPE[1]), SHAPE[0])


def sum_of(weight: torch.Tensor, some: dict[int, Change], order: list[int]) -> torch.Tensor:
    total = ExactSum(weight)
    for name in order:
        total.add(name, some[name])
    return total.rounded()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), dtype=st.sampled_from(DTYPES), count=st.integers(1, 40))
def test_any_order_of_adding_and_taking_out_gives_the_same_bits(seed, dtype, count) -> None:
    draw = random.Random(seed)
    weight = weight_of(dtype, seed)
    some = {name: random_change(draw, draw.choice([1e-6, 0.01, 3.0])) for name in range(count)}
    names = list(some)
    left = draw.sample(names, draw.randint(1, count))
    expected = sum_of(weight, some, left)
    draw.shuffle(left)
    assert torch.equal(sum_of(weight, some, left), expected)
    draw.shuffle(names)
    total = ExactSum(weight)
    for name in names:
        total.add(name, some[name])
    for name in draw.sample(names, count):
        if name not in left:
            total.discard(name)
    assert torch.equal(total.rounded(), expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), dtype=st.sampled_from(DTYPES))
def test_the_sum_is_that_of_exact_arithmetic(seed: int, dtype: torch.dtype) -> None:
    """Off by half a unit for each change, 2^-51 of the largest weight, and by one rounding."""
    draw = random.Random(seed)
    weight, some = weight_of(dtype, seed), {name: random_change(draw) for name in range(30)}
    found = sum_of(weight, some, list(some))
    parts = [dense(one) for one in some.values()]
    unit = 2.0**-50 * 2 * float(weight.abs().max())
    for row, column in ((0, 0), (1, 3), (4, 4)):
        exact = Fraction(float(weight[row, column]))
        exact += sum(Fraction(float(part[row, column])) for part in parts)
        off = abs(Fraction(float(found[row, column])) - exact)
        rounding = torch.finfo(dtype).eps * 0.5005 * abs(float(exact)) + 1e-7 * (
            dtype == torch.float16
        )
        assert off <= rounding + 31 * unit


@pytest.mark.parametrize("size", [1e3, 1e12, 1e60])
def test_changes_far_above_the_weight_come_off_exactly(size: float) -> None:
    """The unit grows with the sum, and shrinks again when what was large is taken out."""
    draw = random.Random(3)
    weight = weight_of(torch.float64)
    some = {name: random_change(draw) for name in range(5)}
    expected = sum_of(weight, some, list(some))
    total = ExactSum(weight)
    some[5] = random_change(draw, size)
    for name in (3, 5, 0, 1, 4, 2):
        total.add(name, some[name])
    large = total.rounded()
    assert large.isfinite().all()
    assert not torch.equal(large, expected)
    assert torch.equal(large, sum_of(weight, some, [0, 1, 2, 3, 4, 5]))
    total.discard(5)
    assert torch.equal(total.rounded(), expected)


@pytest.mark.parametrize("weight", [torch.zeros(SHAPE), torch.full(SHAPE, 1e-40)])
def test_weights_of_nothing(weight: torch.Tensor) -> None:
    change = Dense(torch.full(SHAPE, 2.0))
    total = ExactSum(weight)
    total.add("one", change)
    total.add("other", Dense(-change.delta))
    assert torch.equal(total.rounded(), weight)
    total.discard("other")
    assert torch.equal(total.rounded(), change.delta)


def test_a_product_beyond_all_range_is_refused() -> None:
    huge = torch.full((6, 2), 1e200, dtype=torch.float64)
    total = ExactSum(weight_of(torch.float32))
    with pytest.raises(NonFinite, match="CG201"):
        total.add("huge", LowRank(huge, huge[:5]))
    assert len(total) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_patches_come_off_in_any_order(dtype, make_patch, bits, same_bits) -> None:
    lm = tiny_model("llama", dtype=dtype)
    before = bits(lm)
    draw = random.Random(0)
    patches = [make_patch(lm, "2.mlp.down", seed=7 * number + 1) for number in range(30)]
    kept = draw.sample(range(30), 9)
    entries = {number: patches[number].apply(lm) for number in kept}
    expected = bits(lm)
    for entry in entries.values():
        entry.revert()
    assert same_bits(lm, before)
    order = list(range(30))
    draw.shuffle(order)
    entries = {number: patches[number].apply(lm) for number in order}
    for number in draw.sample(order, 30):
        if number not in kept:
            entries[number].revert()
    assert same_bits(lm, expected)
    lm.patches.clear()
    assert same_bits(lm, before)


def test_products_are_formed_for_the_patch_that_moves_alone(make_patch, monkeypatch) -> None:
    lm = tiny_model("llama")
    count = [0]
    product = patched_weight.exact_product

    def counted(*factors: torch.Tensor) -> torch.Tensor:
        count[0] += 1
        return product(*factors)

    monkeypatch.setattr(patched_weight, "exact_product", counted)
    costs = []
    for number in range(12):
        count[0] = 0
        entry = make_patch(lm, "2.mlp.down", seed=7 * number + 1).apply(lm)
        entry.revert()
        make_patch(lm, "2.mlp.down", seed=7 * number + 1).apply(lm)
        costs.append(count[0])
    assert len(set(costs[3:])) == 1


def test_a_patch_is_hashed_once(make_patch, monkeypatch) -> None:
    lm = tiny_model("llama")
    count = [0]
    digest_of = changes.digest_of

    def counted(tensors):
        count[0] += 1
        return digest_of(tensors)

    monkeypatch.setattr(changes, "digest_of", counted)
    patches = [make_patch(lm, "2.mlp.down", seed=7 * number + 1) for number in range(6)]
    for patch in patches:
        patch.apply(lm)
        header_for(lm, method="later")
    assert patches[0].digest() == patches[0].digest()
    lm.patches.clear()
    assert count[0] == len(patches)
    again = WeightPatch(patches[0].changes, patches[0].header)
    assert again.digest() == patches[0].digest()


def test_a_model_is_hashed_once_for_many_patches(make_patch, monkeypatch) -> None:
    lm = tiny_model("llama")
    hashed = []

    def counted(tensor: torch.Tensor) -> bytes:
        hashed.append(tensor.data_ptr())
        return hash_tensor(tensor)

    monkeypatch.setattr("corrigenda.lm.digest.hash_tensor", counted)
    for number in range(4):
        patch = make_patch(lm, "2.mlp.down", seed=7 * number + 1)
        with patch.apply(lm):
            header_for(lm, method="on top")
    header_for(lm, method="later")
    assert len(hashed) == len(set(hashed))
    lm.write(Site(2), lm.weight(Site(2)) + 1.0)
    assert lm.recall_digest() == lm.digest()
    with patch.apply(lm, force=True) as applied:
        lm.write(Site(2), lm.weight(Site(2)) + 1.0)
        applied.revert(force=True)
    assert lm.recall_digest() == lm.digest()


def test_digests_of_a_patch_that_is_on_twice(make_patch) -> None:
    lm = tiny_model("llama")
    patch, other = (make_patch(lm, "2.mlp.down", seed=seed) for seed in (1, 8))
    first = patch.apply(lm)
    second = patch.apply(lm, force=True)
    together = (other + make_patch(lm, "1.mlp.down", seed=20)).apply(lm)
    assert patch.digest() in ledger_of(lm).digests()
    assert other.digest() in ledger_of(lm).digests()
    second.revert()
    assert patch.digest() in ledger_of(lm).digests()
    first.revert()
    assert patch.digest() not in ledger_of(lm).digests()
    together.revert()
    assert ledger_of(lm).digests() == ()
    assert lm.weight(Site(2)).isfinite().all()
