"""The measurement of a card runs on a tiny shape without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_figure_is_there(tmp_path: Path) -> None:
    environment = os.environ | {"CORRIGENDA_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "perf/gpu.py"), "--device", "cpu", "--tiny"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["left out"] == []
    for begin in ("statistics", "rome", "plain search", "memit, 1", "memit, 4", "ultraedit"):
        assert any(name.startswith(begin) and name.endswith("peak GB") for name in found), begin
    assert found["evaluation: times faster"] > 0
    assert found["memit, 4 facts: times faster"] > 0
    assert found["H200 expected: memit, 256 facts, a fact"] > 0
    assert 16 < found["H200 expected: memit, 256 facts, GB"] < 139


def test_what_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    environment = os.environ | {"CORRIGENDA_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "perf/gpu.py"), "--device", "cpu", "--tiny"]
    ran = subprocess.run(
        [*command, "--minutes", "0"], capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert any(name.startswith("rome") for name in found["left out"])
