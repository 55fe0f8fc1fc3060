"""The tail entered behind attention and behind the feed-forward block, against whole passes."""

import pytest
import torch

from corrigenda.errors import UnknownSite
from corrigenda.lm.components import ComponentTail
from corrigenda.lm.naming import gather
from corrigenda.lm.sites import Site, Tokens, state, value
from corrigenda.lm.tail import Tail
from corrigenda.testing.tiny import FAMILIES, tiny_model

LENGTHS = (14, 11, 17, 12)
STARTS = torch.tensor([3, 0, 12, 4])
AT = torch.tensor([[3, 13], [0, 10], [12, 15], [4, 4]])
LAST = state(3)
# Families that compute their attention in float32 whatever their dtype.
TOLERANCE = {"gptj": 1e-6, "gemma2": 1e-6}
DENSE = [family for family in FAMILIES if family != "qwen3_moe"]


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 500, (n,), generator=generator).tolist() for n in LENGTHS]
    return Tokens.pad(rows, 0)


def points(layer):
    return value(Site(layer, "attn.out")), value(Site(layer))


def whole(lm, tokens, layer, delta, at):
    """The full forward pass with both halves of the delta added by swaps."""
    rows = torch.arange(len(STARTS))
    kept = {}

    def adder(part):
        return lambda x: x.index_put((rows, STARTS), part.to(x.dtype), accumulate=True)

    halves = delta.chunk(2, dim=1)
    places = {point: adder(half) for point, half in zip(points(layer), halves, strict=True)}
    with lm.swap(places), lm.swap({LAST: lambda x: kept.setdefault("x", x)}):
        lm.logits(tokens)
    return gather(kept["x"], at)


def difference(found, expected):
    return float(((found - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("family", DENSE)
def test_equals_the_whole_model_in_values_and_gradients(family, layer):
    lm, tokens = tiny_model(family, dtype=torch.float64), batch()
    tail = ComponentTail.build(lm, tokens, layer, STARTS)
    delta = draw(4, 2 * lm.d_model, seed=1).requires_grad_()
    found, expected = tail.run(delta, AT), whole(lm, tokens, layer, delta, AT)
    weights = draw(*found.shape, seed=2)
    (back,) = torch.autograd.grad((found * weights).sum(), delta)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), delta)
    tolerance = TOLERANCE.get(family, 1e-11)
    assert difference(found, expected) < tolerance
    assert difference(back, wanted) < tolerance
    untouched = gather(lm.tap(tokens, [LAST])[LAST], AT)
    assert difference(found, untouched) > 1e-2
    assert difference(tail.run(torch.zeros_like(delta), AT), untouched) < tolerance


def test_entry_is_what_the_vectors_are_added_to():
    lm, tokens = tiny_model("olmo2"), batch()
    seen = lm.tap(tokens, points(2), positions=STARTS)
    entry = ComponentTail.build(lm, tokens, 2, STARTS).entry
    assert torch.equal(entry, torch.cat([seen[point] for point in points(2)], dim=1))
    assert not entry.requires_grad


def test_rows_may_leave_and_come_back():
    lm, tokens = tiny_model("llama", dtype=torch.float64), batch()
    tail, delta = ComponentTail.build(lm, tokens, 1, STARTS), draw(4, 2 * lm.d_model, seed=1)
    everything = tail.run(delta, AT)
    for chosen in ([2, 0], [3], [0, 1, 2, 3]):
        rows = torch.tensor(chosen)
        assert difference(tail.run(delta[rows], AT[rows], rows=rows), everything[rows]) < 1e-11


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma2"])
def test_without_the_first_half_it_is_the_tail_behind_the_down_projection(family):
    lm, tokens, vector = tiny_model(family, dtype=torch.float64), batch(), draw(4, 32, seed=1)
    both = ComponentTail.build(lm, tokens, 1, STARTS)
    one = Tail.build(lm, tokens, 1, STARTS, role="value")
    found = both.run(torch.cat([torch.zeros_like(vector), vector], dim=1), AT)
    assert difference(found, one.run(vector, AT)) < TOLERANCE.get(family, 1e-11)


def test_in_parallel_blocks_only_the_sum_of_both_counts():
    tokens, vector = batch(), draw(4, 32, seed=1)
    nothing = torch.zeros_like(vector)
    for family, same in (("gptj", True), ("gpt_neox", True), ("llama", False), ("gpt2", False)):
        lm = tiny_model(family, dtype=torch.float64)
        tail = ComponentTail.build(lm, tokens, 1, STARTS)
        behind_attention = tail.run(torch.cat([vector, nothing], dim=1), AT)
        behind_mlp = tail.run(torch.cat([nothing, vector], dim=1), AT)
        assert (difference(behind_attention, behind_mlp) < 1e-6) is same


def test_half_precision_takes_a_finer_delta_and_leaves_no_hook():
    lm, tokens = tiny_model("llama", dtype=torch.bfloat16), batch()
    before = lm.logits(tokens).clone()
    tail = ComponentTail.build(lm, tokens, 1, STARTS)
    found = tail.run(draw(4, 2 * lm.d_model, seed=1).float(), AT)
    assert found.dtype == torch.bfloat16
    assert torch.equal(lm.logits(tokens), before)


def test_experts_are_refused():
    with pytest.raises(UnknownSite, match="CG303"):
        ComponentTail.build(tiny_model("qwen3_moe"), batch(), 1, STARTS)
