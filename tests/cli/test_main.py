"""The command starts quickly, explains itself, and tells misuse from findings."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import corrigenda
from corrigenda.cli.main import app

COMMANDS = (
    "edit assess ask fit methods models benchmarks evaluate report compare diff compose transform "
    "export restore serve trace neurons doctor cache pocket plan fix"
).split()
FORMER = ("bench", "benchmark", "merge", "revert")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def processor_seconds() -> float:
    """Time spent by finished children: unlike the clock's, it does not grow on a busy machine."""
    spent = os.times()
    return spent.children_user + spent.children_system


def test_help_lists_every_command_within_half_a_second() -> None:
    seconds = []
    for _ in range(3):
        start = processor_seconds()
        done = subprocess.run(
            [sys.executable, "-m", "corrigenda", "--help"], capture_output=True, text=True
        )
        seconds.append(processor_seconds() - start)
        assert done.returncode == 0
    assert all(f" {name} " in done.stdout for name in COMMANDS)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_exits_ok(arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert "Usage: corrigenda" in out


@pytest.mark.parametrize("name", FORMER)
def test_former_names_have_no_aliases(name: str) -> None:
    code, out, err = run(name)
    assert (code, out) == (2, "")
    assert "No such command" in err


def test_neither_help_nor_import_loads_torch() -> None:
    program = (
        "import sys, corrigenda\n"
        "from typer.testing import CliRunner\n"
        "from corrigenda.cli.main import app\n"
        "for arguments in (['--help'], ['edit', '--help'], ['pocket', '--help'], ['edti']):\n"
        "    CliRunner().invoke(app, arguments)\n"
        "corrigenda.Fact(prompt='a', target='b')\n"
        "heavy = {'torch', 'transformers', 'polars', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_version() -> None:
    assert run("--version") == (0, f"{corrigenda.__version__}\n", "")


def test_mistyped_command_is_misuse_with_a_suggestion() -> None:
    code, out, err = run("edti", "pocket")
    assert (code, out) == (2, "")
    assert "Did you mean 'edit'?" in err


def test_unknown_option_is_misuse() -> None:
    code, out, err = run("edit", "pocket", "a", "--targte", "b")
    assert (code, out) == (2, "")
    assert "--target" in err


def test_coded_error_on_stderr_and_as_json_on_stdout() -> None:
    arguments = ("edit", "pocket", "The Space Needle is in", "-s", "Space needle", "-t", "Rome")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith('CG103 SubjectNotFound: "Space needle" does not occur')
    code, out, err = run(*arguments, "--json")
    assert code == 2
    assert json.loads(out)["error"]["code"] == "CG103"
    assert err.startswith("CG103 ")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["edit", "pocket", "The capital of France is"], "CG502"),
        (["edit", "pocket", "The capital of France is", "-t", " "], "CG102"),
        (["edit", "pocket", "France", "-t", "Rome", "--facts", "f.jsonl"], "CG502"),
        (["edit", "pocket", "--facts", "/nowhere/f.jsonl"], "CG101"),
        (["edit", "pocket", "France is", "-t", "Rome", "--set", "steps"], "CG502"),
        (["edit", "pocket", "France is", "-t", "Rome", "--set", "state=1"], "CG502"),
        (["edit", "pocket", "France is", "-t", "Rome", "-o", "/nowhere/p.safetensors"], "CG601"),
        (["compose", "a.safetensors", "-o", "/nowhere/p.safetensors"], "CG601"),
        (["diff", "/nowhere/p.safetensors"], "CG402"),
        (["restore", "/nowhere", "-o", "/tmp/never"], "CG406"),
        (["pocket", "facts", "-s", "Atlantis"], "CG103"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(arguments: list[str], code: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"{code} ")


def test_all_bad_lines_of_a_facts_file_are_listed(tmp_path) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"prompt": \n{"prompt": "a", "target": "b", "x": 1}\n')
    code, _, err = run("edit", "pocket", "--facts", str(file))
    assert code == 2
    assert err.startswith("CG101 MalformedFacts: 3 bad line(s):")
    assert all(f"line {number}: " in err for number in (1, 3, 4))


def test_unexpected_failure_has_a_status_of_its_own() -> None:
    program = (
        "import corrigenda.cli.main as main\n"
        "def broken(*arguments, **options): raise RuntimeError('boom')\n"
        "main.app = broken\n"
        "main.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 70
    assert "RuntimeError: boom" in done.stderr


def test_pocket_facts() -> None:
    code, out, _ = run("pocket", "facts", "--subject", "France", "--json")
    assert code == 0
    facts = {fact["relation"]: fact["objects"] for fact in json.loads(out)["facts"]}
    assert facts["P36"] == ["Paris"]
    code, out, _ = run("pocket", "facts", "--subject", "France")
    assert code == 0
    assert "P36 capital" in out


def test_pocket_facts_suggests_a_subject() -> None:
    code, _, err = run("pocket", "facts", "--subject", "Frnace")
    assert code == 2
    assert 'Did you mean "France"?' in err
