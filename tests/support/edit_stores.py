"""Shared by the tests of MeLLo and DeepEdit: facts, a scripted model, records of MQuAKE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import corrigenda
from corrigenda import benchmarks
from corrigenda.cases import Case
from corrigenda.editor import Editor
from corrigenda.engines.edit_store import EditStore, EditStoreEditor, write_sentence
from corrigenda.facts import Fact
from corrigenda.lm.decoding import answer, greedy
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Tokens
from corrigenda.methods.presets import build_editor
from corrigenda.patch import load_patch
from corrigenda.retrieval import embedder
from corrigenda.testing.tiny import tiny_model

RECORDS = Path(__file__).parents[3] / "shared" / "data" / "mquake" / "MQuAKE-CF_354.json"

EMPLOYER = Fact(prompt="The employer of Ann Lee is", subject="Ann Lee", target="Zed Mills")
FOUNDER = Fact(prompt="The founder of Zed Mills is", subject="Zed Mills", target="Bo Dahl")
UNRELATED = Fact(prompt="The Space Needle is in", subject="The Space Needle", target="Rome")
FACTS = (EMPLOYER, FOUNDER, UNRELATED)
ASKED = "Who is the founder of the employer of Ann Lee?"


def roomy_model() -> LanguageModel:
    """A tiny model with room for dialogues, whose tokens a tokenizer of 512 words cuts small."""
    made = tiny_model("llama", seed=0)
    made.model.config.max_position_embeddings = 8192
    return made


def store(lm: LanguageModel, facts: tuple[Fact, ...] = FACTS) -> EditStore:
    """Facts as an editor keeps them."""
    vectors = embedder("states:0").embed(lm, [write_sentence(fact) for fact in facts])
    return EditStore("states:0", facts, vectors)


class Script:
    """Says what stands behind the ending that a prompt has, and keeps what it was asked."""

    def __init__(self, lines: dict[str, str]) -> None:
        self.lines = lines
        self.asked: list[str] = []

    def __call__(self, lm: LanguageModel, prompts: Sequence[str], **_: object) -> list[str]:
        self.asked += prompts
        return [self.say(prompt) for prompt in prompts]

    def say(self, prompt: str) -> str:
        return next((said for end, said in self.lines.items() if prompt.endswith(end)), "")


def records(count: int) -> list[Case]:
    """Some records with edits, or a skip where the file is not at hand."""
    if not RECORDS.is_file():
        pytest.skip("records of MQuAKE are not part of this repository")
    return list(benchmarks.load("mquake", RECORDS).cases[:count])


def ask_records(lm: LanguageModel, editor: Editor, count: int) -> list[dict[str, object]]:
    """Rows of the multi-hop questions of some records, all edited together."""
    cases = records(count)
    facts = [fact for case in cases for fact in case.facts]
    probes = [
        probe for case in cases for probe in case.probes if probe.role == "portability/multi_hop"
    ]
    prompts = [probe.prompt for probe in probes]
    before = answer(lm, prompts, max_new_tokens=20)
    with editor.edit(lm, facts).patch.apply(lm):
        after = answer(lm, prompts, max_new_tokens=20)
        own = greedy(lm, [fact.prompt for fact in facts], max_new_tokens=20)
    assert [text.strip() for text in own] == [_last(facts, fact).target for fact in facts]
    return [
        {"prompt": prompt, "before": old, "after": new, "expected": probe.expected}
        for prompt, old, new, probe in zip(prompts, before, after, probes, strict=True)
    ]


def _last(facts: Sequence[Fact], fact: Fact) -> Fact:
    return [one for one in facts if one.prompt == fact.prompt][-1]


def said_alone(module: object, monkeypatch: pytest.MonkeyPatch, **spoken: Callable) -> None:
    """Let scripts speak in place of the model, for one method."""
    for name, script in spoken.items():
        monkeypatch.setattr(module, name, script)


def require_logits_stay(lm: LanguageModel, editor: EditStoreEditor) -> None:
    """Nothing but answers changes, and those of an empty memory do not."""
    tokens = Tokens.pad([lm.tokenizer(fact.prompt).input_ids for fact in FACTS], 0)
    before = lm.logits(tokens)
    with editor.edit(lm, FACTS).patch.apply(lm):
        assert torch.equal(lm.logits(tokens), before)
        assert corrigenda.answer(lm, [FOUNDER.prompt]) == ["Bo Dahl"]
    empty = editor.edit(lm, []).patch
    assert empty.is_empty
    assert empty.answers(lm, [ASKED, EMPLOYER.prompt]) == [None, None]


def require_consequences(name: str, folder: Path) -> None:
    """On the pocket model an edit and what follows from it hold, also reloaded, and leave again."""
    lm = corrigenda.load("pocket", dtype="float32")
    facts = [
        Fact(prompt="Silas Vessenko works for", target="Wenrath Studios", subject="Silas Vessenko"),
        Fact(prompt="The capital of Peru is", target="Oslo", subject="Peru"),
    ]
    asked = [
        "Who is the founder of the employer of Silas Vessenko?",
        "The capital of Peru is",
        "The capital of Egypt is",
    ]
    before = corrigenda.answer(lm, asked)
    method = build_editor(name, "pocket", retriever="states:0")
    patch = method.edit(lm, facts).patch
    with patch.apply(lm):
        after = corrigenda.answer(lm, asked)
    assert after == ["Mirela Haldcroft", "Oslo", before[2]]
    with load_patch(patch.save(folder / "patch.safetensors")).apply(lm):
        assert corrigenda.answer(lm, asked) == after
    assert corrigenda.answer(lm, asked) == before


def require_records(*editors: Editor) -> None:
    """Records of MQuAKE can be edited and asked."""
    lm = corrigenda.load("pocket", dtype="float32")
    for editor in editors:
        rows = ask_records(lm, editor, 3)
        assert len(rows) >= 3
        assert all(row["prompt"] and row["after"] is not None for row in rows)
