"""A tiny model on disk, a fact it can be taught, and a cache of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from corrigenda.facts import Fact
from tests.support.tiny_on_disk import QUICK, Run, command, nearest_fact, save_tiny


@pytest.fixture
def run(cache: Path) -> Run:
    """Run the command line in this process."""
    return command


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model, saved."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def fact(model: Path) -> Fact:
    """A fact that does not hold, and needs only a small change."""
    import corrigenda

    return nearest_fact(corrigenda.load(model))


@pytest.fixture(scope="session")
def patch_file(model: Path, fact: Fact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The patch for `fact`, made by the command itself."""
    folder = tmp_path_factory.mktemp("patches")
    file = folder / "patch.safetensors"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CORRIGENDA_CACHE", str(folder / "cache"))
        ran = command(
            "edit", model, fact.prompt, "-s", fact.subject, "-t", fact.target, "-o", file, *QUICK
        )
    assert ran.code == 0, ran.out + ran.err
    return file


@pytest.fixture(scope="session")
def exported(model: Path, patch_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with the patch in its weights."""
    folder = tmp_path_factory.mktemp("exports") / "merged"
    ran = command("export", patch_file, model, "--to", "merged", "-o", folder)
    assert ran.code == 0, ran.err
    return folder
