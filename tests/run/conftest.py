"""A tiny model in memory, a cache of its own, and runs small enough for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from corrigenda.lm.model import LanguageModel
from corrigenda.run import runner
from corrigenda.run.spec import RunSpec
from corrigenda.run.store import Recorded
from corrigenda.testing.tiny import tiny_model

FT = {"layer": 1, "epochs": 2, "learning_rate": 0.01}
MakeSpec = Callable[..., RunSpec]
Do = Callable[..., Recorded]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CORRIGENDA_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    """A random model; its context of 128 tokens is too short for worked examples."""
    return tiny_model("llama", layers=2)


def make(**changes: object) -> RunSpec:
    """Three edits of the small pocket world with a few steps of fine-tuning."""
    options = {"world": "small", **changes.pop("benchmark", {})}  # type: ignore[dict-item]  # a table
    data = changes.pop("data", {"name": "pocketedit", "limit": 3, "options": options})
    settings: dict[str, object] = {
        "model": "tiny",
        "editor": {"name": "ft-m", "options": FT},
        "benchmark": data,
        "ask": {"max_new_tokens": 4, "without": ["fluency"]},
    }
    return RunSpec(**{**settings, **changes})


@pytest.fixture
def do(lm: LanguageModel, tmp_path: Path) -> Do:
    """Do a run on the tiny model."""

    def done(spec: RunSpec, **arguments: object) -> Recorded:
        return runner.run(spec, **{"lm": lm, "folder": tmp_path / "runs", **arguments})  # type: ignore[arg-type]  # by name

    return done
