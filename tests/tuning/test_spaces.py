"""Search spaces: what is searched for each method, and that they hold what is used today."""

from __future__ import annotations

import pytest

import corrigenda as cg
from corrigenda.catalogue import build_editor
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.registry import METHODS as METHODS_BY_NAME
from corrigenda.tuning.spaces import (
    build_options,
    find_layers,
    list_dimensions,
    present_parameters,
)

METHODS = {
    "rome": {"first_layer", "clamp", "weight_decay", "steps", "learning_rate"},
    "memit": {"first_layer", "num_layers", "clamp", "weight", "weight_decay", "steps"},
    "alphaedit": {"first_layer", "num_layers", "clamp", "weight", "energy"},
    "emmet": {"first_layer", "clamp", "weight_decay"},
    "pmet": {"first_layer", "num_layers", "clamp", "weight"},
    "ft-m": {"first_layer", "epochs", "learning_rate"},
    "lora": {"first_layer", "num_layers", "rank", "learning_rate", "steps"},
    "adalora": {"first_layer", "num_layers", "learning_rate", "steps"},
    "grace": {"first_layer", "radius", "steps", "learning_rate"},
    "wise": {"first_layer", "act_ratio", "mask_ratio", "steps", "learning_rate"},
    "ultraedit": {"first_layer", "num_layers", "learning_rate", "ridge"},
    "knowledge-neurons": {"threshold", "share", "new_weight"},
}


@pytest.fixture(scope="module")
def pocket() -> LanguageModel:
    return cg.load("pocket")


@pytest.mark.parametrize("method", METHODS)
def test_the_space_has_the_strength_and_holds_what_is_used_today(
    pocket: LanguageModel, method: str
) -> None:
    present = build_editor(pocket, method)
    dimensions = list_dimensions(pocket, present)
    assert METHODS[method] <= {one.name for one in dimensions}
    for one in dimensions:
        assert one.choices or one.low < one.high
        assert one.present in one.choices if one.choices else one.low <= one.present <= one.high
    options = build_options(pocket, present, present_parameters(dimensions))
    editor = type(present)(**options)
    layers = {"layer", "layers"}
    assert editor.model_dump(exclude=layers) == present.model_dump(exclude=layers)
    assert find_layers(pocket, editor) == find_layers(pocket, present)


@pytest.mark.parametrize("method", METHODS)
def test_every_corner_of_the_space_is_an_editor(pocket: LanguageModel, method: str) -> None:
    present = build_editor(pocket, method)
    dimensions = list_dimensions(pocket, present)
    for place in (0, -1):
        ends = {
            one.name: (one.choices or (one.low, one.high))[place]
            if not one.integer or one.choices
            else int((one.low, one.high)[place])
            for one in dimensions
        }
        editor = type(present)(**build_options(pocket, present, ends))
        layers = find_layers(pocket, editor)
        assert layers == tuple(range(layers[0], layers[-1] + 1))
        assert layers[-1] < pocket.num_layers


@pytest.mark.parametrize(
    ("method", "chosen"), [("rome", {"clamp"}), ("memit", {"clamp", "weight"})]
)
def test_what_the_model_decides_is_searched_too(
    pocket: LanguageModel, method: str, chosen: set[str]
) -> None:
    layers = {"layer": 1} if method == "rome" else {"layers": (1,)}
    present = METHODS_BY_NAME.get(method)(**layers)
    values = present.chosen_options(pocket, present.fit(pocket))
    assert set(values) == chosen
    assert all(value > 0 for value in values.values())
    dimensions = list_dimensions(pocket, present.model_copy(update=values))
    assert chosen <= {one.name for one in dimensions}
