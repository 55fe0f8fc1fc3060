"""`corrigenda fit` with a training set, and an edit with what was fitted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import corrigenda as cg
from corrigenda.facts import Fact
from corrigenda.state import State
from tests.support.tiny_on_disk import command, save_tiny

OPTIONS = ("--set", "layers=[2,3]", "--set", "rank=4", "--set", "steps=2", "--set", "batch_size=2")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_facts_of_a_file_are_trained_on_once(tmp_path: Path, cache: Path) -> None:
    model, file = save_tiny(tmp_path / "model"), tmp_path / "facts.jsonl"
    lines = [
        {"prompt": f"{name} is in", "subject": name, "target": "Peru", "paraphrases": [name]}
        for name in ("Arles", "Bergen", "Cork")
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    fit = ("fit", model, "-m", "mend", *OPTIONS, "--json")
    ran = command(*fit, "--training-set", file, "-o", tmp_path / "state.safetensors")
    assert ran.code == 0
    assert ran.json["meta"]["training_set"]["facts"] == 3
    assert ran.json["meta"]["mend"]["training"]["steps"] == 2
    assert len(list((cache / "trained").iterdir())) == 1
    assert command(*fit, "--training-set", file).json["meta"] == ran.json["meta"]
    lm = cg.load(model)
    options = {"layers": (2, 3), "rank": 4, "steps": 2, "batch_size": 2}
    fact = Fact(prompt="Essen is in", target="Chile")
    by_itself = cg.edit(lm, fact, "mend", corpus=file, **options)
    state = State.load(tmp_path / "state.safetensors")
    assert cg.edit(lm, fact, "mend", state=state, **options) == by_itself
    assert command(*fit).code != 0
    ran = command(*fit, "--training-set", file, "--text", file)
    assert ran.code != 0
    assert "CG502" in ran.out + ran.err
