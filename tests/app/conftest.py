"""A workspace of the pocket model, whose corrections are taken off after each test."""

from __future__ import annotations

from collections.abc import Generator

import pytest

import corrigenda as cg
from corrigenda.app.workspace import Workspace
from corrigenda.lm.model import LanguageModel


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    """The pocket model."""
    return cg.load("pocket")


@pytest.fixture
def workspace(lm: LanguageModel) -> Generator[Workspace]:
    """A workspace without corrections; afterwards the model is as it was."""
    opened = Workspace(lm)
    yield opened
    opened.close()
    assert not lm.patches.entries
