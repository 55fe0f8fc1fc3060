"""Where and how a model is placed: split by accelerate, offloaded, quantised, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import corrigenda as cg
from corrigenda.catalogue import METHODS
from corrigenda.errors import BadConfig, NotAModel
from corrigenda.lm.loading import Placement, require_double
from corrigenda.lm.model import LanguageModel
from corrigenda.testing.tiny import tiny_model

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny")
    lm = tiny_model("llama")
    lm.model.save_pretrained(place)
    lm.tokenizer.save_pretrained(place)
    return place


@pytest.mark.parametrize("option", [{"device_map": "auto"}, {"device": "auto"}])
def test_device_map(folder: Path, option: dict[str, Any]) -> None:
    pytest.importorskip("accelerate")
    lm = cg.load(str(folder), **option)
    assert cg.answer(lm, PROMPT) == cg.answer(cg.load(str(folder)), PROMPT)


def test_hooks_of_accelerate_leave_results_as_they_are(folder: Path) -> None:
    """A map by module places a hook of accelerate on each, as on several GPUs."""
    accelerate = pytest.importorskip("accelerate")
    plain, hooked = cg.load(str(folder)), cg.load(str(folder))
    for block in hooked.blocks:
        accelerate.hooks.add_hook_to_module(
            block, accelerate.hooks.AlignDevicesHook("cpu", io_same_device=True)
        )
    fact = cg.Fact(prompt=PROMPT, subject="France", target="Rome")
    first, second = (
        cg.edit(lm, fact, "rome", layer=1, steps=2, use_moment=False) for lm in (plain, hooked)
    )
    for site, change in first.changes.items():
        assert torch.equal(change.to_dense(), second.changes[site].to_dense())


def test_offloaded_blocks_are_refused(folder: Path) -> None:
    pytest.importorskip("accelerate")
    placed = {"model.layers.1": "disk", "": "cpu"}
    with pytest.raises(NotAModel, match="disk"):
        cg.load(str(folder), device_map=placed)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_blocks_that_accelerate_moves_in_and_out_are_named(
    folder: Path, tmp_path: Path, where: str
) -> None:
    """Its hooks leave such weights on the device meta between passes."""
    accelerate = pytest.importorskip("accelerate")
    lm = cg.load(str(folder))
    prompt = lm.tokenizer(PROMPT, return_tensors="pt")
    plain = lm.model(**prompt).logits
    for layer in (1, 3):
        block = lm.blocks[layer]
        if where == "cpu":
            accelerate.cpu_offload(block, execution_device="cpu")
        else:
            accelerate.disk_offload(block, tmp_path / str(layer), execution_device="cpu")
    assert torch.equal(lm.model(**prompt).logits, plain)
    with pytest.raises(NotAModel, match=r"(?s)CG307.*model\.layers\.1, model\.layers\.3\n"):
        cg.wrap(lm.model, lm.tokenizer)
    with pytest.raises(NotAModel, match=r"CG307"):
        cg.edit(lm, cg.Fact(prompt=PROMPT, subject="France", target="Rome"), "ft-m")


def test_attention(folder: Path) -> None:
    lm = cg.load(str(folder), attn_implementation="eager")
    assert lm.model.config._attn_implementation == "eager"


def test_device_and_device_map(folder: Path) -> None:
    placing: Placement = {"device_map": "auto"}
    with pytest.raises(BadConfig, match="device_map"):
        LanguageModel.load(str(folder), device="cuda", **placing)


def test_unknown_types_of_devices_are_refused(folder: Path) -> None:
    with pytest.raises(BadConfig, match="xpu"):
        LanguageModel.load(str(folder), device="xpu")


def test_edits_are_refused_where_there_is_no_float64() -> None:
    require_double(torch.device("cuda"), "mine")
    with pytest.raises(BadConfig, match="float64"):
        require_double(torch.device("mps"), "mine")


@pytest.mark.parametrize("method", METHODS.names())
def test_no_method_begins_on_a_device_without_float64(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_model("llama")
    editor = cg.build_editor(lm, method)
    monkeypatch.setattr(LanguageModel, "device", property(lambda _: torch.device("mps")))
    monkeypatch.setattr(lm.model, "forward", None)
    fact = cg.Fact(prompt=PROMPT, subject="France", target="Rome")
    for begin in (lambda: editor.fit(lm), lambda: editor.edit(lm, [fact])):
        with pytest.raises(BadConfig, match=r"CG502.*float64"):
            begin()


@pytest.mark.parametrize("method", ["rome", "lora", "grace", "wise", "ft", "knowledge-neurons"])
def test_random_state_of_the_user_stays(method: str) -> None:
    if method == "lora":
        pytest.importorskip("peft")
    lm = tiny_model("llama")
    fact = cg.Fact(prompt=PROMPT, subject="France", target="Rome")
    before = torch.get_rng_state()
    cg.edit(lm, fact, method, corpus=["Rome is old. Paris is not."] * 60)
    assert torch.equal(torch.get_rng_state(), before)
