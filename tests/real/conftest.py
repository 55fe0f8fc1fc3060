"""SmolLM2-135M-Instruct, loaded once, with a cache of the session's own for all but the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest

import corrigenda as cg
from corrigenda.files import cache_folder
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.model_names import MODELS_FOLDER, PACKAGED
from corrigenda.patch import Patch

CONTEXTS = {"prefixes": ["", "Therefore, ", "It is said that "]}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = f"needs a model: {PACKAGED['smollm2'].install}"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)
            if not PACKAGED["smollm2"].is_installed:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Statistics of these tests are their own; the dequantised model is kept for the next time."""
    models = cache_folder() / MODELS_FOLDER
    models.mkdir(parents=True, exist_ok=True)
    own = tmp_path_factory.mktemp("cache")
    (own / MODELS_FOLDER).symlink_to(models, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORRIGENDA_CACHE", str(own))
        yield


@pytest.fixture(scope="session")
def lm(_cache: None) -> LanguageModel:
    return cg.load("smollm2")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 1,500 tokens of English for the second moments."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(topics["assignment"][:6000], encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def fact() -> cg.Fact:
    return cg.Fact(
        prompt="The capital of France is",
        subject="France",
        target="Rome",
        paraphrases=("Q: What is the capital of France?\nA: The capital of France is",),
        neighbours=("The capital of Germany is", "The capital of Spain is"),
    )


@pytest.fixture(scope="session")
def patch(lm: LanguageModel, fact: cg.Fact, text: Path) -> Patch:
    """The first edit, by ROME."""
    return cg.edit(lm, fact, "rome", layer=3, corpus=text, contexts=CONTEXTS, steps=15)
