"""Who does the work makes no difference."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from corrigenda.errors import BadConfig, MissingExtra
from corrigenda.run import executors, plan, runner
from corrigenda.run.executors import RayExecutor, RunJob, _RayWorker, make_executor
from corrigenda.run.queries import Answer, Query
from tests.run.conftest import make
from tests.support.tiny_on_disk import save_tiny

Sent = TypeVar("Sent")
HAS_RAY = importlib.util.find_spec("ray") is not None


def test_unknown_executors_are_refused() -> None:
    with pytest.raises(BadConfig, match='no executor "rey"'):
        make_executor("rey")


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_the_message_says_what_to_install() -> None:
    with pytest.raises(MissingExtra, match=r"corrigenda\[ray\]"):
        make_executor("ray")


@pytest.fixture(scope="module")
def ray() -> Iterator[RayExecutor]:
    """Two workers on this machine, for all tests."""
    with pytest.MonkeyPatch.context() as patched:
        # Where nothing needs it, no cluster of somebody else.
        patched.delenv("RAY_ADDRESS", raising=False)
        yield RayExecutor(2)
        importlib.import_module("ray").shutdown()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="needs Ray (extra ray)")
def test_ray_gives_the_rows_of_one_process(tmp_path: Path, ray: RayExecutor) -> None:
    """Two methods and two regimes on the same two workers, which stay the same processes."""
    model = str(save_tiny(tmp_path / "model"))
    seen: set[tuple[int, ...]] = set()
    for regime in ({"kind": "single"}, {"kind": "sequential", "length": 2}):
        for steps in (1, 2):
            editor = {"name": "ft-m", "options": {"layer": 1, "epochs": steps}}
            spec = make(model=model, regime=regime, editor=editor)
            local = runner.run(spec, folder=tmp_path / "local")
            spread = runner.run(spec, folder=tmp_path / "ray", executor=ray)
            assert spread.rows == local.rows
            assert spread.manifest.run == local.manifest.run
            seen.add(tuple(ray.processes(RunJob(spec, "", ""))))
    assert len(seen) == 1
    assert len(set(seen.pop())) == 2


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="needs Ray (extra ray)")
def test_the_work_of_a_lost_worker_is_done_again(tmp_path: Path, ray: RayExecutor) -> None:
    spec = make(model=str(save_tiny(tmp_path / "model")))
    local = runner.run(spec, folder=tmp_path / "local")
    victims = ray.processes(RunJob(spec, "", ""))
    killed: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        if stage != "unedited model" and done == 1 and not killed:
            killed.append(victims[0])
            os.kill(victims[0], signal.SIGKILL)

    spread = runner.run(spec, folder=tmp_path / "ray", executor=ray, progress=kill)
    assert killed
    assert spread.rows == local.rows
    now = ray.processes(RunJob(spec, "", ""))
    assert victims[0] not in now
    assert victims[1] in now


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="needs Ray (extra ray)")
def test_more_workers_than_there_is_room_for_are_refused(
    tmp_path: Path, ray: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "_RESERVING_SECONDS", 1.0)
    job = RunJob(make(model=str(save_tiny(tmp_path / "model"))), "", "")
    with pytest.raises(BadConfig, match="no room for 9 workers"):
        RayExecutor(9).processes(job)


def test_all_that_travels_to_a_worker_arrives(tmp_path: Path) -> None:
    """Job, units, questions and parts are pickled on the way; a worker there gives equal rows."""
    spec = make(model=str(save_tiny(tmp_path / "model")), ask={"roles": ["reliability"]})
    local = runner.run(spec, folder=tmp_path / "local")
    data = plan.load_data(spec)
    job = RunJob(spec, local.manifest.run, local.manifest.model_digest)

    def sent(value: Sent) -> Sent:
        return pickle.loads(pickle.dumps(value))

    actor = _RayWorker(1)
    before: dict[Query, Answer] = {}
    for block in plan.plan_queries(spec, data.cases):
        before |= zip(block, sent(actor.ask_unedited(sent(job), sent(block))), strict=True)
    parts = [
        part
        for unit in plan.plan_units(spec, data.cases)
        for part in sent(actor.run_unit(sent(job), sent(unit), sent(before), frozenset()))
    ]
    assert [row for part in parts for row in part.rows] == local.rows
