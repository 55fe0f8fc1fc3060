"""Ctrl-C at any moment of an evaluation: the model is restored, and the run can be resumed.

`CORRIGENDA_INTERRUPTS` sets how often the slow test interrupts (default 50).
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from corrigenda.lm.model import LanguageModel
from corrigenda.run import runner
from corrigenda.run.spec import RunSpec
from tests.run.conftest import make

pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"),
    reason="an interrupt at a chosen moment needs POSIX timers",
)

SPECS = {
    "single": make(),
    "sequential": make(
        editor={"name": "ultraedit", "options": {"layers": [0, 1], "learning_rate": 0.02}},
        regime={"kind": "sequential", "checkpoints": [2]},
        health={"texts": ["Rome is a city in Italy."], "rollback_above": 1.2},
    ),
    "side": make(editor={"name": "grace", "options": {"layer": 1, "steps": 2}}),
}
MOMENTS = int(os.environ.get("CORRIGENDA_INTERRUPTS", "50"))


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raise KeyboardInterrupt in this thread after a time, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    # Again each second: Python drops an interrupt that arrives in a finaliser.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupt_at_random(
    lm: LanguageModel, spec: RunSpec, folder: Path, moments: int, seed: int
) -> int:
    """Interrupt a run until it ends, again and again; returns how often it was."""
    digest = lm.digest()
    begin = time.perf_counter()
    whole = runner.run(spec, lm=lm, folder=folder / "whole").rows
    seconds = time.perf_counter() - begin
    draw, count, ended = random.Random(seed), 0, 0
    with warnings.catch_warnings():
        # Nothing waits for a lock that an interrupted run left.
        warnings.simplefilter("error")
        while count < moments:
            place = folder / f"interrupted{ended}"
            try:
                with interrupted_after(draw.uniform(0.02, 0.6) * seconds):
                    rows = runner.run(spec, lm=lm, folder=place).rows
            except KeyboardInterrupt:
                count += 1
                assert not len(lm.patches)
                assert lm.digest() == digest
            else:
                assert rows == whole
                ended += 1
        assert runner.run(spec, lm=lm, folder=place).rows == whole
    assert lm.digest() == digest
    return ended


@pytest.mark.parametrize("name", SPECS)
def test_an_interrupt_restores_the_model_and_the_run_resumes(
    name: str, lm: LanguageModel, tmp_path: Path
) -> None:
    interrupt_at_random(lm, SPECS[name], tmp_path, moments=4, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_interrupts_at_many_random_moments(name: str, lm: LanguageModel, tmp_path: Path) -> None:
    assert interrupt_at_random(lm, SPECS[name], tmp_path, moments=MOMENTS, seed=20261201)
