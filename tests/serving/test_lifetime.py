"""What ends in the middle leaves nothing: streams, requests, the server, its process."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI

from corrigenda.lm.model import LanguageModel
from corrigenda.patch import Patch
from corrigenda.serving.app import create_app
from tests.support.serving import Serving, serving, weights

PROMPT = "The capital of France is"
LONG = {"model": "pocket", "prompt": "The", "max_tokens": 400, "temperature": 1}
# Nothing ends these answers early but their length.
LONG |= {"seed": 1, "n": 2}
CHECKPOINT = Path(str(files("corrigenda").joinpath("pocket", "pocket")))


@pytest.fixture(scope="module")
def server(pocket: LanguageModel, tuned: Patch) -> Generator[Serving]:
    lm = copy.deepcopy(pocket)
    lm.model.generation_config.eos_token_id = None
    with serving(lm, tuned) as running:
        yield running


def num_tokens(server: Serving) -> int:
    return sum(server.scheduler.num_tokens.values())


def test_client_that_leaves_a_stream_stops_its_generation(server: Serving) -> None:
    before = num_tokens(server)
    stream = server.client().completions.create(**LONG, stream=True)
    for _, _chunk in zip(range(5), stream, strict=False):
        pass
    stream.close()
    server.wait_until_idle()
    assert num_tokens(server) - before < 400


def test_client_that_leaves_before_a_whole_answer_stops_its_generation(server: Serving) -> None:
    before = num_tokens(server)
    with server.http() as client, pytest.raises(httpx2.ReadTimeout):
        client.post("/v1/completions", json=LONG, timeout=httpx2.Timeout(30, read=0.3))
    server.wait_until_idle()
    assert num_tokens(server) - before < 800


def test_client_that_leaves_while_it_waits_is_forgotten(server: Serving) -> None:
    before = num_tokens(server)
    held = server.scheduler.call(lambda: time.sleep(1.5))
    with server.http() as client, pytest.raises(httpx2.ReadTimeout):
        client.post("/v1/completions", json=LONG, timeout=httpx2.Timeout(30, read=0.3))
    held.result()
    server.wait_until_idle()
    assert num_tokens(server) == before


def test_others_are_answered_while_a_long_answer_runs(server: Serving) -> None:
    """A long stream of one name keeps neither its own name nor the other from answering."""
    stream = server.client().completions.create(**LONG, stream=True)
    next(iter(stream))
    for name in ("pocket", "pocket-edited"):
        reply = server.client().completions.create(
            model=name, prompt=PROMPT, max_tokens=3, temperature=0
        )
        assert reply.choices[0].text[:5] == {"pocket": " Pari"}.get(name, " Rome")
    assert server.scheduler.num_running >= 2
    stream.close()
    server.wait_until_idle()


def test_end_of_the_server_takes_patches_off_to_the_bit(
    pocket: LanguageModel, tuned: Patch
) -> None:
    lm = copy.deepcopy(pocket)
    before = weights(lm)
    with serving(lm, tuned) as running:
        stream = running.client().completions.create(
            **(LONG | {"model": "pocket-edited"}), stream=True
        )
        next(iter(stream))
        assert weights(lm) != before
        stream.close()
    assert weights(lm) == before
    assert len(lm.patches) == 0


def test_answers_are_broken_off_by_an_error_when_the_server_ends(
    pocket: LanguageModel,
) -> None:
    lm = copy.deepcopy(pocket)
    with serving(lm) as running, running.http() as client:
        with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as reply:
            lines = reply.iter_lines()
            next(lines)
            running.scheduler.close()
            rest = [line for line in lines if line]
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "stopping"
        assert rest[-1] == "data: [DONE]"
        assert client.get("/health").status_code == 503
        reply = client.post("/v1/completions", json=LONG)
        assert reply.status_code == 503


def test_app_that_is_not_started_leaves_the_weights(pocket: LanguageModel, tuned: Patch) -> None:
    lm = copy.deepcopy(pocket)
    before = weights(lm)
    create_app(lm, tuned)
    assert weights(lm) == before


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@contextmanager
def process(folder: Path, *arguments: str) -> Generator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own with an empty folder for temporary files."""
    (folder / "tmp").mkdir()
    (folder / "cache").mkdir()
    environment = os.environ | {
        "TMPDIR": str(folder / "tmp"),
        "CORRIGENDA_CACHE": str(folder / "cache"),
        "CORRIGENDA_TOKEN": "in-the-environment",
    }
    started = subprocess.Popen(
        [sys.executable, "-m", "corrigenda", "serve", "pocket", "--port", "0", *arguments],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line + started.communicate()[1]
        assert "in-the-environment" not in line
        yield started, line.split("/v1")[0]
    finally:
        started.kill()
        started.communicate()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_process_that_is_ended_in_mid_stream_leaves_nothing(
    how: signal.Signals, tuned: Patch, tmp_path: Path
) -> None:
    tuned.save(tmp_path / "patch.safetensors")
    before = digests(CHECKPOINT)
    with process(tmp_path, "--patch", "patch.safetensors") as (running, address):
        client = OpenAI(base_url=f"{address}/v1", api_key="in-the-environment", max_retries=0)
        assert [one.id for one in client.models.list()] == ["pocket", "pocket-edited"]
        stream = client.completions.create(**(LONG | {"model": "pocket-edited"}), stream=True)
        next(iter(stream))
        running.send_signal(how)
        if how != signal.SIGKILL:
            stream.close()
        out, err = running.communicate(timeout=60)
    assert running.returncode == {signal.SIGINT: 0}.get(how, -how)
    assert (out, err) == ("", "")
    assert digests(CHECKPOINT) == before
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == []
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"patch.safetensors", "tmp", "cache"}
