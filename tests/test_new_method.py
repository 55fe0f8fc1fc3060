"""The method of docs/extending.md as a new folder of `methods/`; no other file is touched."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_on_disk import PROMPT, SUBJECT, save_tiny

ROOT = Path(__file__).parents[1]
COPIED = ("src", "docs", "recipes", "perf", "tests/laws", "tests/support")
FILES = ("README.md", "pyproject.toml", "conftest.py", ".importlinter")
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a copy of the repository, with the copy's package."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "COLUMNS": "80"}
    environment["CORRIGENDA_CACHE"] = str(folder / "cache")
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with one more folder, made from the page alone."""
    copy = tmp_path_factory.mktemp("repository")
    ignored = shutil.ignore_patterns("*.safetensors", "__pycache__")
    for name in COPIED:
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = FENCE.findall(page)
    editor = next(text for language, text in blocks if language == "python")
    card = next(text for language, text in blocks if language == "text" and "+++" in text)
    method = copy / "src" / "corrigenda" / "methods" / "noise"
    method.mkdir()
    method.joinpath("__init__.py").write_text('"""Noise, a control."""\n')
    method.joinpath("editor.py").write_text(editor)
    method.joinpath("card.md").write_text(card)
    return copy


def test_the_command_line_lists_shows_and_runs_it(folder: Path) -> None:
    listed = run(folder, "-m", "corrigenda", "methods")
    line = next(line for line in listed.stdout.splitlines() if line.startswith("noise"))
    assert line.split()[1:4] == ["control", "no", "yes"]
    assert "Noise: a control" in run(folder, "-m", "corrigenda", "methods", "Noise").stdout
    model = save_tiny(folder / "tiny")
    ran = run(
        *(folder, "-m", "corrigenda", "edit", str(model), PROMPT, "-s", SUBJECT, "-t", "Rome"),
        *("-m", "noise", "--set", "scale=0.5", "--json"),
    )
    assert ran.returncode in (0, 1), ran.stderr
    assert json.loads(ran.stdout)["method"] == "noise"


def test_python_finds_it(folder: Path) -> None:
    program = "import corrigenda as cg; cg.Noise(scale=0.2); assert 'Noise' in dir(cg)"
    assert run(folder, "-c", program).returncode == 0


def test_the_laws_run_for_it(folder: Path) -> None:
    ran = run(
        *(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/laws"),
        *("-k", "noise and float32 and (gpt2 or gemma2)"),
    )
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"[1-9]\d* passed", ran.stdout)


def test_the_contracts_on_imports_hold_with_it(folder: Path) -> None:
    contracts = ["--contract", "layers", "--contract", "methods", "--no-cache"]
    program = f"from importlinter.cli import lint_imports_command as lint; lint({contracts})"
    ran = run(folder, "-c", program)
    assert ran.returncode == 0, ran.stdout
    assert "2 kept, 0 broken" in ran.stdout


def test_the_pages_are_written_with_it(folder: Path) -> None:
    written = run(folder, "docs/generate.py")
    # What no program can know is asked for.
    assert written.stderr.splitlines() == [
        "noise: not measured; run perf/pocket_table.py --only noise --write"
    ]
    assert run(folder, "docs/generate.py", "--check").stderr == written.stderr
    card = "src/corrigenda/methods/noise/card.md"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert f"| [Noise]({card}) | control | one matrix, at random | nothing | yes |" in readme
    choose = (folder / "docs" / "choose.md").read_text(encoding="utf-8")
    assert f"[`noise`](../{card}) | a fact must be corrected" in choose
    assert f"- control: [Noise](../{card})" in (folder / "docs" / "index.md").read_text()
    assert (
        "noise              1  methods.noise.editor"
        in run(folder, "docs/generate.py", "--reading").stdout
    )
