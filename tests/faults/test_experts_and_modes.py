"""Mixtures of experts name the methods that work there; edits work in inference mode."""

from __future__ import annotations

import pytest
import torch

from corrigenda.errors import UnknownSite
from corrigenda.methods.presets import build_editor
from corrigenda.methods.registry import METHODS, methods_for_experts
from corrigenda.statistics import Corpus
from corrigenda.testing.tiny import tiny_model
from tests.laws.test_laws import ANSWERS, FACTS, TEXTS, VARIANTS

IN_ATTENTION = {
    "grace": {"part": "attn.out"},
    "melo": {"index": "1.attn.out", "targets": ["2.attn.q"]},
    **{
        name: {"layers": {"attn.out": [1]}}
        for name in ("mend", "malmen", "knowledge-editor", "ultraedit")
    },
}
OWN = (
    *("rome", "memit", "pmet", "emmet", "alphaedit", "ultraedit", "knowledge-neurons", "mend"),
    *("rlsedit", "malmen", "knowledge-editor", "ft", "ft-l", "ft-m", "locft-bf", "lora", "adalora"),
)


def options_of(method: str, experts: bool) -> dict[str, object]:
    return {**VARIANTS[method][0], **(IN_ATTENTION.get(method, {}) if experts else {})}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS.names())
def test_on_experts_a_method_works_or_names_those_that_do(
    method: str, tmp_path, monkeypatch
) -> None:
    if extra := METHODS.card(method).get("extra"):
        pytest.importorskip(str(extra), reason="the method needs an optional package")
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path))
    works = bool(METHODS.card(method).get("experts"))
    lm, editor = tiny_model("qwen3_moe"), build_editor(method, **options_of(method, works))
    material = ANSWERS if method == "truthx" else FACTS
    material = material if editor.requires.training_set else Corpus(TEXTS, length=32)

    def edit() -> object:
        return editor.edit(lm, FACTS[:1], editor.fit(lm, material)).patch

    if works:
        edit()
        return
    with pytest.raises(
        UnknownSite, match="These methods edit mixtures of experts: adalora"
    ) as caught:
        edit()
    assert methods_for_experts() in str(caught.value)
    assert "#7" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", OWN)
def test_an_edit_in_inference_mode_is_the_edit_outside(method: str, tmp_path, monkeypatch) -> None:
    if extra := METHODS.card(method).get("extra"):
        pytest.importorskip(str(extra), reason="the method needs an optional package")
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "outside"))
    lm, editor = tiny_model("llama"), build_editor(method, **options_of(method, experts=False))
    material = FACTS if editor.requires.training_set else Corpus(TEXTS, length=32)
    outside = editor.edit(lm, FACTS[:1], editor.fit(lm, material)).patch
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "inside"))
    with torch.inference_mode():
        inside = editor.edit(lm, FACTS[:1], editor.fit(lm, material)).patch
        assert torch.is_inference_mode_enabled()
    assert inside == outside
