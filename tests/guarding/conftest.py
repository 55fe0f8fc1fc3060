"""The pocket model with a few facts and the edits of them, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

import corrigenda as cg
from corrigenda.almanac.exam import ExamEdit, load_exam
from corrigenda.lm.model import LanguageModel


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guard-cache")


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that these tests share, so that the unedited model is asked once."""
    monkeypatch.setenv("CORRIGENDA_CACHE", str(folder))


@pytest.fixture(scope="session")
def pocket() -> LanguageModel:
    return cg.load("pocket")


@pytest.fixture(scope="session")
def cases() -> tuple[ExamEdit, ...]:
    return load_exam(edits=6, size=1, recall=1).edits


@pytest.fixture(scope="session")
def facts(cases: tuple[ExamEdit, ...]) -> list[cg.Fact]:
    return [case.training_fact for case in cases]
