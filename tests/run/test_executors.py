"""Who does the work makes no difference."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from corrigenda.errors import BadConfig, MissingExtra
from corrigenda.run import plan, runner
from corrigenda.run.executors import RayExecutor, RunJob, _RayWorker, make_executor
from corrigenda.run.prober import Answer, Query
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


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="needs Ray (extra ray)")
def test_ray_gives_the_rows_of_one_process(tmp_path: Path) -> None:
    model = str(save_tiny(tmp_path / "model"))
    for regime in ({"kind": "single"}, {"kind": "sequential", "length": 2}):
        spec = make(model=model, regime=regime)
        local = runner.run(spec, folder=tmp_path / "local")
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("CORRIGENDA_CACHE", str(tmp_path / "other"))
            ray = RayExecutor(2)
            assert torch.get_num_threads() == 1
            spread = runner.run(spec, folder=tmp_path / "ray", executor=ray)
        assert spread.rows == local.rows
        assert spread.manifest.run == local.manifest.run


def test_all_that_travels_to_a_worker_arrives(tmp_path: Path) -> None:
    """Job, units, questions and parts are pickled on the way; a worker there gives equal rows."""
    spec = make(model=str(save_tiny(tmp_path / "model")), ask={"roles": ["reliability"]})
    local = runner.run(spec, folder=tmp_path / "local")
    data = plan.load_data(spec)
    job = RunJob(spec, local.manifest.run, local.manifest.model_digest)

    def sent(value: Sent) -> Sent:
        return pickle.loads(pickle.dumps(value))

    actor = _RayWorker(sent(job), 1)
    before: dict[Query, Answer] = {}
    for block in plan.plan_queries(spec, data.cases):
        before |= zip(block, sent(actor.ask_unedited(sent(block))), strict=True)
    parts = [
        part
        for unit in plan.plan_units(spec, data.cases)
        for part in sent(actor.run_unit(sent(unit), sent(before), frozenset()))
    ]
    assert [row for part in parts for row in part.rows] == local.rows
