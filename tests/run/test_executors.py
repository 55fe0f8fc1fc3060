"""Who does the work makes no difference."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from corrigenda.errors import BadConfig, MissingExtra
from corrigenda.run import runner
from corrigenda.run.executors import Ray, executor
from tests.run.conftest import make
from tests.tiny_on_disk import save_tiny

HAS_RAY = importlib.util.find_spec("ray") is not None


def test_unknown_executors_are_refused() -> None:
    with pytest.raises(BadConfig, match='no executor "rey"'):
        executor("rey")


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_the_message_says_what_to_install() -> None:
    with pytest.raises(MissingExtra, match=r"corrigenda\[ray\]"):
        executor("ray")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="needs Ray (extra ray)")
def test_ray_gives_the_rows_of_one_process(tmp_path: Path) -> None:
    model = str(save_tiny(tmp_path / "model"))
    for regime in ({"kind": "single"}, {"kind": "sequential", "length": 2}):
        spec = make(model=model, regime=regime)
        local = runner.run(spec, folder=tmp_path / "local")
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("CORRIGENDA_CACHE", str(tmp_path / "other"))
            ray = Ray(2)
            assert torch.get_num_threads() == 1
            spread = runner.run(spec, folder=tmp_path / "ray", executor=ray)
        assert spread.rows == local.rows
        assert spread.manifest.run == local.manifest.run
