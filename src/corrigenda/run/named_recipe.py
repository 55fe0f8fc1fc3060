"""Recipes from a command line: by name, of one benchmark, or of a file of cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corrigenda.benchmarks.benchmark import BENCHMARKS
from corrigenda.cases import Protocol
from corrigenda.errors import BadConfig, did_you_mean
from corrigenda.run.spec import Recipe, list_recipes, read_recipe
from corrigenda.run.tables import JudgeSpec

METHODS = ("prompt", "rag", "ft-m", "rome")
"""Methods of a run that names none: what users would pick instead, and one that edits a weight."""

OWN = "cases"
"""Benchmark that reads a file of one's own."""


def find_recipe(
    name: str | None,
    *,
    cases: str | Path | None = None,
    methods: Sequence[str] = (),
    protocols: Sequence[str] = (),
    judge: JudgeSpec | None = None,
    system: str | None = None,
) -> Recipe:
    """Return a recipe by its name or path, of a benchmark by its name, or of a file of cases.

    Args:
        name: A recipe, else a benchmark; None with `cases`.
        cases: File of cases; see the benchmark `cases`.
        methods: Methods in place of the recipe's.
        protocols: Protocols in place of the recipe's.
        judge: Judge of natural answers.
        system: System message of the protocol `chat`.

    Raises:
        BadConfig (CG502): no recipe or benchmark by that name, neither name nor cases, or a
            protocol that is not known.
    """
    recipe = _find(name, cases)
    changes: dict[str, object] = {}
    if methods:
        changes["methods"] = _make_recipe({"name": OWN}, "", methods).methods
    ask: dict[str, object] = {}
    if protocols:
        ask["protocols"] = tuple(map(_read_protocol, protocols))
    if judge is not None:
        ask["judge"] = judge
    if system is not None:
        ask["system"] = system
    if ask:
        changes["ask"] = recipe.ask.model_copy(update=ask)
    # A recipe lists metrics of its own protocols.
    if protocols:
        changes["metrics"] = ()
    return recipe.model_copy(update=changes)


def read_judge(text: str, model: str = "", *, temperature: float = 0.0) -> JudgeSpec:
    """Return a judge by what a user writes: an address, `package.module:function`, or a model.

    Args:
        text: What was written.
        model: Name of the model of an endpoint.
        temperature: Of an endpoint.

    Raises:
        BadConfig (CG502): an endpoint without model.

    Example:
        >>> read_judge("http://127.0.0.1:8000/v1", "small").kind, read_judge("smollm2").kind
        ('endpoint', 'model')
    """
    if text.startswith(("http://", "https://")):
        if not model:
            raise BadConfig(
                "an endpoint needs the name of its model.", hint="Give it with --judge-model."
            )
        return JudgeSpec(kind="endpoint", name=model, url=text, temperature=temperature)
    module, found, function = text.partition(":")
    is_name = all(part.isidentifier() for part in (*module.split("."), function))
    if found and is_name:
        return JudgeSpec(kind="function", name=text)
    return JudgeSpec(kind="model", name=text)


def _find(name: str | None, cases: str | Path | None) -> Recipe:
    if cases is not None:
        if name is not None:
            raise BadConfig(
                f'both a recipe ("{name}") and a file of cases are given.',
                hint="Leave one of them out.",
            )
        return _make_recipe({"name": OWN, "path": str(Path(cases).resolve())}, Path(cases).name)
    if name is None:
        raise BadConfig(
            "there is nothing to evaluate.",
            hint="Name a recipe or a benchmark, or give --cases FILE.",
        )
    plain = name.strip().lower().replace("_", "-")
    known = list_recipes()
    if name in known or Path(name).suffix == ".toml" or plain not in BENCHMARKS.names():
        if name not in known and not Path(name).exists():
            raise BadConfig(
                f'no recipe or benchmark "{name}".',
                hint=did_you_mean(name, [*known, *BENCHMARKS.names()]),
            )
        return read_recipe(name)
    return _make_recipe({"name": plain}, str(BENCHMARKS.card(plain)["title"]))


def _make_recipe(
    data: Mapping[str, object], title: str, methods: Sequence[str] = METHODS
) -> Recipe:
    table: dict[str, Any] = {"title": title, "methods": [*methods], "benchmark": dict(data)}
    return Recipe(**table)


def _read_protocol(name: str) -> Protocol:
    plain = name.strip().lower().replace("-", "_")
    if plain not in list(Protocol):
        raise BadConfig(f'no protocol "{name}".', hint=did_you_mean(plain, list(Protocol)))
    return Protocol(plain)
