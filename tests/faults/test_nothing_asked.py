"""No prompt at all is an empty answer, under every kind of active patch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from corrigenda.editor import Editor
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer, greedy, next_token_top, score
from corrigenda.methods.presets import build_editor
from corrigenda.patch import AnswerPatch, PromptPatch
from corrigenda.patch.module import ModulePatch
from corrigenda.statistics import Corpus
from corrigenda.testing.tiny import tiny_model
from tests.support.in_context import EDITS

OPTIONS: dict[str, dict[str, object]] = {
    "ice": {"embedder": "states"},
    "rag": {"embedder": "states"},
    "ike": {"embedder": "states", "num_demonstrations": 2, "reserve": 8},
    "serac": {"embedder": "states", "steps": 2},
    "mello": {"retriever": "states", "new_tokens": 2, "rounds": 2},
    "deepedit": {"retriever": "states", "new_tokens": 2, "most_states": 2},
    "grace": {"layer": 1, "steps": 2},
    "melo": {"index": "1.mlp.up", "targets": ["2.mlp.up"], "steps": 2},
    "wise": {"layer": 0, "steps": 2, "irrelevant_texts": 4, "contexts": {"prefixes": [""]}},
    "t-patcher": {"steps": 2, "memory_size": 20, "validation_size": 10},
    "calinet": {"layers": [1], "steps": 2, "slots": 2},
    "truthx": {"hidden": 8, "code": 4, "steps": 2, "batch_size": 2, "top_k": 1},
}
TEXTS = ["Arles is a town on a river, known for its bridge.", "Bergen is a town by the sea."]
PAIRS = tuple(
    Fact(
        prompt=fact.prompt,
        subject=fact.subject,
        target=f"{fact.target}, I think so.",
        before=f"{word}, I think so.",
        paraphrases=(f"Is it true that {fact.prompt}",),
        neighbours=("The sea is",),
    )
    for fact, word in zip(EDITS, ("Danish", "Seattle", "Japan"), strict=False)
)


def patch_of(editor: Editor, facts: Sequence[Fact]) -> ModulePatch:
    lm = tiny_model("llama", seed=0)
    material = PAIRS if editor.requires.training_set else Corpus(TEXTS, length=16)
    patch = editor.edit(lm, facts, editor.fit(lm, material)).patch
    assert isinstance(patch, ModulePatch)
    return patch


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path))


@pytest.mark.parametrize("method", OPTIONS)
def test_nothing_is_asked_and_nothing_is_answered(method: str) -> None:
    lm = tiny_model("llama", seed=0)
    for facts in (PAIRS[:2], PAIRS[:1], ()):
        patch = patch_of(build_editor(method, **OPTIONS[method]), facts)
        with patch.apply(lm):
            assert answer(lm, []) == []
            assert greedy(lm, [], max_new_tokens=2) == []
            assert score(lm, []) == []
            assert next_token_top(lm, []) == []
            if isinstance(patch, PromptPatch):
                assert patch.rewrite(lm, []) == []
            if isinstance(patch, AnswerPatch):
                assert patch.answers(lm, []) == []
