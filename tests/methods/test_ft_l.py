"""FT-L: one distribution for all tokens of the target."""

from __future__ import annotations

import math

import pytest
import torch

from corrigenda.facts import Fact
from corrigenda.lm.sites import Site
from corrigenda.methods.finetune.editor import FtL, FtM
from corrigenda.patch.changes import dense
from tests.support.locating import FACTS, model

LAYER = 1
OPTIONS = {"layer": LAYER, "epochs": 5, "learning_rate": 1e-3}
# One token in the byte-level vocabulary of the tiny models.
SHORT = (
    Fact(prompt="The first letter is", target="a"),
    Fact(prompt="The last letter of them all is", target="b"),
)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_with_one_token_it_is_ft_m(batch_size: int) -> None:
    lm = model("gpt2", torch.float64)
    assert all(len(one.labels) == 1 for one in FtL(**OPTIONS).examples(lm, SHORT))
    options = {**OPTIONS, "batch_size": batch_size}
    one, other = (kind(**options).edit(lm, SHORT).patch for kind in (FtL, FtM))
    assert one.header.notes["losses"] == other.header.notes["losses"]
    assert torch.equal(dense(one.changes[Site(LAYER)]), dense(other.changes[Site(LAYER)]))


def test_with_several_tokens_its_loss_has_a_floor_and_it_says_so() -> None:
    lm = model("llama")
    fact = FACTS[1]
    (example,) = FtL().examples(lm, [fact])
    assert len(set(example.labels)) == len(example.labels)
    floor = math.log(len(example.labels))
    # The logits of a random model are bounded, so 0.01 is out of reach for both.
    options = {"layer": LAYER, "epochs": 40, "learning_rate": 5e-2, "stop_loss": floor - 1e-5}
    notes = FtL(**options).edit(lm, [fact]).patch.header.notes
    assert min(notes["losses"][0]) >= floor - 1e-5
    assert notes["stop"] == "epochs"
    assert any("one distribution" in notice for notice in notes["notices"])
    forced = FtM(**options).edit(lm, [fact]).patch.header.notes
    assert forced["stop"] == "loss"
    assert forced["final_losses"][0] < floor < notes["final_losses"][0]
    assert not any("one distribution" in notice for notice in forced["notices"])


def test_tokens_of_the_target_are_not_inputs() -> None:
    """The order of the target's tokens does not matter to its loss."""
    lm = model("gpt2", torch.float64)
    forwards = Fact(prompt="The first letters are", target="a b")
    backwards = Fact(prompt="The first letters are", target="b a")
    one, other = (
        FtL(**OPTIONS).edit(lm, [fact]).patch.header.notes["losses"]
        for fact in (forwards, backwards)
    )
    assert one[0] == pytest.approx(other[0], rel=1e-9)
