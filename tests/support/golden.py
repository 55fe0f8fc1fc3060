"""Stored inputs and outputs of the public implementations, for parity tests, where at hand."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet
from safetensors.torch import load_file
from torch import Tensor

from corrigenda.engines.locate.contexts import Contexts
from corrigenda.facts import Fact
from corrigenda.linalg.moments import SecondMoment
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.patch import WeightPatch
from corrigenda.state import State

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
needed = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the stored outputs of the public implementations are not here"
)

TOLERANCE = 1e-3


def slow(case: object) -> ParameterSet:
    return pytest.param(case, marks=pytest.mark.slow)


PREFIXES = (
    "",
    "The language is English. ",
    "Therefore it is known. ",
    "Because of that. ",
    "I think so. ",
    "You know this. ",
)
PLAIN = Contexts(PREFIXES)
TWO_LEVEL = Contexts(PREFIXES, groups=(0, 1, 1, 1, 1, 1))


@cache
def model() -> LanguageModel:
    return LanguageModel.load(str(GOLDEN / "model"))


@cache
def tensors(method: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / method / "tensors.safetensors")


@cache
def golden(method: str) -> dict:
    return json.loads((GOLDEN / method / "golden.json").read_text(encoding="utf-8"))


def facts(count: int) -> list[Fact]:
    """The first edits; singles use 0 to 7, the batch 0 to 15."""
    records = json.loads((GOLDEN / "edits.json").read_text(encoding="utf-8"))[:count]
    return [
        Fact(prompt=one["prompt"], subject=one["subject"], target=one["target_new"])
        for one in records
    ]


@cache
def state() -> State:
    moments = {}
    for layer in range(4):
        stored = load_file(GOLDEN / "cov" / f"layer{layer}.safetensors")
        size = model().d_inner
        count = int(stored["count"])
        upper = torch.zeros(size, size, dtype=torch.float64)
        rows, columns = torch.triu_indices(size, size)
        upper[rows, columns] = stored["cov_triu"].double() * count
        parts = SecondMoment(size).tensors()
        parts |= {"sum_of_products": upper, "count": torch.tensor(count)}
        moments[Site(layer)] = SecondMoment.from_tensors(parts)
    return State.of_moments(moments, {"shrinkage": 0.0})


def common(method: str) -> dict[str, object]:
    hparams = golden(method)["hparams"]
    return {
        "steps": hparams["v_num_grad_steps"],
        "learning_rate": hparams["v_lr"],
        "kl_weight": hparams["kl_factor"],
        "weight_decay": hparams["v_weight_decay"],
        "clamp": hparams["clamp_norm_factor"],
    }


def relative(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.double(), expected.double()
    return float((actual - expected).norm() / expected.norm())


def expected_change(method: str, tag: str, layer: int) -> Tensor:
    name = f"{tag}/transformer.h.{layer}.mlp.c_proj.weight"
    stored = tensors(method)
    return (stored[f"{name}/U"].double() @ stored[f"{name}/V"].double()).T


def check_trace(patch: WeightPatch, index: int, expected: list[list[float]]) -> None:
    losses = patch.header.notes["search"][index]["losses"]
    assert len(losses) == len(expected)
    torch.testing.assert_close(
        torch.tensor(losses[:5]), torch.tensor(expected[:5]), rtol=TOLERANCE, atol=1e-5
    )


def check_change(change: Tensor, method: str, tag: str, layer: int) -> None:
    """Against factors, or where noise has full rank against a projection and sixteen rows."""
    stored, name = tensors(method), f"{tag}/transformer.h.{layer}.mlp.c_proj.weight"
    if f"{name}/U" in stored:
        assert relative(change, expected_change(method, tag, layer)) <= TOLERANCE
        return
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(change.shape[0], 8, generator=generator, dtype=torch.float64)
    assert relative(change.T @ probe, stored[f"{name}/proj"]) <= TOLERANCE
    assert relative(change.T[:16], stored[f"{name}/row0_16"]) <= TOLERANCE
