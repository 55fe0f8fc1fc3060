"""Small random models and patches for them."""

import pytest
import torch

from corrigenda.linalg import LowRank
from corrigenda.lm.sites import Site
from corrigenda.patch import Dense, Rows, WeightPatch, header_for
from corrigenda.testing.tiny import tiny_model


def factors(shape, rank, seed, scale=0.05):
    """Random factors of a change that is visible beside the weights."""
    generator = torch.Generator().manual_seed(seed)
    d_out, d_in = shape
    left = torch.randn(d_out, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(d_in, rank, generator=generator, dtype=torch.float64)
    return LowRank(left * scale, right)


def change_of(shape, kind, seed):
    """A random change of each form."""
    d_out, d_in = shape
    generator = torch.Generator().manual_seed(seed)
    if kind == "dense":
        return Dense(0.05 * torch.randn(d_out, d_in, generator=generator))
    if kind == "rows":
        index = torch.randperm(d_out, generator=generator)[:3]
        return Rows(index, 0.05 * torch.randn(3, d_in, generator=generator), d_out)
    return factors(shape, 2, seed)


@pytest.fixture
def make_patch():
    """Build a patch for a model: `make_patch(lm, sites, kind="lowrank", seed=0)`."""

    def make(lm, sites, kind="lowrank", seed=0, method="test"):
        sites = [Site.parse(site) for site in sites.split()]
        changes = {
            site: change_of(tuple(lm.weight(site).shape), kind, seed + number)
            for number, site in enumerate(sites)
        }
        return WeightPatch(changes, header_for(lm, method=method, config={"seed": seed}))

    return make


@pytest.fixture
def bits():
    """Every parameter and buffer of a model, as bytes."""

    def read(lm):
        return {
            name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).clone()
            for name, tensor in lm.model.state_dict().items()
        }

    return read


@pytest.fixture
def same_bits(bits):
    """Whether a model holds exactly the bits read before."""

    def same(lm, before):
        now = bits(lm)
        return now.keys() == before.keys() and all(
            torch.equal(now[name], before[name]) for name in now
        )

    return same


@pytest.fixture
def logits():
    """Logits of a fixed ragged batch."""

    def read(lm):
        rows = [[5, 9, 17, 30, 2, 44], [7, 8, 9]]
        ids = torch.tensor([rows[0], rows[1] + [0] * 3])
        mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
        with torch.no_grad():
            out = lm.model(input_ids=ids, attention_mask=mask).logits
        return out[mask.bool()]

    return read


@pytest.fixture
def llama():
    """A random model with Llama's layout, float32."""
    return tiny_model("llama")


@pytest.fixture
def gpt2():
    """A random model with GPT-2's transposed layout, float32."""
    return tiny_model("gpt2")
