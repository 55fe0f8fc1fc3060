"""`corrigenda serve` refuses what is unsafe or impossible before a model is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from corrigenda.cli import serve as module
from tests.support.tiny_on_disk import Run

SECRET = "never-to-be-printed"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--host", "0.0.0.0"], "CG701"),
        (["--host", "::"], "CG701"),
        (["--patch", "/nowhere/p.safetensors"], "CG402"),
        (["--patch", "name=/nowhere/p.safetensors"], "CG402"),
        (["--token", " "], "CG502"),
        (["--patch-folder", "/nowhere"], "CG502"),
    ],
)
def test_refused_before_a_model_is_loaded(run: Run, arguments: list[str], code: str) -> None:
    ran = run("serve", "/nowhere/model", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"{code} ")


def test_token_comes_from_the_environment_and_is_never_printed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRIGENDA_TOKEN", SECRET)
    monkeypatch.setenv("CORRIGENDA_ADMIN_TOKEN", SECRET)
    started = run("serve", "/nowhere/model", "--host", "0.0.0.0")
    assert started.err.startswith("CG301 ")
    for ran in (started, run("serve", "--help")):
        assert SECRET not in ran.out + ran.err


def test_patches_are_named_or_not(tmp_path: Path) -> None:
    file = tmp_path / "a=b.safetensors"
    file.touch()
    split = module._split
    assert split("p.safetensors") == ("", "p.safetensors")
    assert split("new=p.safetensors") == ("new", "p.safetensors")
    assert split(str(file)) == ("", str(file))


def test_a_patch_of_another_model_is_refused(run: Run, patch_file: Path) -> None:
    ran = run("serve", "pocket", "--patch", patch_file, "--port", "0")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("CG401 ")


def test_without_the_extra_it_is_said_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ran = run("serve", "pocket")
    assert ran.code == 2
    assert ran.err.startswith("CG504 ")
    assert 'pip install "corrigenda[serve]"' in ran.err


def test_nothing_of_it_is_imported_unless_used() -> None:
    program = (
        "import sys, corrigenda\n"
        "from typer.testing import CliRunner\n"
        "from corrigenda.cli.main import app\n"
        "CliRunner().invoke(app, ['serve', '--help'])\n"
        "corrigenda.serve\n"
        "heavy = {'fastapi', 'uvicorn', 'starlette', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import corrigenda.api\n"
        "heavy = {'fastapi', 'uvicorn', 'starlette'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
