"""Killing `fit`, `edit -o` or the reading of a GGUF file at random moments leaves nothing corrupt.

`CORRIGENDA_KILLS` sets how often each test kills: half as often (default 50).
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import corrigenda
from corrigenda.patch import load_patch
from corrigenda.state import State
from corrigenda.testing.tiny import tiny_model
from tests.support.tiny_gguf import write_gguf
from tests.support.tiny_on_disk import nearest_fact, save_tiny

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


def kill_at_random(
    arguments: list[str], environment: Callable[[int], Mapping[str, str]]
) -> Iterator[int]:
    """Start and kill until `KILLS` runs have died; yields the number of each run, after its end.

    Half of the moments lie in the last third of a run, where files are written. How long a run
    takes is measured again whenever one ends by itself.
    """
    begin = time.perf_counter()
    assert start(arguments, environment(0)).wait() in (0, 1)
    whole = time.perf_counter() - begin
    draw = random.Random(SEED)
    killed = 0
    for number in itertools.count(1):
        assert number <= 4 * KILLS, f"only {killed} of {number} runs could be killed"
        begin = time.perf_counter()
        process = start(arguments, environment(number))
        try:
            process.wait(timeout=draw.uniform(0.0 if number % 2 else 0.66, 1.0) * whole)
            whole = time.perf_counter() - begin
            assert process.returncode in (0, 1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
        yield number
        if killed == KILLS:
            return


def states_in(folder: Path) -> list[Path]:
    """Every finished state in a cache."""
    return [path for path in sorted(folder.rglob("*.safetensors")) if not is_part(path)]


def is_part(path: Path) -> bool:
    """Tell whether a file is an unfinished one, which no reader opens."""
    return path.name.startswith(".") and ".tmp-" in path.name


def test_killed_fit_leaves_a_cache_that_can_be_read(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("The Space Needle is a tower in Seattle, near the sea. " * 2000)
    arguments = ["fit", str(model), "-m", "memit", "--text", str(text), "--set", "layers=[1,2]"]

    def cache(number: int) -> Path:
        """The run before all others is whole; three in a row find what the ones before left."""
        return tmp_path / f"cache{(number + 2) // 3}"

    last = 0
    for number in kill_at_random(arguments, lambda n: {"CORRIGENDA_CACHE": str(cache(n))}):
        last = number
        for path in states_in(cache(number)):
            assert State.load(path).tensors
    assert start(arguments, {"CORRIGENDA_CACHE": str(cache(last))}).wait() == 0
    whole = {path.name: State.load(path) for path in states_in(cache(0))}
    assert len(whole) == 2
    assert {path.name: State.load(path) for path in states_in(cache(last))} == whole


def test_killed_edit_leaves_a_whole_patch_or_none(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    fact = nearest_fact(corrigenda.load(model))
    file = tmp_path / "out" / "patch.safetensors"
    file.parent.mkdir()
    arguments = ["edit", str(model), fact.prompt, "-s", str(fact.subject), "-t", fact.target]
    arguments += ["-o", str(file), "--layer", "1", "--set", "steps=3"]
    environment = {"CORRIGENDA_CACHE": str(tmp_path / "cache")}
    reference = None
    for number in kill_at_random(arguments, lambda _: environment):
        if file.exists():
            patch = load_patch(file)
            reference = reference or patch
            assert patch == reference
        assert {path for path in file.parent.iterdir() if not is_part(path)} <= {file}
        if number % 2:
            file.unlink(missing_ok=True)
    assert start(arguments, environment).wait() in (0, 1)
    assert list(file.parent.iterdir()) == [file]
    assert load_patch(file) == reference


def test_killed_dequantising_leaves_a_whole_model_or_none(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="GGUF files are read by optional packages (extra gguf)")
    file = write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf")
    arguments = ["ask", str(file), "The river is"]
    models = tmp_path / "cache" / "models"
    environment = {"CORRIGENDA_CACHE": str(tmp_path / "cache")}
    reference: dict[str, bytes] = {}

    def read() -> dict[str, bytes]:
        made = [path for path in models.iterdir() if not path.name.startswith(".")]
        assert len(made) <= 1
        return {one.name: one.read_bytes() for folder in made for one in folder.iterdir()}

    for number in kill_at_random(arguments, lambda _: environment):
        if models.is_dir() and (found := read()):
            reference = reference or found
            assert found == reference
            if number % 3 == 0:
                shutil.rmtree(models)
    assert start(arguments, environment).wait() == 0
    assert read() == reference
    assert not [path for path in models.iterdir() if is_part(path)]


def test_two_processes_at_once_share_one_model(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="GGUF files are read by optional packages (extra gguf)")
    file = write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf")
    environment = {"CORRIGENDA_CACHE": str(tmp_path / "cache")}
    both = [start(["ask", str(file), "The river is"], environment) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    models = tmp_path / "cache" / "models"
    assert len([path for path in models.iterdir() if not path.name.startswith(".")]) == 1
    assert not [path for path in models.iterdir() if is_part(path)]
