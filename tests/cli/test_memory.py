"""What a run will take of memory is estimated from shapes, and said where it matters."""

from __future__ import annotations

import pytest

from corrigenda.cli import memory
from corrigenda.engines.locate.search_size import bucket_tokens
from corrigenda.lm.footprint import Room, plan_room
from corrigenda.methods.presets import build_editor
from corrigenda.statistics.fitting import text_tokens
from corrigenda.testing.tiny import tiny_model

METHODS = (
    *("rome", "memit", "pmet", "emmet", "alphaedit", "rlsedit"),
    *("ft", "ft-l", "ft-m", "locft-bf", "lora"),
)


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
    two, three = (build_editor("memit", layers=list(range(n))).memory(lm, 1).fit for n in (2, 3))
    # A float64 and a float32 sum, and the keys of one more site in each batch of text.
    assert three - two == 12 * width**2 + 4 * width * text_tokens(width)


def test_statistics_of_a_gpu_are_kept_in_the_hosts_memory():
    lm = tiny_model("llama")
    editor = build_editor("memit", layers=[0, 1])
    here = editor.memory(lm, 1)
    plan_room(lm, Room("cuda", None))
    there = editor.memory(lm, 1)
    assert here.fit_on_host == here.edit_on_host == 0
    assert there.fit_on_host >= 2 * 8 * lm.d_inner**2
    assert there.fit < here.fit
    assert there.edit_on_host > 2 * 8 * lm.d_inner**2


def test_batches_of_a_search_follow_the_free_memory():
    lm = tiny_model("llama")
    sizes = []
    for free in (10**7, 4 * 10**7, None):
        plan_room(lm, Room("cuda", free))
        sizes.append(bucket_tokens(lm, 0))
    assert sizes[0] < sizes[1] < sizes[2] == 16384
    assert all(size & (size - 1) == 0 for size in sizes)


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
