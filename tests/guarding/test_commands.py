"""The guard in `assess` and `edit`."""

from __future__ import annotations

from pathlib import Path

import corrigenda as cg
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from tests.support.tiny_on_disk import command

PROMPT = ("The capital of France is", "-t", "Rome")


def test_assess_prints_the_verdict(pocket: LanguageModel, tmp_path: Path) -> None:
    fact = Fact(prompt=PROMPT[0], target="Rome", subject="France")
    file = cg.edit(pocket, fact, progress=False).save(tmp_path / "france.safetensors")
    ran = command("assess", file, "pocket", "--guard")
    assert ran.code == 0, ran.err
    assert "guard: " in ran.out
    assert "other relations" in ran.out
    ran = command("assess", file, "pocket", "--guard", "--limit", "norm growth=0.001,0.01")
    assert ran.code == 1
    assert "guard: refused: norm growth" in ran.out


def test_a_refused_edit_is_not_saved(tmp_path: Path) -> None:
    file = tmp_path / "patch.safetensors"
    limit = ("--guard", "--limit", "norm growth=0.001,0.01")
    ran = command("edit", "pocket", *PROMPT, "-o", file, *limit, "--json")
    assert ran.code == 1
    assert not file.exists()
    assert ran.json["guard"]["verdict"] == "refused"
    assert ran.json["guard"]["decided_by"] == "norm growth"
    assert ran.json["file"] is None
    assert "is not saved" in ran.json["undo"]
    ran = command("edit", "pocket", *PROMPT, "-o", file, "--guard", "--json")
    assert ran.code == 0
    assert file.exists()


def test_options_of_the_guard_need_it(tmp_path: Path) -> None:
    ran = command("edit", "pocket", *PROMPT, "--limit", "perplexity=0.1,0.2")
    assert ran.code == 2
    assert "Add --guard" in ran.err
    ran = command("edit", "pocket", *PROMPT, "--guard", "--limit", "perplexty=0.1,0.2")
    assert ran.code == 2
    assert 'Did you mean "perplexity"' in ran.err
