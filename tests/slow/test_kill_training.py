"""A training of MEND that is killed again and again ends as one that never was.

`CORRIGENDA_KILLS` sets how often it is killed (default 20).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from corrigenda.facts import Fact
from corrigenda.state import State
from tests.support.tiny_on_disk import save_tiny

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("CORRIGENDA_KILLS", "20"))
SEED = 20260101
# On one machine the result is the same to the bit; what is allowed for is a library that sums in
# another order in another process.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-7}

# As `corrigenda` itself, with checkpoints every fifth of a second instead of every half minute.
PROGRAM = """
import functools, sys
from corrigenda.engines import hypernetwork
hypernetwork.Schedule = functools.partial(hypernetwork.Schedule, checkpoint_seconds=0.2)
from corrigenda.cli.main import run
run()
"""
STEPS = 120
FACTS = tuple(
    Fact(
        prompt=f"{name} is in",
        subject=name,
        target=place,
        paraphrases=(f"{name} lies in", f"Where is {name}?"),
        neighbours=("Faro is in",),
    )
    for name in ("Arles", "Bergen", "Cork", "Delft", "Essen")
    for place in ("Chile", "Peru")
)


def start(model: Path, facts: Path, cache: Path) -> subprocess.Popen[bytes]:
    arguments = ["fit", str(model), "-m", "mend", "--training-set", str(facts)]
    for option in ("layers=[1,3]", "rank=8", "batch_size=2", "validate_every=10", f"steps={STEPS}"):
        arguments += ["--set", option]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "CORRIGENDA_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kept(cache: Path) -> list[Path]:
    """States of trainings that have ended; what is being written has a dot in front."""
    found = (cache / "trained").glob("[!.]*.safetensors")
    return [path for path in found if not path.name.endswith(".part.safetensors")]


def steps_done(cache: Path) -> int:
    """How far the checkpoint is, which must be whole at any moment."""
    found = list((cache / "trained").glob("[!.]*.part.safetensors"))
    return max((int(State.load(path).meta["steps"]) for path in found), default=0)


def result(cache: Path) -> State:
    (path,) = kept(cache)
    return State.load(path)


def require_same(ours: State, theirs: State) -> None:
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        torch.testing.assert_close(ours.tensors[name], tensor, **TOLERANCE, msg=name)
    best = [state.meta["mend"]["training"]["best_step"] for state in (ours, theirs)]
    assert best[0] == best[1]


def test_a_training_killed_at_random_moments_ends_as_one_that_was_not(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    facts = tmp_path / "facts.jsonl"
    facts.write_text("\n".join(json.dumps(asdict(fact)) for fact in FACTS))
    begin = time.perf_counter()
    assert start(model, facts, tmp_path / "whole").wait() == 0
    whole = time.perf_counter() - begin
    reference = result(tmp_path / "whole")
    draw = random.Random(SEED)
    killed, number, resumed = 0, 0, []
    while killed < KILLS:
        cache = tmp_path / f"cache{number}"
        process = start(model, facts, cache)
        try:
            assert process.wait(timeout=draw.uniform(0.3, 1.0) * whole) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
            resumed.append(steps_done(cache))
        else:
            require_same(result(cache), reference)
            number += 1
        assert number <= KILLS, "most runs end before they can be killed"
    assert start(model, facts, cache).wait() == 0
    require_same(result(cache), reference)
    assert not list((cache / "trained").glob("*.part.safetensors"))
    assert any(0 < steps < STEPS for steps in resumed), "no run was killed between two checkpoints"
