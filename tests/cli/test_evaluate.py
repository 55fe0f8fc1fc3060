"""`corrigenda evaluate`: a recipe becomes a table, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from corrigenda.cli.evaluate import _split_columns
from corrigenda.run import store
from tests.support.tiny_on_disk import Run

RECIPE = """
title = "two methods"
model = "{model}"
methods = [
    {{name = "ft-m", options = {{layer = 1, epochs = 1}}}},
    {{name = "rome", label = "refused", options = {{layer = 99, use_moment = false}}}},
]
metrics = ["reliability@greedy", "locality@greedy:tokens", "cost/stored_bytes"]

[benchmark]
name = "pocketedit"
limit = 2
options = {{world = "small"}}

[ask]
max_new_tokens = 3
roles = ["reliability", "locality/other_relations"]
"""


@pytest.fixture
def recipe(tmp_path: Path, model: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(RECIPE.format(model=model.as_posix()))
    return path


def test_a_recipe_becomes_a_table_and_rows(run: Run, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    ran = run("evaluate", recipe, "--out", out)
    assert ran.code == 1, "one of the methods fails"
    head, *lines = ran.out.splitlines()
    assert head.startswith("two methods")
    assert lines[0].split() == ["metric", "n", "ft-m", "refused"]
    first = next(line for line in lines if line.startswith("reliability@greedy"))
    assert first.split()[1:3] == ["^", "2"]
    assert first.split()[-1] == "-"
    assert "refused: " in ran.err
    assert "CG303" in ran.err
    assert len(store.list_ids(out)) == 2

    again = run("evaluate", recipe, "--out", out, "--json")
    assert again.code == 1
    assert again.json["title"] == "two methods"
    names = [one["label"] for one in again.json["runs"]]
    assert names == ["ft-m", "refused"]
    value = again.json["runs"][0]["metrics"]["cost/stored_bytes"]
    assert value["n"] == 2
    assert set(value) == {"value", "low", "high", "n", "items", "skipped"}
    assert again.json["runs"][1]["metrics"] == {}
    recorded = store.load(again.json["runs"][0]["run"], out)
    assert len(recorded.rows) == again.json["runs"][0]["rows"]


def test_a_limit_makes_another_run(run: Run, recipe: Path, tmp_path: Path) -> None:
    ran = run("evaluate", recipe, "--out", tmp_path / "runs", "--limit", 1, "--json")
    assert [one["cases"] for one in ran.json["runs"]] == [1, 1]


def test_unknown_recipes_and_executors_are_told(run: Run, recipe: Path) -> None:
    ran = run("evaluate", "pocket-quik")
    assert ran.code == 2
    assert 'Did you mean "pocket-quick"' in ran.err
    ran = run("evaluate", recipe, "--executor", "rey")
    assert ran.code == 2
    assert "CG502" in ran.err


def test_columns_that_do_not_fit_are_put_below() -> None:
    assert _split_columns([4, 4, 4], 18) == [[0, 1, 2]]
    assert _split_columns([4, 4, 4], 17) == [[0, 1], [2]]
    assert _split_columns([40, 4, 4], 12) == [[0], [1, 2]]
    assert _split_columns([], 12) == []
