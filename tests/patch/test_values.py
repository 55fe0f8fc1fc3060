"""Patches as values: equality, composition, scaling."""

import dataclasses

import pytest
import torch
from pydantic import ValidationError

from corrigenda.errors import NonFinite, WrongBase
from corrigenda.facts import Fact
from corrigenda.linalg import LowRank
from corrigenda.lm.sites import Site
from corrigenda.patch import Dense, Header, Rows, WeightPatch
from corrigenda.patch.changes import add, dense, norm


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def low(seed=0, rank=2):
    return LowRank(numbers(5, rank, seed=seed), numbers(4, rank, seed=seed + 100))


def full(seed=0):
    return Dense(numbers(5, 4, seed=seed))


def rows(*index, seed=0):
    return Rows(torch.tensor(index), numbers(len(index), 4, seed=seed), 5)


def patch(changes, **header):
    return WeightPatch(changes, Header(**{"method": "m", "base_digest": "b"} | header))


@pytest.mark.parametrize("second", [low(1), full(1), rows(3, 0, seed=1)])
@pytest.mark.parametrize("first", [low(), full(), rows(4, 0)])
def test_sums_of_changes(first, second):
    total = add(first, second)
    torch.testing.assert_close(dense(total), dense(first) + dense(second))
    assert norm(total) == pytest.approx(float(dense(total).norm()))
    if type(first) is type(second):
        assert type(total) is type(first)
    with pytest.raises(ValueError, match="cannot add"):
        add(first, Dense(torch.ones(4, 5)))


def test_sums_of_rows_stay_rows():
    total = add(rows(4, 0), rows(0, 2))
    assert total.index.tolist() == [0, 2, 4]


def test_composition():
    a = patch({Site(1): low(1), Site(2): full(2)}, method="rome", facts=({"prompt": "a"},))
    b = patch({Site(2): low(3), Site(0): rows(1)}, method="memit", facts=({"prompt": "b"},))
    c = patch({Site(1): low(4)}, method="rome")
    both = a + b
    assert both.sites == (Site(0), Site(1), Site(2))
    torch.testing.assert_close(
        dense(both.changes[Site(2)]), dense(a.changes[Site(2)]) + dense(b.changes[Site(2)])
    )
    assert both.header.method == "rome + memit"
    assert [part.digest for part in both.header.parts] == [a.digest(), b.digest()]
    assert [fact["prompt"] for fact in both.header.facts] == ["a", "b"]
    assert (a + b) + c == a + (b + c)
    empty = patch({})
    assert a + empty == a
    assert empty + a == a


def test_composition_needs_one_base():
    with pytest.raises(WrongBase, match="different models"):
        patch({Site(1): low()}) + patch({Site(1): low(1)}, base_digest="other")


def test_equality_is_by_content():
    a = patch({Site(1): low()})
    assert a == patch({Site(1): low()})
    assert a != patch({Site(2): low()})
    assert a != patch({Site(1): low(1)})
    assert a != patch({Site(1): low()}, notes={"x": 1})
    assert a != patch({Site(1): LowRank(low().left.float(), low().right.float())})
    assert a != "a"
    with pytest.raises(TypeError):
        hash(a)


def test_a_patch_belongs_to_nobody_else():
    left = torch.ones(5, 1)
    a = patch({Site(1): LowRank(left, torch.ones(4, 1))})
    left.zero_()
    assert a.changes[Site(1)].left.sum() == 5
    with pytest.raises(TypeError):
        a.changes[Site(2)] = low()
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.changes = {}


def test_sites_are_ordered_and_empty_changes_dropped():
    experts = {Site(1, "mlp.down", 3): low(), Site(1): low(), Site(0): LowRank.zeros(5, 4)}
    a = patch(experts)
    assert [str(site) for site in a.sites] == ["1.mlp.down", "1.mlp.down#3"]
    assert patch({Site(0): LowRank.zeros(5, 4)}).is_empty


def test_sizes():
    a = patch({Site(1): low(rank=2), Site(2): rows(1, 3), Site(3): full()})
    assert a.num_parameters() == 2 * (5 + 4) + 2 * 4 + 20
    assert a.norms()[Site(3)] == pytest.approx(float(full().delta.norm()))


def test_scaled():
    a = patch({Site(1): low(), Site(2): rows(1, 3), Site(3): full()})
    twice = a.scale(4.0).scale(0.5)
    for site in a.sites:
        torch.testing.assert_close(dense(twice.changes[site]), 2 * dense(a.changes[site]))
    assert twice.header.notes["scale"] == 2.0
    assert a.header.notes == {}


def test_non_finite_changes_are_refused():
    with pytest.raises(NonFinite, match=r"CG201.*\n.*1\.mlp\.down, method m"):
        patch({Site(1): Dense(torch.full((5, 4), float("nan")))})


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: rows(1, 1), "distinct"),
        (lambda: rows(5), "below 5"),
    ],
)
def test_malformed_changes(build, match):
    with pytest.raises(ValueError, match=match):
        build()


@pytest.mark.parametrize(
    "build",
    [
        lambda: Rows(torch.tensor([1]), torch.ones(2, 4), 5),
        lambda: Dense(torch.ones(3)),
        lambda: LowRank(torch.ones(2, 1), torch.ones(3, 2)),
    ],
)
def test_shapes_that_do_not_fit(build):
    """TypeError where shapes are checked at run time by their annotations."""
    with pytest.raises((ValueError, TypeError)):
        build()


def test_header_is_plain_json_at_once():
    fact = Fact(prompt="The capital of X is", target="Y", subject="X", aliases=("Z",))
    header = Header(
        method="m",
        config={"layers": (4, 5), "rate": 0.5},
        facts=[fact],
        notes={"losses": [1.0, float("inf")], "tensor": torch.tensor([1.0, 2.0])},
    )
    assert header.config == {"layers": [4, 5], "rate": 0.5}
    assert header.facts[0]["aliases"] == ["Z"]
    assert header.notes["tensor"] == [1.0, 2.0]
    assert "Infinity" in header.to_json()
    with pytest.raises(ValidationError):
        header.method = "other"
    with pytest.raises(ValidationError):
        Header(method="m", author="x")
