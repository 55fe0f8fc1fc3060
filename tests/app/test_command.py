"""`corrigenda app` on the command line, before a model is loaded."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.support.tiny_on_disk import command


def test_help_loads_neither_torch_nor_gradio() -> None:
    code = (
        "import sys\n"
        "from corrigenda.cli.main import app\n"
        "app(['app', '--help'], standalone_mode=False)\n"
        "assert not {'torch', 'gradio', 'transformers'} & set(sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "Correct facts in a browser" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--host", "0.0.0.0"], "CG701"),
        (["--token", " "], "CG502"),
        (["--host", "0.0.0.0", "--token", "secret"], "CG301"),
    ],
)
def test_refused_before_anything_is_shown(
    arguments: list[str], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corrigenda.app.server.require_app_extra", lambda: None)
    ran = command("app", "/nowhere/model", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"{code} ")


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def find(name: str, *rest: object) -> object:
        return None if name == "gradio" else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    ran = command("app", "pocket")
    assert ran.code == 2
    assert ran.err.startswith("CG504 ")
    assert 'pip install "corrigenda[app]"' in ran.err
