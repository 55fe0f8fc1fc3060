"""The pocket model with a chat template, its corrections, and a server of them."""

from __future__ import annotations

import copy
from collections.abc import Generator

import pytest

import corrigenda as cg
from corrigenda.lm.model import LanguageModel
from corrigenda.patch import Patch
from tests.support.serving import TEMPLATE, Serving, serving

PROMPT = "The capital of France is"


@pytest.fixture(scope="session")
def pocket() -> LanguageModel:
    """A pocket model that is never served, to compare with."""
    lm = cg.load("pocket")
    lm.tokenizer.chat_template = TEMPLATE
    return lm


@pytest.fixture(scope="session")
def fact() -> cg.Fact:
    """A fact that does not hold."""
    return cg.Fact(prompt=PROMPT, subject="France", target="Rome")


@pytest.fixture(scope="session")
def tuned(pocket: LanguageModel, fact: cg.Fact) -> Patch:
    """A change of weights."""
    return cg.edit(pocket, fact, cg.FtM(layer=4), progress=False)


@pytest.fixture(scope="session")
def codebook(pocket: LanguageModel, fact: cg.Fact) -> Patch:
    """A memory that is routed on the prompt."""
    return cg.edit(pocket, fact, cg.Grace(replace="all"), progress=False)


@pytest.fixture(scope="session")
def in_context(pocket: LanguageModel, fact: cg.Fact) -> Patch:
    """A fact that is written before questions."""
    return cg.edit(pocket, fact, cg.ICE(), progress=False)


@pytest.fixture(scope="session")
def answering(pocket: LanguageModel, fact: cg.Fact) -> Patch:
    """A procedure that answers in the model's place."""
    return cg.edit(pocket, fact, cg.MeLLo(), progress=False)


@pytest.fixture(scope="module")
def server(
    pocket: LanguageModel, tuned: Patch, codebook: Patch, in_context: Patch, answering: Patch
) -> Generator[Serving]:
    """A server of the model, and of each patch under a name of its own."""
    edited = {
        "tuned": tuned,
        "codebook": codebook,
        "in-context": in_context,
        "answering": answering,
    }
    with serving(copy.deepcopy(pocket), edited) as running:
        yield running
