"""The first line of progress: in a terminal, before what is slow is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")

# Ends the command where it would import torch, so that nothing is loaded.
_COMMAND = """
import sys

class Stop:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "torch":
            sys.stderr.write("<torch>")
            sys.stderr.flush()
            raise SystemExit(3)

sys.meta_path.insert(0, Stop())
sys.argv = ["corrigenda", *{arguments!r}]
from corrigenda.cli.main import run
run()
"""

_COMMANDS = {
    "edit": ["edit", "pocket", "The capital of France is", "--target", "Rome"],
    "fit": ["fit", "pocket"],
    "ask": ["ask", "pocket", "The capital of France is"],
    "trace": ["trace", "pocket", "The capital of France is"],
    "neurons": ["neurons", "pocket", "The capital of France is"],
}


def run_in_terminal(arguments: list[str]) -> tuple[int, str, str]:
    """Run a command whose stderr is a terminal; its status, stdout and what the terminal got."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", _COMMAND.format(arguments=arguments)]
    environment = {**os.environ, "TERM": "xterm"} | {"CORRIGENDA_PROGRESS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = bytearray()
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # how Linux ends a terminal whose other side is closed
            pass
        assert process.stdout is not None
        printed = process.stdout.read().decode()
    os.close(ours)
    return process.returncode, printed, shown.decode(errors="replace")


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_first_line_comes_before_torch(name: str) -> None:
    status, printed, shown = run_in_terminal(_COMMANDS[name])
    assert status == 3
    assert shown.index("loading pocket") < shown.index("<torch>")
    assert printed == ""


def test_json_on_stdout_is_alone() -> None:
    status, printed, shown = run_in_terminal([*_COMMANDS["edit"], "--json"])
    assert (status, printed) == (3, "")
    assert "loading pocket" in shown


def test_nothing_is_drawn_off_a_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _COMMAND.format(arguments=_COMMANDS["edit"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "<torch>")
