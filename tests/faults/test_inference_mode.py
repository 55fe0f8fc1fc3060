"""Methods with memories and modules learn, are applied and asked inside `torch.inference_mode`."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from corrigenda.errors import LostPrompts
from corrigenda.lm.sites import Tokens
from corrigenda.methods.presets import build_editor
from corrigenda.statistics import Corpus
from corrigenda.testing.tiny import tiny_model
from tests.faults.test_nothing_asked import OPTIONS, PAIRS, TEXTS


@pytest.mark.parametrize("method", OPTIONS)
def test_an_edit_is_the_same_and_training_on_top_of_it_works(method, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path))
    lm = tiny_model("llama", seed=0)
    editor = build_editor(method, **OPTIONS[method])
    material = PAIRS if editor.requires.training_set else Corpus(TEXTS, length=16)
    tokens = Tokens.pad([lm.tokenizer(fact.prompt).input_ids for fact in PAIRS], 0)
    expected = editor.edit(lm, PAIRS[:1], editor.fit(lm, material)).patch
    with torch.inference_mode():
        state = editor.fit(lm, material)
        patch = editor.edit(lm, PAIRS[:1], state).patch
        applied = patch.apply(lm, mode="runtime")
        logits = lm.logits(tokens)
    assert patch == expected
    second = build_editor("lora", layers=[0], steps=1, rank=2)
    with suppress(LostPrompts):
        second.edit(lm, PAIRS[1:2])
    assert torch.equal(lm.logits(tokens), logits)
    applied.revert()
