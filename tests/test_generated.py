"""Lists in README and docs are those of the cards, and `docs/generate.py --check` sees a change."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from corrigenda.methods.registry import METHODS

ROOT = Path(__file__).parents[1]
SHORT_FORMS = ("group", "changes", "choose_when", "not_when")
MOST_CHARACTERS = {"group": 13, "changes": 28, "choose_when": 120, "not_when": 140}


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(generate: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the program with these arguments."""
    monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
    return generate.main()


def test_what_is_committed_is_what_would_be_written(generate, monkeypatch, capsys) -> None:
    assert call(generate, monkeypatch, "--check") == 0, capsys.readouterr().err


def test_check_sees_a_line_changed_by_hand(generate, monkeypatch, capsys, tmp_path) -> None:
    page = tmp_path / "index.md"
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    page.write_text(text.replace("- locate: ", "- locating: "), encoding="utf-8")
    monkeypatch.setattr(generate, "PAGES", (page,))
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    assert call(generate, monkeypatch, "--check") == 1
    assert "index.md differs" in capsys.readouterr().err
    assert "- locating: " in page.read_text(encoding="utf-8")


def test_a_method_without_figures_or_recipe_is_named(
    generate, monkeypatch, capsys, tmp_path
) -> None:
    measured = tmp_path / "table.json"
    measured.write_text('{"memit sequential: single": {}}')
    monkeypatch.setattr(generate, "MEASURED", measured)
    monkeypatch.setattr(generate, "RECIPES", tmp_path)
    assert call(generate, monkeypatch, "--check") == 1
    problems = capsys.readouterr().err
    assert "rome: not measured" in problems
    assert "memit: not measured" not in problems
    assert "memit: in no recipe" in problems


@pytest.mark.parametrize("name", METHODS.names())
def test_card_has_short_forms(name: str) -> None:
    matter = METHODS.card(name)
    for key in SHORT_FORMS:
        text = str(matter[key])
        assert 0 < len(text) <= MOST_CHARACTERS[key]
        assert not text.endswith(".")
        assert "|" not in text


def test_reading_lists_begin_with_the_editor_and_hold_no_other_method(generate) -> None:
    for name in METHODS.names():
        module = METHODS.entry(name).module
        first, *others = generate.reading_list(module)
        assert f"corrigenda.{first}" == module
        folder = module.removeprefix("corrigenda.").rpartition(".")[0]
        assert all(one.startswith((f"{folder}.", "engines.")) for one in others)
