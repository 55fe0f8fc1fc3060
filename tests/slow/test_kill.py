"""Killing `corrigenda fit` and `corrigenda edit -o` at random moments leaves nothing corrupt.

`CORRIGENDA_KILLS` sets how often each test kills (default 50 each, 100 together).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from safetensors import safe_open

from corrigenda.patch import load_patch
from tests.tiny_on_disk import nearest_fact, save_tiny

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("CORRIGENDA_KILLS", "100")) // 2
SEED = 20260101


def start(arguments: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "corrigenda", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def moments_of_death(arguments: list[str], environment: Mapping[str, str]) -> Iterator[float]:
    """Random moments of a run; half of them in its last third, where files are written."""
    begin = time.perf_counter()
    assert start(arguments, environment).wait() in (0, 1)
    whole = time.perf_counter() - begin
    draw = random.Random(SEED)
    for number in range(KILLS):
        yield draw.uniform(0.0 if number % 2 else 0.66, 1.02) * whole


def kill_after(seconds: float, process: subprocess.Popen[bytes]) -> bool:
    """Tell whether the process was killed, rather than done before."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def is_part(path: Path) -> bool:
    """Tell whether a file is an unfinished one, which no reader opens."""
    return path.name.startswith(".") and ".tmp-" in path.name


def test_killed_fit_leaves_a_cache_that_can_be_read(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("The Space Needle is a tower in Seattle, near the sea. " * 2000)
    arguments = ["fit", str(model), "-m", "memit", "--text", str(text), "--set", "layers=[1,2]"]
    caches = {"XDG_CACHE_HOME": str(tmp_path / "whole")}
    killed = 0
    for number, seconds in enumerate(moments_of_death(arguments, caches)):
        # Every third run starts with an empty cache, the others with what killed ones left.
        cache = tmp_path / f"cache{number // 3}"
        killed += kill_after(seconds, start(arguments, {"XDG_CACHE_HOME": str(cache)}))
        for path in files_of(cache):
            if path.suffix == ".safetensors" and not is_part(path):
                with safe_open(path, "pt") as opened:
                    assert list(opened.keys())
    assert killed >= KILLS // 2
    last = tmp_path / f"cache{(KILLS - 1) // 3}"
    assert start(arguments, {"XDG_CACHE_HOME": str(last)}).wait() == 0
    whole = {path.name: path.read_bytes() for path in files_of(tmp_path / "whole")}
    assert whole
    assert {p.name: p.read_bytes() for p in files_of(last) if not is_part(p)} == whole


def test_killed_edit_leaves_a_whole_patch_or_none(tmp_path: Path) -> None:
    import corrigenda

    model = save_tiny(tmp_path / "model")
    fact = nearest_fact(corrigenda.load(model))
    file = tmp_path / "out" / "patch.safetensors"
    file.parent.mkdir()
    arguments = ["edit", str(model), fact.prompt, "-s", str(fact.subject), "-t", fact.target]
    arguments += ["-o", str(file), "--layer", "1", "--set", "steps=3"]
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    killed = 0
    reference = None
    for number, seconds in enumerate(moments_of_death(arguments, environment)):
        reference = reference or load_patch(file)
        if number % 2:
            file.unlink(missing_ok=True)
        killed += kill_after(seconds, start(arguments, environment))
        if file.exists():
            assert load_patch(file) == reference
        assert {path for path in file.parent.iterdir() if not is_part(path)} <= {file}
    assert killed >= KILLS // 2
    assert start(arguments, environment).wait() in (0, 1)
    assert list(file.parent.iterdir()) == [file]
