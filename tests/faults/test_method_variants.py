"""By default a method is the published one, and what is shown says which variant ran."""

from __future__ import annotations

import warnings

import pytest

from corrigenda.errors import BadConfig
from corrigenda.methods.presets import build_editor, named_preset, preset, presets, variant_label
from corrigenda.methods.registry import METHODS
from corrigenda.run.spec import EditorSpec, RunSpec

LARGE = ("llama-2-7b", "llama-3-8b", "mistral-7b", "qwen2.5-7b")


@pytest.mark.parametrize("name", METHODS.names())
def test_the_preset_of_a_model_is_the_published_form_of_a_method(name: str) -> None:
    published = METHODS.card(name).get("variants", {})
    assert isinstance(published, dict)
    editor = METHODS.get(name)()
    for option, value in published.items():
        assert getattr(editor, option) == value, "the card says what the class does"
    for one in presets(name):
        changed = {o for o, value in published.items() if one.options.get(o, value) != value}
        assert bool(changed) <= bool(one.notice), f"{one.model} runs another form: {changed}"


@pytest.mark.parametrize("model", LARGE)
def test_rome_has_its_second_moment_on_models_that_a_framework_runs_without(model: str) -> None:
    assert build_editor("rome", model).use_moment
    assert build_editor("rome", model).requires.moments
    with pytest.warns(UserWarning, match="without the second moment"):
        framework = build_editor("rome", model, preset=f"{model}-easyedit")
    assert not framework.use_moment
    same = {"use_moment": True}
    assert framework.model_copy(update=same) == build_editor("rome", model)


def test_knowledge_neurons_are_refined_unless_a_baseline_is_asked_for() -> None:
    assert build_editor("knowledge-neurons", "llama-2-7b").refine
    with pytest.warns(UserWarning, match="one prompt"):
        baseline = build_editor("knowledge-neurons", preset="llama-2-7b-easyedit")
    assert not baseline.refine


def test_a_preset_of_a_model_does_not_warn_and_one_that_is_not_there_is_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_editor("rome", "llama-2-7b")
    with pytest.raises(BadConfig, match=r'CG502(.|\n)*Did you mean "llama-2-7b-easyedit"'):
        named_preset("rome", "llama-2-7b-easyedt")


def test_pocket_presets_are_what_they_were() -> None:
    found = preset("rome", "pocket")
    assert found is not None
    assert dict(found.options) == {
        **{"layer": 3, "steps": 25, "learning_rate": 0.5, "kl_weight": 0.0625},
        **{"weight_decay": 0.05, "clamp": 10.0, "stop_on": "total"},
    }
    assert build_editor("rome", "pocket").variant == "r-rome"


def test_tables_say_which_rome_ran() -> None:
    assert EditorSpec(name="rome").title == "rome (r-rome)"
    assert EditorSpec(name="rome", options={"variant": "rome"}).title == "rome (rome)"
    framework = EditorSpec(name="rome", options={"preset": "llama-2-7b-easyedit"})
    assert framework.title == "rome (r-rome, use_moment=false)"
    assert EditorSpec(name="rome", label="mine").title == "mine"
    assert EditorSpec(name="memit").title == "memit"
    assert variant_label("adalora", {"pruning": False}) == "adalora (pruning=false)"


@pytest.mark.filterwarnings("ignore:rome, preset")
def test_a_run_takes_a_preset_by_name_and_its_seed_from_the_run() -> None:
    options = {"preset": "llama-2-7b-easyedit", "steps": 3}
    spec = RunSpec(
        editor={"name": "rome", "options": options}, benchmark={"name": "pocketedit"}, seed=5
    )
    editor = spec.build_editor()
    assert (editor.use_moment, editor.steps, editor.seed) == (False, 3, 5)
