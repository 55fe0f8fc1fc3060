"""What a run will take of memory is estimated from shapes, and said where it matters."""

from __future__ import annotations

import pytest

from corrigenda.cli import memory
from corrigenda.methods.presets import build_editor
from corrigenda.testing.tiny import tiny_model

METHODS = ("rome", "memit", "pmet", "emmet", "alphaedit", "ft", "ft-l", "ft-m", "locft-bf", "lora")


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.mark.parametrize("method", METHODS)
def test_more_facts_need_no_less_and_something_is_always_needed(lm, method):
    editor = build_editor(method)
    one, many = editor.memory(lm, 1), editor.memory(lm, 1000)
    assert 0 < one.edit <= many.edit
    assert (one.fit > 0) == editor.requires.moments
    assert one.fit == many.fit


def test_moments_count_at_every_layer(lm):
    width = lm.d_inner
    assert build_editor("memit", layers=[0, 1]).memory(lm, 1).fit == 2 * 8 * width**2
    assert build_editor("memit", layers=[0, 1, 2]).memory(lm, 1).fit == 3 * 8 * width**2


def test_no_layer_is_probed_for_an_estimate(lm, monkeypatch):
    editor = build_editor("rome")
    assert editor.configured_layers() is None
    monkeypatch.setattr(type(lm), "_forward", None)
    assert editor.memory(lm, 10).edit > 0


def test_what_does_not_fit_is_said_and_small_things_are_not(lm, monkeypatch, capsys):
    editor = build_editor("memit", layers=[0, 1])
    needed = memory.announce(lm, editor, 10)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(memory, "_free_bytes", lambda _: needed - 1)
    assert memory.announce(lm, editor, 10) == needed
    assert "memit needs about" in capsys.readouterr().err
    assert memory.announce(lm, editor, 10, fit_only=True) < needed
    assert capsys.readouterr().err == ""
