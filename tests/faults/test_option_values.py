"""Options that no computation can use get one coded error, and short names a hint."""

from __future__ import annotations

import json
import math

import pytest

from corrigenda.benchmarks.benchmark import BENCHMARKS
from corrigenda.errors import BadConfig
from corrigenda.methods.presets import build_editor
from corrigenda.methods.registry import METHODS
from corrigenda.transforms.registry import TRANSFORMS

NUMBERS = (math.inf, -math.inf, math.nan, 1e308, -1e308, 3e38, 10**5000)
INTEGERS = (*NUMBERS, 10**30, -(10**30), 2**63)


def unusable(annotation: object) -> tuple[float, ...]:
    """Numbers that an option of a type must refuse."""
    if annotation in (int, int | None):
        return INTEGERS
    return NUMBERS if annotation in (float, float | None) else ()


@pytest.mark.parametrize("name", METHODS.names())
def test_no_option_of_a_method_takes_what_is_no_number(name: str) -> None:
    for option, field in METHODS.get(name).model_fields.items():
        for value in unusable(field.annotation):
            with pytest.raises(BadConfig, match=rf"CG502(.|\n)*{option}"):
                build_editor(name, **{option: value})


@pytest.mark.parametrize("registry", [BENCHMARKS, TRANSFORMS])
def test_no_option_of_a_benchmark_or_transform_does(registry) -> None:
    for name in registry.names():
        kind = registry.get(name)
        for option, field in kind.model_fields.items():
            for value in unusable(field.annotation):
                with pytest.raises(BadConfig, match="CG502"):
                    kind(**{option: value})


def test_lists_and_tables_are_looked_into() -> None:
    with pytest.raises(BadConfig, match=r"layers(.|\n)*below 2\*\*63"):
        build_editor("memit", layers=[1, 10**30])
    with pytest.raises(BadConfig, match=r"layers"):
        build_editor("ultraedit", layers={"mlp.up": [10**30]})


@pytest.mark.parametrize(
    ("method", "option"), [("lora", "rank"), ("adalora", "initial_rank"), ("malmen", "rank")]
)
def test_a_width_that_no_memory_holds_is_refused(method: str, option: str) -> None:
    with pytest.raises(BadConfig, match=option):
        build_editor(method, **{option: 10**9})


def test_numbers_of_json_that_are_none_are_refused_too() -> None:
    options = json.loads('{"learning_rate": Infinity, "kl_weight": NaN}')
    with pytest.raises(BadConfig, match=r"learning_rate(.|\n)*kl_weight"):
        build_editor("rome", **options)


@pytest.mark.parametrize("seed", [-1, 0, 2**32, 2**63 - 1])
def test_ordinary_seeds_stay_allowed(seed: int) -> None:
    assert build_editor("rome", seed=seed).seed == seed


@pytest.mark.parametrize(
    ("method", "given", "meant"),
    [
        ("rome", "lr", "learning_rate"),
        ("ft-l", "bs", "batch_size"),
        ("mend", "lr", "learning_rate"),
        ("lora", "LR", "learning_rate"),
        ("rome", "decay", "weight_decay"),
    ],
)
def test_a_short_name_suggests_the_option(method: str, given: str, meant: str) -> None:
    with pytest.raises(BadConfig, match=f'Did you mean "{meant}"'):
        build_editor(method, **{given: 1})
