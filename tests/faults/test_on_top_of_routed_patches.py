"""An edit below an active patch that is routed on the prompt works, or is refused with a code."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import pytest
import torch

from corrigenda.editor import Editor
from corrigenda.errors import LostPrompts
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Tokens
from corrigenda.methods.presets import build_editor
from corrigenda.state import State
from corrigenda.statistics import Corpus
from corrigenda.testing.tiny import tiny_model
from tests.faults.test_nothing_asked import PAIRS, TEXTS

ROUTED: dict[str, dict[str, object]] = {
    "grace": {"layer": 2, "steps": 2, "radius": 0.3},
    "melo": {"index": "2.mlp.up", "targets": ["3.mlp.up"], "steps": 2},
    "wise": {"layer": 2, "steps": 2, "irrelevant_texts": 4, "contexts": {"prefixes": [""]}},
    "truthx": {"hidden": 8, "code": 4, "steps": 2, "batch_size": 2, "top_k": 8},
}
BELOW: dict[str, dict[str, object]] = {
    "rome": {"layer": 1, "steps": 2, "contexts": {"prefixes": [""], "groups": [0]}},
    "ft-l": {"layer": 1, "epochs": 2},
    "lora": {"layers": [1], "steps": 2, "rank": 2},
    "calinet": {"layers": [1], "slots": 2, "steps": 2},
    "grace": {"layer": 1, "steps": 2},
    "melo": {"index": "0.mlp.up", "targets": ["1.mlp.up"], "steps": 2},
    "wise": {"layer": 1, "steps": 2, "irrelevant_texts": 4, "contexts": {"prefixes": [""]}},
}


def prepare(method: str, options: Mapping[str, object]) -> tuple[LanguageModel, Editor, State]:
    lm = tiny_model("llama", seed=0)
    editor = build_editor(method, **options)
    text = Corpus(TEXTS * 9, length=16)
    return lm, editor, editor.fit(lm, PAIRS if editor.requires.training_set else text)


@pytest.mark.parametrize("below", BELOW)
@pytest.mark.parametrize("routed", ROUTED)
def test_edits_below_work_or_say_what_to_do(routed, below, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path))
    lm, first, state = prepare(routed, ROUTED[routed])
    _, second, own = prepare(below, BELOW[below])
    with first.edit(lm, PAIRS[:1], state).patch.apply(lm):
        digest = lm.digest()
        logits = lm.logits(prompt_tokens(lm))
        with suppress(LostPrompts):
            second.edit(lm, PAIRS[1:2], own)
        assert lm.digest() == digest
        assert torch.equal(lm.logits(prompt_tokens(lm)), logits)


def prompt_tokens(lm: LanguageModel) -> Tokens:
    return Tokens.pad([lm.tokenizer(fact.prompt).input_ids for fact in PAIRS], 0)
