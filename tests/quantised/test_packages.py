"""Models quantised by other packages, where these are installed, on a CPU too."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

import corrigenda as cg
from corrigenda.errors import BadConfig, MissingExtra, QuantisedWeights
from corrigenda.lm.quantisation import QUANTISATIONS, quantisation_config

PACKAGES = {
    "4bit": "bitsandbytes",
    "8bit": "bitsandbytes",
    "torchao-int8": "torchao",
    "quanto-int8": "optimum",
    "quanto-int4": "optimum",
}
# What peft has no adapters for.
WITHOUT_ADAPTERS: set[tuple[str, str]] = set()
FACT = cg.Fact(
    prompt="The capital of France is", subject="France", target="Rome", neighbours=("Spain is",)
)
OPTIONS: dict[str, dict[str, Any]] = {
    "rome": {"steps": 3, "use_moment": False},
    "ft-m": {"epochs": 2},
    "grace": {"steps": 3},
    "knowledge-neurons": {"steps": 2, "refine": False},
    "ice": {"embedder": "states"},
    "lora": {"steps": 2},
}


def test_every_name_is_tried() -> None:
    assert set(PACKAGES) == set(QUANTISATIONS)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(BadConfig, match=r'(?s)"4bits".*4bit'):
        cg.load("pocket", quantization_config="4bits")


@pytest.mark.parametrize("name", QUANTISATIONS)
def test_without_the_package_its_name_is_told(name: str) -> None:
    if importlib.util.find_spec(PACKAGES[name]) is not None:
        pytest.skip("the package is installed")
    with pytest.raises(MissingExtra, match=r"CG504.*needs the package"):
        quantisation_config(name)


@pytest.mark.parametrize("name", QUANTISATIONS)
def test_edits(name: str) -> None:
    """One method of each way to change a model: solved, trained, stored, attributed, asked."""
    if importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip("the package is not installed")
    plain, lm = cg.load("pocket"), cg.load("pocket", quantization_config=name)
    assert lm.is_quantised
    for part in lm.family.slots:
        site = cg.Site(1, part)
        assert lm.shape(site) == plain.shape(site)
        error = (lm.values(site) - plain.values(site)).norm() / plain.values(site).norm()
        assert error < (0.15 if "4" in name else 0.02)
        with pytest.raises(QuantisedWeights):
            lm.weight(site)
    before = cg.ask(lm, FACT.prompt)
    for method, options in OPTIONS.items():
        editor = cg.build_editor(lm, method, **options)
        if (method, name) in WITHOUT_ADAPTERS:
            with pytest.raises(QuantisedWeights, match="peft"):
                editor.edit(lm, [FACT])
            continue
        made = editor.edit(lm, [FACT])
        with made.patch.apply(lm) as applied:
            assert applied.mode == "runtime"
            if method in ("rome", "ft-m", "lora"):
                assert cg.ask(lm, FACT.prompt).top != before.top
        assert cg.ask(lm, FACT.prompt) == before
