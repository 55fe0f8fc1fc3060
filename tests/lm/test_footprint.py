"""Work and sizes are counted from shapes, and sizes follow the free memory."""

from __future__ import annotations

import pytest

from corrigenda.lm.footprint import (
    Room,
    cache_bytes,
    graph_tokens,
    head_rows,
    pass_flops,
    plan_room,
    room_of,
)
from corrigenda.testing.tiny import tiny_model

MOST = {"cpu": 512, "cuda": 16384}


def test_passes_count_two_operations_for_each_weight_and_token():
    lm = tiny_model("llama")
    weights = sum(one.numel() for one in lm.blocks[0].parameters() if one.dim() == 2)
    assert pass_flops(lm, 10, 0, 0) == 20 * weights
    assert pass_flops(lm, 10) == 4 * pass_flops(lm, 10, 1, 1)


def test_only_the_experts_that_run_are_counted():
    lm = tiny_model("qwen3_moe")
    block = dict(lm.blocks[0].named_parameters())
    experts = sum(one.numel() for name, one in block.items() if name.startswith("mlp.experts."))
    others = sum(one.numel() for one in block.values() if one.dim() >= 2) - experts
    assert pass_flops(lm, 1, 0, 0) == 2 * (others + experts * 2 / 4)


def test_keys_and_values_are_as_wide_as_their_own_heads():
    # Two heads of 8 for keys and values, of 4 for queries; float32.
    assert cache_bytes(tiny_model("llama"), 10, 3) == 2 * 3 * 10 * (2 * 8) * 4
    assert cache_bytes(tiny_model("gpt2"), 10, 3) == 2 * 3 * 10 * 32 * 4


@pytest.mark.parametrize("size", [graph_tokens, lambda lm, _, most: head_rows(lm, most)])
def test_sizes_follow_the_free_memory_in_powers_of_two(size):
    lm = tiny_model("llama")
    assert room_of(lm) == Room("cpu", None)
    assert size(lm, 3, MOST) == 512
    found = []
    for free in (0, 3 * 10**7, 3 * 10**7 + 1000, 10**8, 10**12):
        plan_room(lm, Room("cuda", free))
        found.append(size(lm, 3, MOST))
    assert found[0] == 64
    assert found[0] < found[1] == found[2] < found[3] < found[4] == 16384
    assert all(one & (one - 1) == 0 for one in found)
