"""`corrigenda book`: corrections in a folder, and where else a book is taken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import corrigenda
from corrigenda.facts import Fact
from tests.support.tiny_on_disk import NEIGHBOUR, QUICK, Ran, Run, save_tiny


@pytest.fixture
def book(run: Run, model: Path, tmp_path: Path) -> Path:
    """An empty book of the tiny model."""
    folder = tmp_path / "book"
    assert run("book", "new", folder, model).code == 0
    return folder


@pytest.fixture
def filled(run: Run, book: Path, patch_file: Path) -> Path:
    """A book with the one patch."""
    ran = run("book", "add", "--patch", patch_file, "-b", book)
    assert ran.code == 0, ran.err
    return book


def write_facts(place: Path, *facts: Fact) -> Path:
    """A facts file."""
    lines = [
        json.dumps({"prompt": one.prompt, "subject": one.subject, "target": one.target})
        for one in facts
    ]
    place.write_text("\n".join(lines), encoding="utf-8")
    return place


def add_facts(run: Run, book: Path, file: Path) -> Ran:
    return run("book", "add", file, "-b", book, *QUICK, "--json")


def test_facts_come_in_and_hold(run: Run, book: Path, fact: Fact, tmp_path: Path) -> None:
    file = write_facts(tmp_path / "facts.jsonl", fact)
    ran = add_facts(run, book, file)
    assert ran.code == 0, ran.err
    (added,) = ran.json["added"]
    assert (added["number"], added["outcomes"]) == (1, ["succeeded"])
    checked = run("book", "check", "-b", book, "--json")
    assert (checked.code, checked.json["holds"]) == (0, True)
    again = add_facts(run, book, file)
    assert (again.code, again.json["added"]) == (0, [])
    assert again.json["present"] == [f"{fact.prompt} -> {fact.target}"]


def test_contradiction_is_not_added(run: Run, filled: Path, fact: Fact, tmp_path: Path) -> None:
    other = Fact(prompt=fact.prompt, subject=fact.subject, target="Oslo")
    ran = add_facts(run, filled, write_facts(tmp_path / "facts.jsonl", other))
    assert (ran.code, ran.json["added"]) == (1, [])
    assert f"says {fact.target}" in ran.json["conflicts"][0]["reason"]
    shown = run("book", "add", tmp_path / "facts.jsonl", "-b", filled, *QUICK)
    assert "contradicts" in shown.out


def test_book_is_listed_shown_and_described(run: Run, filled: Path, fact: Fact) -> None:
    log = run("book", "log", "-b", filled)
    assert (log.code, fact.target in log.out, "not committed" in log.out) == (0, True, True)
    (entry,) = run("book", "log", "-b", filled, "--json").json["corrections"]
    shown = run("book", "show", "1", "-b", filled)
    assert all(text in shown.out for text in (entry["id"], fact.prompt, "rome", "succeeded"))
    assert run("book", "show", entry["id"], "-b", filled, "--json").json["method"] == "rome"
    status = run("book", "status", "-b", filled)
    assert (status.code, "not since the last change" in status.out) == (0, True)


def test_undone_correction_is_out(run: Run, filled: Path, fact: Fact) -> None:
    ran = run("book", "undo", "1", "-b", filled)
    assert (ran.code, fact.target in ran.out) == (0, True)
    assert run("book", "status", "-b", filled, "--json").json["undone"] == 1
    assert run("book", "show", "1", "-b", filled, "--json").json["undone"] is True
    missing = run("book", "undo", "1", "-b", filled)
    assert (missing.code, missing.err[:5]) == (2, "CG804")


def test_check_finds_what_does_not_hold(run: Run, book: Path, model: Path, fact: Fact) -> None:
    lm = corrigenda.load(model)
    wrong = Fact(prompt=NEIGHBOUR, target="Oslo")
    corrigenda.Book.open(book).add(lm, wrong, None)
    ran = run("book", "check", "-b", book)
    assert (ran.code, "does not hold" in ran.out) == (1, True)
    assert run("book", "status", "-b", book, "--json").json["failing"] != []


def test_another_model_is_named(run: Run, filled: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", seed=1)
    ran = run("book", "check", "-b", filled, "--model", other)
    assert (ran.code, ran.err[:5]) == (2, "CG401")
    status = run("book", "status", "-b", filled, "--model", other)
    assert (status.code, "is another" in status.out) == (1, True)
    assert run("book", "check", "-b", filled, "--model", other, "--force").code in (0, 1)


def test_move_accounts_for_every_correction(run: Run, filled: Path, tmp_path: Path) -> None:
    other, new = save_tiny(tmp_path / "other", seed=1), tmp_path / "moved"
    ran = run("book", "move", "--to", other, "-o", new, "-b", filled, "--json")
    assert ran.code in (0, 1), ran.err
    assert sum(len(ran.json[name]) for name in ("made", "held", "failed")) == 1
    again = run("book", "move", "--to", other, "-o", new, "-b", filled, "--json")
    assert len(again.json["present"]) == 1
    assert run("book", "status", "-b", new, "--json").json["corrections"] == 1
    assert run("book", "move", "--to", other, "-o", new, "-b", filled).out.count("there already")


def test_merge_names_contradictions(
    run: Run, filled: Path, model: Path, fact: Fact, tmp_path: Path
) -> None:
    lm, theirs = corrigenda.load(model), tmp_path / "theirs"
    other = corrigenda.Book.new(theirs, lm)
    other.add(lm, Fact(prompt=fact.prompt, target="Oslo"), None)
    other.add(lm, Fact(prompt=NEIGHBOUR, target="Bonn"), None)
    ran = run("book", "merge", theirs, "-b", filled)
    assert (ran.code, ran.err[:5], "Oslo" in ran.err) == (2, "CG803", True)
    done = run("book", "merge", theirs, "-b", filled, "--keep", "ours", "--json")
    assert (done.code, len(done.json["added"]), len(done.json["left_out"])) == (0, 1, 1)
    assert run("book", "merge", theirs, "-b", filled, "--keep", "ours").out.endswith("in both.\n")
    assert run("book", "merge", theirs, "-b", filled, "--keep", "both").err[:5] == "CG502"


def test_export_writes_the_sum(run: Run, filled: Path, tmp_path: Path) -> None:
    ran = run("book", "export", "-o", tmp_path / "adapter", "-b", filled, "--json")
    assert (ran.code, ran.json["corrections"]) == (0, 1)
    assert "adapter_model.safetensors" in ran.json["files"]


def test_open_asks_without_and_with_the_book(run: Run, filled: Path, fact: Fact) -> None:
    ran = run("book", "open", fact.prompt, "-b", filled, "--json")
    (reply,) = ran.json["replies"]
    assert reply["after"].startswith(fact.target)
    assert not reply["before"].startswith(fact.target)
    assert fact.target in run("book", "open", fact.prompt, "-b", filled).out


def test_open_reads_prompts_until_an_empty_line(filled: Path, fact: Fact) -> None:
    from typer.testing import CliRunner

    from corrigenda.cli.main import app

    words = ["book", "open", "-b", str(filled)]
    ran = CliRunner().invoke(app, words, input=f"{fact.prompt}\n\nnever asked\n")
    assert ran.exit_code == 0
    assert fact.target in ran.stdout
    assert "never asked" not in ran.stdout


def test_book_is_taken_where_a_patch_is(
    run: Run, filled: Path, model: Path, patch_file: Path, fact: Fact, tmp_path: Path
) -> None:
    asked = run("ask", model, fact.prompt, "--patch", filled, "--json")
    assert asked.json["replies"][0]["answer"].startswith(fact.target)
    assert run("assess", filled, model, "--json").json["succeeded"] is True
    (site,) = run("diff", filled, patch_file, "--json").json["sites"]
    assert site["norm_difference"] == pytest.approx(0, abs=1e-6 * site["norm_a"])
    exported = run("export", filled, model, "--to", "merged", "-o", tmp_path / "merged")
    assert exported.code == 0, exported.err
    whole = run("compose", filled, "-o", tmp_path / "sum.safetensors")
    assert whole.code == 0


def test_folder_without_a_book_is_refused(run: Run, model: Path, tmp_path: Path) -> None:
    for words in (("log",), ("status",), ("check",), ("undo", "1")):
        ran = run("book", *words, "-b", tmp_path)
        assert (ran.code, ran.err[:5]) == (2, "CG801")
    assert run("ask", model, "Hi", "--patch", tmp_path).err[:5] == "CG402"


def test_options_that_do_not_go_together_are_refused(
    run: Run, filled: Path, model: Path, patch_file: Path, tmp_path: Path
) -> None:
    for words in (("add",), ("add", patch_file, "--patch", patch_file)):
        assert run("book", *words, "-b", filled).err[:5] == "CG502"
    words = ("move", "--to", model, "-o", tmp_path / "new", "--layer", "1")
    assert run("book", *words, "-b", filled).err[:5] == "CG502"
    assert run("book", "new", filled, model).err[:5] == "CG801"


def test_log_needs_no_torch(filled: Path) -> None:
    code = (
        "import sys; from corrigenda.cli.main import app\n"
        f"app(['book', 'log', '-b', {str(filled)!r}], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
