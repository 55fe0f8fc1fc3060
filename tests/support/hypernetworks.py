"""Shared by the tests of KnowledgeEditor and MALMEN: a training set, references, laws of states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from corrigenda.engines.gradients import LabelledRow
from corrigenda.engines.hypernetwork import HypernetworkEditor
from corrigenda.errors import MissingState, WrongBase
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.state import State
from corrigenda.training import TrainingJob
from tests.support.locating import FACTS, model

TAUGHT = tuple(
    Fact(
        prompt=f"{name} was born in",
        subject=name,
        target=city,
        paraphrases=(f"The place where {name} came into the world is",),
        neighbours=("The sea is full of", f"{other} was born in"),
    )
    for name, other, city in zip(
        (
            "Ada Lovelace",
            "Alan Turing",
            "Emmy Noether",
            "Sofia Kovalevskaya",
            "Paul Erdos",
            "Gauss",
        ),
        ("Newton", "Leibniz", "Euler", "Riemann", "Cantor", "Abel"),
        ("Rome", "Lima", "Oslo", "Cairo", "Kyoto", "Quito"),
        strict=True,
    )
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def reworded(fact: Fact) -> Fact:
    """Return a fact asked in the first of its other wordings."""
    return Fact(prompt=fact.paraphrases[0], target=fact.target)


def with_shifts(lm: LanguageModel, shifts: Mapping[Site, Tensor]) -> dict[str, Tensor]:
    """Return parameters with shifts of weights (d_out, d_in) added, however they are stored."""
    changed = {}
    for site, shift in shifts.items():
        stored = lm.model.get_parameter(lm.parameter_name(site))
        aligned = stored.shape == lm.weight(site).shape
        changed[lm.parameter_name(site)] = stored + (shift if aligned else shift.T)
    return changed


def read(lm: LanguageModel, row: LabelledRow, weights: Mapping[str, Tensor]) -> Tensor:
    """Return log-probabilities where labels are read, by a model with other parameters."""
    kwargs = {"input_ids": torch.tensor([row.ids]), "use_cache": False}
    output = torch.func.functional_call(lm.model, dict(weights), (), kwargs)
    return output.logits[0, list(row.reads)].log_softmax(1)


def divergence(
    lm: LanguageModel, rows: Sequence[LabelledRow], weights: dict[str, Tensor]
) -> Tensor:
    """Return the mean divergence from the model as it is wherever labels are read."""
    drifts = []
    for row in rows:
        before, now = read(lm, row, {}), read(lm, row, weights)
        drifts.append((before.exp() * (before - now)).sum(1))
    return torch.cat(drifts).mean()


def require_killed_is_whole(editor: HypernetworkEditor, folder: Path) -> State:
    """A training leaves the model alone and goes on where it was killed; returns its state."""
    lm = model("gpt2")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    whole = editor.train(lm, TAUGHT)
    for name, tensor in lm.model.state_dict().items():
        assert torch.equal(tensor, before[name])

    class Killed(Exception):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise Killed

    checkpoint = folder / "part.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        clock = iter(range(0, 10**6, 100))
        patch.setattr("corrigenda.training.loop.time.monotonic", clock.__next__)
        with pytest.raises(Killed):
            editor.train(lm, TAUGHT, TrainingJob(checkpoint, kill))
    assert checkpoint.is_file()
    resumed = editor.train(lm, TAUGHT, TrainingJob(checkpoint))
    assert dict(resumed.meta) == dict(whole.meta)
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(resumed.tensors[name], tensor)
    return whole


def require_own_state(
    editor: HypernetworkEditor, others: Sequence[HypernetworkEditor], folder: Path
) -> None:
    """A state survives the disk, and fits neither other editors nor another model."""
    lm = model("gpt2")
    state = editor.train(lm, TAUGHT).updated(meta={"base_digest": lm.digest()})
    loaded = State.load(state.save(folder / "state.safetensors"))
    assert editor.edit(lm, FACTS, loaded).patch == editor.edit(lm, FACTS, state).patch
    for none in (None, State()):
        with pytest.raises(MissingState, match="trained first"):
            editor.edit(lm, FACTS, none)
    for other in others:
        with pytest.raises(MissingState, match="other settings"):
            other.edit(lm, FACTS, state)
    with pytest.raises(WrongBase):
        editor.edit(model("gpt2", torch.float64), FACTS, state)
