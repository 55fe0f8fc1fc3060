"""`corrigenda fix`, its questions and its menu; and `corrigenda` alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from corrigenda.cli import first_run
from corrigenda.cli.fix_menu import confirm_lines, run_menu
from corrigenda.fixing.fix import FixResult
from corrigenda.fixing.lines import read_lines
from corrigenda.fixing.understanding import Fate, understand
from corrigenda.lm.model import LanguageModel
from tests.support.tiny_on_disk import command


def answering(*said: str) -> Callable[[str], str]:
    """What a user types, one line after the other."""
    left = list(said)
    return lambda _: left.pop(0)


def test_a_file_without_lines_is_misuse(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("prompt,answer\n")
    ran = command("fix", "pocket", tmp_path / "empty.csv", "--yes")
    assert ran.code == 2
    assert "CG101" in ran.err


def test_subjects_can_be_corrected_before_the_edit(
    pocket: LanguageModel, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = understand(pocket, read_lines(file))
    found = confirm_lines(pocket, found, answering("8 official language", "9 -", "77 x", ""))
    by_number = {one.number: one for one in found}
    assert by_number[8].fact is not None
    assert by_number[8].fact.subject == "official language"
    assert by_number[9].fate is Fate.REFUSED
    assert "(found)" in capsys.readouterr().out


def test_the_menu_shows_both_models(
    pocket: LanguageModel,
    fixed: FixResult,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = answering("ask The capital of France is", "show 2", "show 3", "serve", "odd", "quit")
    run_menu(pocket, "pocket", fixed, tmp_path, said)
    out = capsys.readouterr().out
    assert "Paris" in out
    assert "Rome" in out
    assert "paraphrase" in out
    assert "corrigenda serve pocket --patch" in out
    assert not pocket.patches


def test_alone_and_in_a_pipe_it_prints_help() -> None:
    ran = command()
    assert ran.code == 2
    assert "Usage:" in ran.out


def test_alone_in_a_terminal_it_offers_things_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chosen command runs, and its status is that of the whole."""
    ran: list[first_run.FirstTrial] = []
    monkeypatch.setattr(first_run, "is_terminal", lambda: True)
    monkeypatch.setattr(first_run, "run_command", lambda _, trial: ran.append(trial) or 1)
    monkeypatch.setattr("typer.prompt", lambda *_, **__: "2")
    shown = command()
    assert shown.code == 1
    assert ran == [first_run.TRIALS[1]]
    assert all(first_run.write_command(one) in shown.out for one in first_run.TRIALS)
    monkeypatch.setattr("typer.prompt", lambda *_, **__: "")
    assert command().code == 0
    assert len(ran) == 1


@pytest.mark.parametrize("trial", first_run.TRIALS, ids=lambda trial: trial.arguments[0])
def test_things_to_try_are_commands(trial: first_run.FirstTrial) -> None:
    ran = command(*trial.arguments, "--help")
    assert ran.code == 0


def test_a_chosen_command_really_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_run, "is_terminal", lambda: True)
    monkeypatch.setattr("typer.prompt", lambda *_, **__: "1")
    ran = command()
    assert ran.code == 0
    assert "Paris" in ran.out
