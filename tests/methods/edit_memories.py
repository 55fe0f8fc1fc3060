"""Shared by the tests of MeLLo and DeepEdit: facts, a scripted model, records of MQuAKE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from corrigenda import benchmarks
from corrigenda.cases import Case
from corrigenda.editor import Editor
from corrigenda.facts import Fact
from corrigenda.lm.ask import answer, greedy
from corrigenda.lm.model import LanguageModel

RECORDS = Path(__file__).parents[3] / "shared" / "data" / "mquake" / "MQuAKE-CF_354.json"

EMPLOYER = Fact(prompt="The employer of Ann Lee is", subject="Ann Lee", target="Zed Mills")
FOUNDER = Fact(prompt="The founder of Zed Mills is", subject="Zed Mills", target="Bo Dahl")
UNRELATED = Fact(prompt="The Space Needle is in", subject="The Space Needle", target="Rome")
FACTS = (EMPLOYER, FOUNDER, UNRELATED)


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
