import pytest
import torch

from corrigenda.errors import UnknownSite
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.naming import gather
from corrigenda.lm.sites import Site, Tokens, state, value
from corrigenda.lm.tail import Tail
from corrigenda.testing.tiny import FAMILIES, tiny_model

LENGTHS = (14, 11, 17, 12)
STARTS = torch.tensor([3, 0, 12, 4])
AT = torch.tensor([[3, 13], [0, 10], [12, 15], [4, 4]])
LAST = state(3)

# A mixture of experts has no one down projection.
CASES = [
    (family, role)
    for family in FAMILIES
    for role in ("state", "value")
    if (family, role) != ("qwen3_moe", "value")
]

# Families that compute their attention in float32 whatever their dtype.
IN_FLOAT32 = {"gptj": 1e-6, "gemma2": 1e-6}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 500, (n,), generator=generator).tolist() for n in lengths]
    return Tokens.pad(rows, 0)


def whole(lm, tokens, layer, role, delta, starts, at):
    """The full forward pass with the delta added by a swap."""
    point = state(layer) if role == "state" else value(Site(layer))
    rows = torch.arange(len(starts))
    kept = {}
    with (
        lm.swap({point: lambda x: x.index_put((rows, starts), delta, accumulate=True)}),
        lm.swap({LAST: lambda x: kept.setdefault("x", x)}),
    ):
        lm.logits(tokens)
    return gather(kept["x"], at)


def difference(found, expected):
    return float(((found - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("family", "role"), CASES)
def test_equals_the_whole_model_in_values_and_gradients(family, role, dtype):
    lm = tiny_model(family, dtype=dtype)
    tokens = batch()
    tail = Tail.build(lm, tokens, 1, STARTS, role=role)
    delta = draw(4, lm.d_model, seed=1).to(dtype).requires_grad_()
    found = tail.run(delta, AT)
    expected = whole(lm, tokens, 1, role, delta, STARTS, AT)
    weights = draw(*found.shape, seed=2).to(dtype)
    (back,) = torch.autograd.grad((found * weights).sum(), delta)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), delta)
    tolerance = TOLERANCE[dtype]
    if dtype == torch.float64:
        tolerance = IN_FLOAT32.get(family, tolerance)
    assert difference(found, expected) < tolerance
    assert difference(back, wanted) < tolerance
    untouched = gather(lm.tap(tokens, [LAST])[LAST], AT)
    assert difference(found, untouched) > 1e-2


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma2", "mistral", "opt"])
def test_rows_may_leave_and_come_back(family):
    lm = tiny_model(family, dtype=torch.float64)
    tokens = batch()
    tail = Tail.build(lm, tokens, 0, STARTS, role="value")
    delta = draw(4, lm.d_model, seed=1)
    everything = tail.run(delta, AT)
    for chosen in ([2, 0], [3], [0, 1, 2, 3], [1, 3]):
        rows = torch.tensor(chosen)
        part = tail.run(delta[rows], AT[rows], rows=rows)
        again = tail.run(delta[rows], AT[rows].clone(), rows=rows.clone())
        assert difference(part, everything[rows]) < 1e-6
        assert torch.equal(part, again)


def test_other_positions_of_the_same_rows():
    lm = tiny_model("llama", dtype=torch.float64)
    tail = Tail.build(lm, batch(), 1, STARTS, role="state")
    delta = draw(4, lm.d_model, seed=1)
    first, last = tail.run(delta, AT[:, :1]), tail.run(delta, AT[:, 1:])
    assert difference(torch.cat([first, last], dim=1), tail.run(delta, AT)) < 1e-12


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize(("family", "role"), CASES)
def test_a_delta_at_every_position_equals_the_whole_model(family, role, first):
    lm = tiny_model(family, dtype=torch.float64)
    tokens, starts = batch(), torch.full((4,), first)
    at = torch.tensor([[5, 13], [2, 10], [12, 15], [4, 4]])
    tail = Tail.build(lm, tokens, 1, starts, role=role)
    delta = draw(4, tokens.ids.shape[1] - first, lm.d_model, seed=1).requires_grad_()
    found = tail.run(delta, at)
    point = state(1) if role == "state" else value(Site(1))
    padded = torch.nn.functional.pad(delta, (0, 0, first, 0))
    kept = {}
    with (
        lm.swap({point: lambda x: x + padded[:, : x.shape[1]]}),
        lm.swap({LAST: lambda x: kept.setdefault("x", x)}),
    ):
        lm.logits(tokens)
    expected = gather(kept["x"], at)
    weights = draw(*found.shape, seed=2)
    (back,) = torch.autograd.grad((found * weights).sum(), delta)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), delta)
    assert difference(found, expected) < IN_FLOAT32.get(family, 1e-12)
    assert difference(back, wanted) < IN_FLOAT32.get(family, 1e-12)


@pytest.mark.parametrize("layer", [0, 3])
def test_first_and_last_block(layer):
    lm = tiny_model("gemma3")
    tokens = batch()
    for role in ("state", "value"):
        tail = Tail.build(lm, tokens, layer, STARTS, role=role)
        delta = draw(4, lm.d_model, seed=1).float()
        expected = whole(lm, tokens, layer, role, delta, STARTS, AT)
        assert difference(tail.run(delta, AT), expected) < 1e-5


def test_entry_is_what_the_delta_is_added_to():
    lm = tiny_model("olmo2")
    tokens = batch()
    for role, point in (("state", state(2)), ("value", value(Site(2)))):
        tail = Tail.build(lm, tokens, 2, STARTS, role=role)
        assert torch.equal(tail.entry, lm.tap(tokens, [point], positions=STARTS)[point])
        assert not tail.entry.requires_grad


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_rows_without_padding(family):
    lm = tiny_model(family)
    tokens = batch((12, 12))
    starts, at = torch.tensor([2, 11]), torch.tensor([[11], [11]])
    delta = draw(2, lm.d_model, seed=1).float()
    found = Tail.build(lm, tokens, 1, starts, role="value").run(delta, at)
    assert difference(found, whole(lm, tokens, 1, "value", delta, starts, at)) < 1e-5


def test_a_full_context():
    lm = tiny_model("gpt2")
    tokens = batch((lm.context_length,))
    starts, at = torch.tensor([100]), torch.tensor([[lm.context_length - 1]])
    delta = draw(1, lm.d_model, seed=1).float()
    found = Tail.build(lm, tokens, 1, starts, role="state").run(delta, at)
    assert difference(found, whole(lm, tokens, 1, "state", delta, starts, at)) < 1e-5


def test_left_padding():
    lm = tiny_model("mistral")
    right = batch((9, 12))
    rows = [ids[:n].tolist() for ids, n in zip(right.ids, (9, 12), strict=True)]
    left = Tokens.pad(rows, 0, side="left")
    starts, at = torch.tensor([3, 3]), torch.tensor([[8], [11]])
    shift = torch.tensor([3, 0])
    delta = draw(2, lm.d_model, seed=1).float()
    expected = Tail.build(lm, right, 1, starts, role="value").run(delta, at)
    found = Tail.build(lm, left, 1, starts + shift, role="value").run(delta, at + shift[:, None])
    assert difference(found, expected) < 1e-5


def test_eager_attention_gives_the_same():
    lm = tiny_model("llama")
    tokens, delta = batch(), draw(4, lm.d_model, seed=1).float()
    expected = Tail.build(lm, tokens, 1, STARTS, role="state").run(delta, AT)
    lm.model.set_attn_implementation("eager")
    found = Tail.build(lm, tokens, 1, STARTS, role="state").run(delta, AT)
    assert difference(found, expected) < 1e-5


def test_half_precision_takes_a_finer_delta():
    lm = tiny_model("llama", dtype=torch.bfloat16)
    tail = Tail.build(lm, batch(), 1, STARTS, role="value")
    delta = draw(4, lm.d_model, seed=1).float().requires_grad_()
    found = tail.run(delta, AT)
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    assert delta.grad is not None
    assert delta.grad.dtype == torch.float32


def test_the_model_is_left_alone():
    lm = tiny_model("gptj")
    tokens = batch()
    before, digest = lm.logits(tokens), lm.digest()
    tail = Tail.build(lm, tokens, 1, STARTS, role="value")
    tail.run(draw(4, lm.d_model, seed=1).float(), AT)
    assert torch.equal(lm.logits(tokens), before)
    assert lm.digest() == digest
    assert not any(module._forward_pre_hooks for module in lm.model.modules())


class _Counter:
    """Counts what a block is called with."""

    def __init__(self, lm: LanguageModel) -> None:
        self.shapes = [[] for _ in lm.blocks]
        for block, shapes in zip(lm.blocks, self.shapes, strict=True):
            block.register_forward_pre_hook(self._counting(shapes), with_kwargs=True)

    @staticmethod
    def _counting(shapes):
        def count(_, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            shapes.append(tuple(hidden.shape[:2]))

        return count


def test_only_later_blocks_and_needed_positions_run():
    lm = tiny_model("llama")
    tail = Tail.build(lm, batch(), 1, STARTS, role="state")
    counter = _Counter(lm)
    tail.run(torch.zeros(4, lm.d_model), AT)
    # The second row starts at 0 and is read at 10: eleven positions.
    assert counter.shapes == [[], [], [(4, 11)], [(4, 11)]]
    rows = torch.tensor([2])
    tail.run(torch.zeros(1, lm.d_model), AT[rows], rows=rows)
    assert counter.shapes[2][1:] == [(1, 4)]


def test_constants_are_gathered_once():
    lm = tiny_model("llama")
    tail = Tail.build(lm, batch(), 1, STARTS, role="state")
    rows = torch.tensor([0, 2])
    tail.run(torch.zeros(2, lm.d_model), AT[rows], rows=rows)
    first = tail._live
    tail.run(torch.ones(2, lm.d_model), AT[rows], rows=rows.clone())
    assert tail._live is first
    masks = {id(step.mask) for step in first.steps}
    assert len(masks) == 1, "blocks share one mask"


def test_experts_have_no_common_down_projection():
    with pytest.raises(UnknownSite, match=r"CG303.*experts 0 to 3"):
        Tail.build(tiny_model("qwen3_moe"), batch(), 1, STARTS, role="value")


@pytest.mark.parametrize("start", [-1, 11, 16])
def test_starts_outside_a_row_are_refused(start):
    starts = STARTS.clone()
    starts[1] = start
    with pytest.raises(ValueError, match="each start"):
        Tail.build(tiny_model("gpt2"), batch(), 1, starts, role="state")


@pytest.mark.parametrize(
    "at", [[[2], [0], [12], [4]], [[3], [14], [12], [4]], [[3], [0], [12], [12]]]
)
def test_positions_outside_the_tail_are_refused(at):
    tail = Tail.build(tiny_model("gpt2"), batch(), 1, STARTS, role="state")
    with pytest.raises(ValueError, match="positions must lie"):
        tail.run(torch.zeros(4, 32), torch.tensor(at))
