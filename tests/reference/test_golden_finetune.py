"""Parity of fine-tuning with stored outputs of a public implementation, where they are at hand.

Named deviation: the reference selects parameters by a piece of their name and so trains the bias of
a GPT-2 projection along with its weight. Patches change weights only, so the methods leave biases
alone; parity is shown by the engine with the bias trained along, and the last test says how far the
methods are from it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from corrigenda.facts import Fact
from corrigenda.lm.sites import Site
from corrigenda.methods.finetune.editor import FtL, FtM
from corrigenda.methods.finetune.training import FineTuned, fine_tune
from corrigenda.patch.changes import dense
from tests.support.golden import (
    TOLERANCE,
    facts,
    golden,
    model,
    needed,
    relative,
    slow,
    tensors,
)

pytestmark = needed

KINDS = {"ft-l": FtL, "ft-m": FtM}


def wanted(tag: str) -> list[Fact]:
    chosen = facts(16)
    return chosen if tag == "b16" else [chosen[int(tag[1:])]]


def record(method: str, tag: str) -> dict:
    return golden(method)["batch"] if tag == "b16" else golden(method)["single"][int(tag[1:])]


def editor(method: str, **options: object) -> FtL | FtM:
    hparams = golden(method)["hparams"]
    found = {
        "layer": hparams["layers"][0],
        "epochs": hparams["num_steps"],
        "learning_rate": hparams["lr"],
        "batch_size": hparams["batch_size"],
        "box": hparams["norm_constraint"] or None,
    }
    return KINDS[method](**{**found, **options})


def trained(method: str, tag: str, **options: object) -> FineTuned:
    """What the engine makes with the reference's settings, the bias included."""
    chosen = editor(method, **options)
    (site,) = chosen.sites(model())
    chosen_facts = wanted(tag)
    settings = chosen.training._replace(bias=True)
    names = [fact.label for fact in chosen_facts]
    return fine_tune(model(), site, chosen.examples(model(), chosen_facts), settings, names)


def trace(found: FineTuned) -> list[float]:
    """Losses in the order of the reference: one a mini-batch, which is one a fact."""
    return [losses[epoch] for epoch in range(len(found.averages)) for losses in found.losses]


def stored(method: str, tag: str) -> dict[str, Tensor]:
    name = f"{tag}/transformer.h.2.mlp.c_proj"
    found = tensors(method)
    return {
        "proj": found[f"{name}.weight/proj"],
        "row0_16": found[f"{name}.weight/row0_16"],
        "bias": (found[f"{name}.bias/U"] @ found[f"{name}.bias/V"]).flatten(),
    }


def ours(delta: Tensor) -> dict[str, Tensor]:
    """The same parts of our change, in the layout of GPT-2."""
    change = delta.double().T
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(change.shape[1], 8, generator=generator, dtype=torch.float64)
    return {"proj": change @ mix, "row0_16": change[:16]}


@pytest.mark.parametrize("tag", ["s0", "s1", *(slow(f"s{i}") for i in range(2, 8)), slow("b16")])
@pytest.mark.parametrize("method", KINDS)
def test_change_and_losses(method: str, tag: str) -> None:
    found = trained(method, tag)
    expected = stored(method, tag)
    for name, part in ours(found.delta).items():
        assert relative(part, expected[name]) <= TOLERANCE, name
    assert found.bias is not None
    assert relative(found.bias, expected["bias"]) <= TOLERANCE
    assert trace(found) == pytest.approx(record(method, tag)["batch_losses"], rel=TOLERANCE)


@pytest.mark.parametrize("method", KINDS)
def test_losses_of_the_first_epochs_of_a_batch(method: str) -> None:
    mine = trace(trained(method, "b16", epochs=3))
    assert len(mine) == 48
    assert mine == pytest.approx(record(method, "b16")["batch_losses"][:48], rel=TOLERANCE)


@pytest.mark.parametrize("method", KINDS)
def test_without_the_bias_the_change_is_nearly_the_same(method: str) -> None:
    patch = editor(method).edit(model(), wanted("s0")).patch
    change = dense(patch.changes[Site(2)])
    assert relative(ours(change)["row0_16"], stored(method, "s0")["row0_16"]) <= 0.01
