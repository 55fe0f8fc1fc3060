"""The pocket model, and one fix of a small file, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

import corrigenda as cg
from corrigenda.fixing.fix import FixResult
from corrigenda.lm.model import LanguageModel

LINES = """question,answer,subject,old answer
The capital of France is,Rome,France,Paris
The capital of Germany is,Berlin,Germany,
The capital of Kenya is,,Kenya,Nairobi
The capital of France is,Rome,France,Paris
What is the capital of France?,Lyon,France,Paris
The capital of Peru is,Quito,Bolivia,Lima
The official language of Mexico is,French,,Spanish
The capital of Austria is,Budapest,Austria,Vienna
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fix")


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that these tests share, so that the unedited model is asked once."""
    monkeypatch.setenv("CORRIGENDA_CACHE", str(folder / "cache"))


@pytest.fixture(scope="session")
def pocket() -> LanguageModel:
    return cg.load("pocket")


@pytest.fixture(scope="session")
def file(folder: Path) -> Path:
    path = folder / "facts.csv"
    path.write_text(LINES, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def fixed(pocket: LanguageModel, file: Path, folder: Path) -> FixResult:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CORRIGENDA_CACHE", str(folder / "cache"))
        return cg.fix(pocket, file, method="memit", sample=8, progress=False)
