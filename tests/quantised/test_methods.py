"""Every method on a model whose blocks hold 8-bit integers: it works, or is refused at once."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import corrigenda as cg
from corrigenda.catalogue import METHODS
from corrigenda.errors import CorrigendaError, QuantisedWeights
from corrigenda.lm.model import LanguageModel
from corrigenda.patch import WeightPatch
from corrigenda.testing.quantised import Int8Linear, PackedLinear, quantise
from tests.devices.cases import CASES, facts

KINDS = {"int8": Int8Linear, "packed": PackedLinear}
REFUSED = {("lora", "packed"), ("adalora", "packed")}
OF_PACKED = ("memit", "knowledge-neurons", "ft", "grace", "mend", "lora", "adalora")
ROWS = [(name, "int8") for name in CASES] + [(name, "packed") for name in OF_PACKED]


@functools.cache
def pocket() -> LanguageModel:
    return cg.load("pocket")


def bits_of(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: one.clone() for name, one in lm.model.state_dict().items()}


def require_same(lm: LanguageModel, before: dict[str, torch.Tensor]) -> None:
    after = lm.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], one) for name, one in before.items())


@pytest.fixture(autouse=True)
def random_states() -> Iterator[None]:
    """The generators of the user stay as they are, whatever a method draws."""

    def read() -> list[object]:
        _, numbers, *rest = np.random.get_state()
        return [random.getstate(), torch.get_rng_state().tolist(), list(numbers), rest]

    before = read()
    yield
    assert read() == before


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_method(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit, edit, apply, save, load, edit again, compose, undo."""
    case, lm = CASES[name], quantise(pocket(), KINDS[kind])
    assert lm.is_quantised
    before = bits_of(lm)
    chosen = facts(case.num_facts + 1)
    last = chosen.pop()
    editor = cg.build_editor(lm, name, **case.options)
    state = editor.fit(lm, case.material() if case.material else None)
    if (name, kind) in REFUSED:
        with pytest.raises(QuantisedWeights, match=r"CG304.*peft"):
            editor.edit(lm, chosen, state)
        require_same(lm, before)
        return
    made = editor.edit(lm, chosen, state)
    require_same(lm, before)
    file = made.patch.save(tmp_path / "patch.safetensors")
    loaded = cg.load_patch(file)
    assert loaded == made.patch
    prompts = [one.prompt for one in chosen]
    plain = cg.ask(lm, prompts)
    with loaded.apply(lm) as applied:
        assert applied.mode == "runtime"
        patched = cg.ask(lm, prompts)
        if editor.supports.sequential:
            second = editor.edit(lm, [last], made.state)
            with second.patch.apply(lm):
                cg.answer(lm, last.prompt, max_new_tokens=2)
    require_same(lm, before)
    assert cg.ask(lm, prompts) == plain
    if isinstance(loaded, WeightPatch) and not loaded.is_empty:
        assert [one.top for one in patched] != [one.top for one in plain]
        with pytest.raises(QuantisedWeights, match=r"CG304"):
            loaded.apply(lm, mode="merge")
    if editor.supports.sequential:
        together = loaded + second.patch
        with together.apply(lm):
            cg.answer(lm, last.prompt, max_new_tokens=2)
        require_same(lm, before)


def test_every_method_is_asked() -> None:
    assert {name for name, kind in ROWS if kind == "int8"} == set(METHODS.names())


def test_what_is_read_is_what_is_computed_with() -> None:
    for kind in KINDS.values():
        lm = quantise(pocket(), kind)
        for part in ("mlp.down", "attn.q", "mlp.gate"):
            site = cg.Site(1, part)
            module = lm.module(site)
            assert isinstance(module, Int8Linear)
            torch.testing.assert_close(lm.values(site), module.numbers())
            assert lm.shape(site) == pocket().shape(site)
            with pytest.raises(QuantisedWeights):
                lm.weight(site)


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_nothing_is_merged_into_a_quantised_base(form: str, tmp_path: Path) -> None:
    lm = quantise(pocket())
    patch = cg.edit(lm, facts(1), "ft-m", epochs=2)
    with pytest.raises(QuantisedWeights, match=r"(?s)CG304.*adapter"):
        cg.export(patch, lm, tmp_path / "out", to=form)
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_exported_from_a_quantised_base(tmp_path: Path) -> None:
    lm = quantise(pocket())
    patch = cg.edit(lm, facts(1), "rome", steps=3)
    cg.export(patch, lm, tmp_path / "out", to="peft")
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_edits_are_assessed_and_transformed() -> None:
    lm = quantise(pocket())
    (fact,) = facts(1)
    result = cg.correct(lm, fact, "rome")
    assert result.changes[0].relative_norm > 0
    assert isinstance(result.patch, WeightPatch)
    for step in ("rect", "prune", "clip-norm:relative=0.01", "anchor-norm", "compress"):
        cg.transform(result.patch, lm, step)


def test_a_module_that_does_not_tell_its_sizes_is_refused() -> None:
    lm = quantise(pocket(), PackedLinear)
    module = lm.module(cg.Site(2))
    del module.in_features, module.out_features
    with pytest.raises(CorrigendaError, match=r"CG304.*does not tell the shape"):
        lm.shape(cg.Site(2))
