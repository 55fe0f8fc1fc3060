"""Every recipe of the project names methods, benchmarks and metrics that there are."""

import pytest

from corrigenda.run.spec import list_recipes, read_recipe

NAMES = list_recipes()


def test_there_are_recipes():
    assert {"pocket-quick", "knowedit", "pocket-sequence"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_makes_runs_on_any_model(name):
    recipe = read_recipe(name)
    assert recipe.title
    assert recipe.about
    runs = recipe.runs(model="some/model", limit=2)
    assert len(runs) == len(recipe.methods)
    assert {run.model for run in runs} == {"some/model"}
    assert len({run.digest() for run in runs}) == len(runs)
    assert all(one.limit <= 2 for run in runs for one in run.benchmark)


def test_public_files_are_taken_from_a_folder(tmp_path):
    (one, *_) = read_recipe("knowedit").runs(data=str(tmp_path))
    assert {data.path for data in one.benchmark} == {str(tmp_path)}
    (drawn, *_) = read_recipe("pocket-quick").runs(data=str(tmp_path))
    assert drawn.benchmark[0].path is None
