"""Recipes: what is refused, what is shared, what names a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from corrigenda.errors import BadConfig, UnknownBenchmark, UnknownMethod, UnknownMetric
from corrigenda.methods.memit.editor import Memit
from corrigenda.methods.mend.editor import Mend
from corrigenda.methods.rome.editor import Rome
from corrigenda.metrics.estimate import Bootstrap
from corrigenda.run.editor_spec import EditorSpec
from corrigenda.run.runner import run_id
from corrigenda.run.spec import Recipe, RunSpec, list_recipes, read_recipe

QUICK = """
methods = ["rome", {name = "memit", options = {layers = [1]}, label = "one layer"}]
metrics = ["reliability@greedy"]
[benchmark]
name = "pocketedit"
limit = 5
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text)
    return path


def test_a_recipe_makes_one_run_for_each_method(tmp_path: Path) -> None:
    runs = read_recipe(written(tmp_path, QUICK)).runs(model="pocket-gpt2", limit=3)
    assert [one.editor.title for one in runs] == ["rome (r-rome)", "one layer"]
    assert {one.model for one in runs} == {"pocket-gpt2"}
    assert {one.benchmark[0].limit for one in runs} == {3}
    assert runs[1].editor.options == {"layers": [1]}


def test_a_limit_never_takes_more_than_the_recipe(tmp_path: Path) -> None:
    (run, _) = read_recipe(written(tmp_path, QUICK)).runs(limit=9)
    assert run.benchmark[0].limit == 5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("modl = 'pocket'", 'Did you mean "model"'),
        ("regime = {kind = 'sngle'}", "regime.kind: Input should be 'single'"),
        ("regime = {size = 0}", "regime.size"),
        ("ask = {protocols = ['gredy']}", "ask.protocols.0"),
        ("health = {text = ['a']}", 'Did you mean "texts"'),
        ("seed = 'x' ", "seed"),
        ("intervals = {level = 99}", "intervals.level"),
        ("intervals = {hierarchicl = true}", 'Did you mean "hierarchical"'),
        ("x ==", "cannot be read"),
    ],
)
def test_bad_keys_and_values_are_told(change: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"^CG502 ") as caught:
        read_recipe(written(tmp_path, f"{change}\n{QUICK}"))
    assert told in str(caught.value)
    assert "own.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ('"rome"', '"rom"', UnknownMethod),
        ("reliability@", "reliabilityy@", UnknownMetric),
        ('"pocketedit"', '"pocketedt"', UnknownBenchmark),
    ],
)
def test_unknown_names_are_refused_before_anything_is_done(
    old: str, new: str, error: type[Exception], tmp_path: Path
) -> None:
    recipe = read_recipe(written(tmp_path, QUICK.replace(old, new)))
    with pytest.raises(error, match="Did you mean"):
        recipe.runs()


def test_unknown_options_of_a_benchmark_are_refused(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, f"{QUICK}options = {{wrld = 'small'}}\n"))
    with pytest.raises(BadConfig, match="wrld"):
        recipe.runs()


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    recipe = read_recipe(
        written(tmp_path, f"{QUICK}path = 'data/x.json'\n[health]\nfile = 'texts.txt'\n")
    )
    assert recipe.benchmark[0].path == str(tmp_path / "data" / "x.json")
    assert recipe.health.file == str(tmp_path / "texts.txt")


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipes_are_valid(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.runs()
    assert recipe.title
    assert recipe.about


def test_shipped_recipes_are_found_by_name() -> None:
    assert "pocket-quick" in list_recipes()
    with pytest.raises(BadConfig, match='Did you mean "pocket-quick"'):
        read_recipe("pocket-quik")


def spec(**changes: object) -> RunSpec:
    data = {"name": "pocketedit", "limit": 2}
    return RunSpec(**{"editor": {"name": "rome"}, "benchmark": data, **changes})


def test_the_hash_is_of_what_can_change_a_row() -> None:
    plain = spec().digest()
    assert spec(metrics=["reliability@greedy"]).digest() == plain
    assert spec(intervals={"level": 0.99, "hierarchical": True}).digest() == plain
    assert spec(editor={"name": "rome", "label": "ROME"}).digest() == plain
    for change in ({"seed": 1}, {"dtype": "bfloat16"}, {"editor": {"name": "memit"}}):
        assert spec(**change).digest() != plain


def test_intervals_are_those_of_metrics() -> None:
    assert spec().intervals.bootstrap() == Bootstrap()
    own = {"seed": 2, "resamples": 50, "level": 0.99, "hierarchical": True}
    assert spec(intervals=own).intervals.bootstrap() == Bootstrap(2, 50, 0.99, True)
    assert set(own) == set(Bootstrap._fields)


def test_what_was_dumped_is_read_again() -> None:
    one = spec(regime={"kind": "sequential", "checkpoints": [3]}, train={"name": "pocketedit"})
    assert RunSpec.model_validate(one.model_dump(mode="json")) == one


def test_a_recipe_needs_methods_and_a_benchmark() -> None:
    with pytest.raises(BadConfig, match="methods"):
        Recipe(benchmark={"name": "pocketedit"}, methods="rome")
    with pytest.raises(BadConfig, match="benchmark"):
        Recipe(methods=["rome"])


def identify(one: RunSpec) -> str:
    return run_id(one, "model", "cases")


def test_an_editor_object_is_a_run_like_the_table_with_its_options() -> None:
    model = "some/model"
    given = spec(model=model, editor=Rome(layer=5))
    table = spec(model=model, editor={"name": "rome", "options": {"layer": 5}})
    assert given == table
    assert given.digest() == table.digest()
    assert identify(given) == identify(table)
    assert given.build_editor() == Rome(layer=5)
    assert RunSpec.model_validate(given.model_dump(mode="json")) == given
    whole = Rome(layer=5).model_dump(mode="json")
    assert identify(spec(editor=Rome(layer=5))) == identify(
        spec(editor={"name": "rome", "options": whole})
    )
    recipe = Recipe(benchmark={"name": "pocketedit"}, methods=[Rome(layer=5), "memit"])
    assert [run.editor.name for run in recipe.runs()] == ["rome", "memit"]
    labelled = EditorSpec.from_editor(Rome(layer=5), transforms=["compress-rank=1"], label="one")
    assert spec(model=model, editor=labelled).editor == EditorSpec(
        name="rome", options={"layer": 5}, transforms=("compress-rank=1",), label="one"
    )


def test_an_editor_object_has_no_preset() -> None:
    """A name is short for the preset of the model; an object keeps what it was made with."""
    model = "gpt2-xl"
    named = spec(model=model, editor={"name": "memit"}).build_editor()
    given = spec(model=model, editor=Memit(layers=[3])).build_editor()
    assert named != Memit()
    assert given == Memit(layers=[3])
    recipe = Recipe(model="pocket", benchmark={"name": "pocketedit"}, methods=[Memit(layers=[3])])
    (run,) = recipe.runs(model=model)
    assert run.build_editor() == given


def test_the_seed_of_a_run_is_that_of_an_object_that_sets_none() -> None:
    assert spec(editor=Mend(), seed=3).build_editor() == Mend(seed=3)
    assert spec(editor=Mend(seed=1), seed=3).build_editor() == Mend(seed=1)


class OwnRome(Rome):
    """A method that is registered under no name of its own."""


def test_an_editor_object_of_no_registered_class_is_kept() -> None:
    own = spec(editor=OwnRome(layer=5))
    assert own.build_editor() == OwnRome(layer=5)
    own.check()
    plain = spec(editor=Rome(layer=5))
    assert identify(own) != identify(plain)
