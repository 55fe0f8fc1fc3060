"""Options of how a model is loaded reach it from every command that asks or edits."""

from __future__ import annotations

from pathlib import Path

import pytest

from corrigenda.run import store
from tests.support.tiny_on_disk import QUICK, Run

RECIPE = """
title = "one method"
model = "{model}"
methods = [{{name = "ft-m", options = {{layer = 1, epochs = 1}}}}]
metrics = ["reliability@greedy"]

[benchmark]
name = "pocketedit"
limit = 1
options = {{world = "small"}}

[ask]
max_new_tokens = 2
roles = ["reliability"]
"""


@pytest.fixture
def recipe(tmp_path: Path, model: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(RECIPE.format(model=model.as_posix()))
    return path


@pytest.mark.parametrize("command", ["ask", "edit", "assess", "fit", "evaluate"])
def test_unknown_quantisations_are_refused(
    command: str, run: Run, model: Path, patch_file: Path, recipe: Path
) -> None:
    arguments = {
        "ask": [model, "Rome is"],
        "edit": [model, "Rome is", "-s", "Rome", "-t", "old", *QUICK],
        "assess": [patch_file, model],
        "fit": [model],
        "evaluate": [recipe],
    }
    ran = run(command, *arguments[command], "--quantization", "3bit")
    assert ran.code == 2
    assert "CG502" in ran.err
    assert '"3bit"' in ran.err


def test_placing_of_a_run_is_recorded(run: Run, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    plain = run("evaluate", recipe, "--out", out)
    assert plain.code == 0, plain.err
    placed = run("evaluate", recipe, "--out", out, "--attention", "eager", "--dtype", "float64")
    assert placed.code == 0, placed.err
    specs = [store.load(out / one).manifest.spec for one in store.list_ids(out)]
    found = {(one["attention"], one["dtype"]) for one in specs}
    assert found == {(None, None), ("eager", "float64")}
