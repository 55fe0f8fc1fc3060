"""Tails of all blocks from two passes, against those built one by one."""

from __future__ import annotations

import pytest
import torch

from corrigenda.lm.sites import Tokens
from corrigenda.lm.tail import Tail
from corrigenda.lm.tail_by_layer import tails_by_layer
from corrigenda.testing.tiny import FAMILIES, tiny_model

LENGTHS = (14, 11, 17, 12)
STARTS = torch.tensor([3, 0, 12, 11])
AT = torch.tensor([[3, 13], [0, 10], [12, 15], [11, 11]])


def batch() -> Tokens:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 500, (n,), generator=generator).tolist() for n in LENGTHS]
    return Tokens.pad(rows, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_equals_the_tail_of_its_block(family: str) -> None:
    lm, tokens = tiny_model(family, dtype=torch.float64), batch()
    tails = tails_by_layer(lm, tokens, STARTS)
    assert len(tails) == lm.num_layers
    generator = torch.Generator().manual_seed(1)
    delta = torch.randn(4, lm.d_model, generator=generator, dtype=torch.float64)
    rows = torch.tensor([2, 0, 2])
    for layer, tail in enumerate(tails):
        alone = Tail.build(lm, tokens, layer, STARTS, role="state")
        torch.testing.assert_close(tail.entry, alone.entry)
        for chosen in (None, rows):
            own = (delta, AT) if chosen is None else (delta[chosen], AT[chosen])
            torch.testing.assert_close(
                tail.run(*own, rows=chosen), alone.run(*own, rows=chosen), rtol=1e-6, atol=1e-6
            )
