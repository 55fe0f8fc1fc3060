import pytest
import torch

from corrigenda.errors import UnknownSite
from corrigenda.lm.sites import PARTS, Point, Site, Tokens, key, state, value, write


@pytest.mark.parametrize(
    "site", [Site(0), Site(12, "attn.q"), Site(3, "mlp.up", 7), Site(3, "mlp.down", 0)]
)
def test_parse_reads_what_str_writes(site):
    assert Site.parse(str(site)) == site


def test_text_of_sites():
    assert str(Site(5)) == "5.mlp.down"
    assert str(Site(5, "mlp.down", 3)) == "5.mlp.down#3"


@pytest.mark.parametrize(
    "text", ["", "5", "mlp.down", "-1.mlp.down", "5.mlp.left", "5.mlp.down#", "5.mlp.down#x"]
)
def test_parse_refuses_what_is_no_site(text):
    with pytest.raises(UnknownSite, match=r"CG303.*\n.*mlp\.down"):
        Site.parse(text)


def test_sites_sort_by_layer_then_part():
    assert sorted([Site(10), Site(2, "mlp.up"), Site(2)]) == [Site(2), Site(2, "mlp.up"), Site(10)]


def test_points_differ_by_role():
    site = Site(1)
    points = {key(site), value(site), write(site), state(1)}
    assert len(points) == 4
    assert state(1) == Point(Site(1), "state")
    assert {Site(0, part).part for part in PARTS} == set(PARTS)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding(side):
    tokens = Tokens.pad([[5, 6, 7], [8]], 99, side=side)
    right = side == "right"
    assert tokens.ids.tolist() == [[5, 6, 7], [8, 99, 99] if right else [99, 99, 8]]
    assert tokens.mask.tolist() == [[1, 1, 1], [1, 0, 0] if right else [0, 0, 1]]
    assert tokens.lengths.tolist() == [3, 1]
    assert tokens.position_ids[0].tolist() == [0, 1, 2]
    assert tokens.position_ids[1].tolist() == [0, 0, 0]


def test_position_ids_count_behind_left_padding():
    tokens = Tokens.pad([[1, 2, 3, 4], [1, 2]], 0, side="left")
    assert tokens.position_ids[1].tolist() == [0, 0, 0, 1]


def test_boolean_masks_count_too():
    tokens = Tokens(torch.zeros(1, 3, dtype=torch.long), torch.tensor([[False, True, True]]))
    assert tokens.position_ids.tolist() == [[0, 0, 1]]
    assert tokens.lengths.tolist() == [2]
