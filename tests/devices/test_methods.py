"""Every method on one virtual device, and on a model whose later blocks are on another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from corrigenda.catalogue import METHODS
from tests.devices.cases import CASES

HERE = Path(__file__).parent
KNOWN_FAULTS: dict[tuple[str, str], str] = {}

Ask = Callable[[str, str], dict[str, object]]


def test_every_method_has_a_case() -> None:
    assert set(CASES) == set(METHODS)


@pytest.fixture(scope="session")
def guard(request: pytest.FixtureRequest) -> Path:
    """Compile what lets torch accept virtual devices, once for a version of torch and source."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("virtual devices are compiled with g++")
    source = HERE / "guard.cpp"
    folder = Path(request.config.cache.mkdir("virtual_devices"))
    library = folder / f"guard-{torch.__version__}-{int(source.stat().st_mtime)}.so"
    if not library.exists():
        home = Path(torch.__file__).parent
        new = folder / f"{library.stem}-{os.getpid()}.so"
        headers = [home / "include", home / "include/torch/csrc/api/include"]
        flags = ["-std=c++20", "-O1", "-shared", "-fPIC", f"-L{home / 'lib'}"]
        flags += [f"-I{one}" for one in headers]
        command = [compiler, *flags, str(source), "-o", str(new), "-lc10", "-ltorch_cpu"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        new.rename(library)
    return library


@pytest.fixture(scope="session")
def ask(guard: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Return a function that tries a method on a layout, in one process for all."""
    folder = tmp_path_factory.mktemp("devices")
    libraries = Path(torch.__file__).parent / "lib"
    settings = {
        "LD_PRELOAD": str(guard),
        "LD_LIBRARY_PATH": f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "CORRIGENDA_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    with (
        (folder / "errors.txt").open("w") as errors,
        subprocess.Popen(
            [sys.executable, str(HERE / "worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
            env=os.environ | settings,
        ) as worker,
    ):
        assert worker.stdin is not None
        assert worker.stdout is not None
        requests, replies = worker.stdin, worker.stdout

        def request(method: str, layout: str) -> dict[str, object]:
            requests.write(f"{method} {layout}\n")
            requests.flush()
            reply = replies.readline()
            assert reply, (folder / "errors.txt").read_text()[-3000:]
            return json.loads(reply)

        yield request
        requests.close()


@pytest.mark.parametrize("layout", ["one", "split", "apart"])
@pytest.mark.parametrize("method", CASES)
def test_method(method: str, layout: str, ask: Ask) -> None:
    reply = ask(method, layout)
    assert not reply["fault"], reply["fault"]
