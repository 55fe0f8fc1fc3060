"""Every method on one virtual device, and on a model whose later blocks are on another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from corrigenda.catalogue import METHODS
from tests.devices.cases import ANALYSES, CASES

HERE = Path(__file__).parent
REFUSED = {("adalora", "split"): "peft prunes adapters on one device only"}
WEIGHT_BYTES = 768 * 256 * 4  # of a down projection of the pocket model


class Reply(NamedTuple):
    """What came of a method: a fault if any, and what an edit moved.

    Attributes:
        traffic: Rows of kind, line, number and bytes, most bytes first.
    """

    fault: str
    traffic: list[tuple[str, str, int, int]]


Ask = Callable[[str, str, str], Reply]


def every(names: Iterable[str], *, always: Collection[str] = ()) -> pytest.MarkDecorator:
    """Try names on all layouts: split always, the others in the slow tier where not in `always`.

    The models on one device and with embeddings apart show little that the split one does not.
    """
    rows = []
    for name in names:
        rows.append(pytest.param(name, "split", id=f"{name}-split"))
        for layout in ("one", "apart"):
            marks = () if layout == "apart" and name in always else pytest.mark.slow
            rows.append(pytest.param(name, layout, id=f"{name}-{layout}", marks=marks))
    return pytest.mark.parametrize(("name", "layout"), rows)


def test_every_method_has_a_case() -> None:
    assert set(CASES) == set(METHODS.names())


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
    """Return a function that tries a method or analysis, in one process for all."""
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

        @cache
        def request(name: str, layout: str, attention: str) -> Reply:
            requests.write(f"{name} {layout} {attention}\n")
            requests.flush()
            reply = replies.readline()
            assert reply, (folder / "errors.txt").read_text()[-3000:]
            return Reply(**json.loads(reply))

        yield request
        requests.close()


@every(CASES, always=("rome", "memit", "emmet", "ft", "knowledge-neurons", "knowledge-editor"))
def test_method(name: str, layout: str, ask: Ask) -> None:
    fault, refusal = ask(name, layout, "eager").fault, REFUSED.get((name, layout))
    if refusal is None:
        assert not fault, fault
    else:
        assert "CG502" in fault
        assert refusal in fault


@every(ANALYSES, always=("neurons", "trace"))
def test_analysis(name: str, layout: str, ask: Ask) -> None:
    fault = ask(name, layout, "eager").fault
    assert not fault, fault


@every(("memit", "ft", "grace", "trace", "neurons", "ask"))
def test_other_attention(name: str, layout: str, ask: Ask) -> None:
    """One of each way to run a model: searched, trained, routed, attributed, continued."""
    fault = ask(name, layout, "sdpa").fault
    assert not fault, fault


@every(("rome", "memit", "emmet", "pmet", "alphaedit"))
def test_no_weight_goes_to_the_host(name: str, layout: str, ask: Ask) -> None:
    """The digest of a model is taken there; nothing else copies a weight in an edit."""
    copies = [row for row in ask(name, layout, "eager").traffic if row[0] == "to host"]
    large = [row for row in copies if row[3] >= WEIGHT_BYTES]
    assert {line.partition(":")[0] for _, line, _, _ in large} <= {"lm/digest.py"}


@every(("rome", "memit", "pmet"))
def test_the_host_waits_once_in_each_step_of_the_search(name: str, layout: str, ask: Ask) -> None:
    rows = ask(name, layout, "eager").traffic
    inside = [row for row in rows if row[1].startswith("engines/locate/target_")]
    waits = sum(row[2] for row in inside if row[0] == "wait")
    assert 1 <= waits <= CASES[name].options["steps"]
