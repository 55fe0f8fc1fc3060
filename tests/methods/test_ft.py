"""FT: the box, decay, what is reported, and what becomes of a change in a patch."""

from __future__ import annotations

import pytest
import torch

from corrigenda.errors import BadConfig, PromptTooLong, UnknownSite
from corrigenda.facts import Fact
from corrigenda.lm.sites import Site
from corrigenda.methods.finetune.editor import Ft
from corrigenda.patch import WeightPatch
from corrigenda.patch.changes import Dense, dense
from tests.support.locating import FACTS, model

LAYER = 2


def ft(**options: object) -> Ft:
    return Ft(**{"layer": LAYER, "epochs": 4, "learning_rate": 1e-3, **options})


def change(editor: Ft, family: str = "llama") -> torch.Tensor:
    patch = editor.edit(model(family), FACTS).patch
    assert isinstance(patch, WeightPatch)
    assert patch.sites == (Site(LAYER),)
    return dense(patch.changes[Site(LAYER)])


@pytest.mark.parametrize("box", [1e-4, 2e-3])
@pytest.mark.parametrize("objective", ["last-token", "teacher-forced"])
def test_no_entry_leaves_the_box(objective: str, box: float) -> None:
    boxed = change(ft(objective=objective, box=box))
    assert float(boxed.abs().max()) <= box * (1 + 1e-6)
    assert float(change(ft(objective=objective)).abs().max()) > box


def test_a_box_of_no_size_leaves_nothing() -> None:
    edit = ft(box=0).edit(model("llama"), FACTS)
    assert edit.patch.is_empty
    assert set(edit.patch.header.notes["status"]) == {"clamped"}


@pytest.mark.parametrize("box", ["wide", -1.0])
def test_a_box_that_is_no_size_is_refused(box: object) -> None:
    with pytest.raises(BadConfig, match=r"CG502.*box"):
        ft(box=box)


def test_the_change_grows_by_the_learning_rate_at_most() -> None:
    editor = ft(batch_size=len(FACTS))
    assert float(change(editor).abs().max()) <= editor.epochs * editor.learning_rate * 1.5


def test_decay_pulls_the_edited_weight_not_the_change() -> None:
    lm = model("llama")
    decayed = change(ft(weight_decay=1e3, epochs=1))
    pulled = decayed * lm.weight(Site(LAYER)).double()
    assert float((pulled < 0).double().mean()) > 0.99


def test_what_is_reported() -> None:
    lm = model("gpt2")
    notes = ft(box=1e-3, batch_size=2).edit(lm, FACTS).patch.header.notes
    assert notes["trained"] == ["transformer.h.2.mlp.c_proj.weight"]
    assert notes["objective"] == "teacher-forced"
    assert notes["constraint"] == {"box": 1e-3, "weight_decay": 0.0}
    assert notes["layers"] == [LAYER]
    assert len(notes["status"]) == len(notes["final_losses"]) == len(notes["losses"]) == len(FACTS)
    assert all(len(losses) == len(notes["epoch_losses"]) == 4 for losses in notes["losses"])
    assert notes["steps"] == 8
    assert notes["stop"] == "epochs"
    assert 0 < notes["at_box"] < 1
    averages = [sum(losses) / len(FACTS) for losses in zip(*notes["losses"], strict=True)]
    assert averages == pytest.approx(notes["epoch_losses"], rel=1e-4)


def test_without_a_layer_two_thirds_of_the_depth_is_taken_and_said() -> None:
    lm = model("llama")
    editor = Ft(epochs=1)
    assert editor.sites(lm) == (Site(2),)
    notices = editor.edit(lm, FACTS[:1]).patch.header.notes["notices"]
    assert any("block 2 of 4" in notice for notice in notices)
    with pytest.raises(UnknownSite, match="CG303"):
        Ft(layer=4).sites(lm)


def test_a_second_edit_starts_from_the_first() -> None:
    lm, editor = model("llama"), ft(epochs=60, learning_rate=5e-2, stop_loss=2.0)
    first = editor.edit(lm, FACTS).patch
    assert first.header.notes["stop"] == "loss"
    with first.apply(lm):
        again = editor.edit(lm, FACTS)
    assert again.patch.is_empty
    assert again.patch.header.notes["steps"] == 0


def test_subjects_are_not_needed_and_a_full_change_is_dense() -> None:
    patch = ft().edit(model("llama"), [Fact(prompt="The sky is", target="green")]).patch
    assert isinstance(patch.changes[Site(LAYER)], Dense)
    assert patch.changes[Site(LAYER)].delta.dtype == torch.float32


def test_units_that_never_fire_leave_low_rank() -> None:
    """OPT has rectified units: where one never fires on the facts, its column stays zero."""
    lm = model("opt")
    fire = lm.module(Site(LAYER)).register_forward_pre_hook(
        lambda _, args: (torch.cat([args[0][..., :6], 0 * args[0][..., 6:]], dim=-1),)
    )
    try:
        patch = ft().edit(lm, FACTS).patch
    finally:
        fire.remove()
    assert patch.changes[Site(LAYER)].rank == 6
    assert not dense(patch.changes[Site(LAYER)])[:, 6:].any()


def test_a_fact_beyond_the_context_is_refused() -> None:
    lm = model("llama")
    long = Fact(prompt="and so on" * lm.context_length, target="Rome")
    with pytest.raises(PromptTooLong, match="CG105"):
        ft().edit(lm, [FACTS[0], long])


def test_no_facts_give_the_empty_patch() -> None:
    assert ft().edit(model("llama"), []).patch.is_empty
