"""`corrigenda trace`, run in this process on a tiny model saved to disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from corrigenda.cli.main import app
from corrigenda.testing.tiny import tiny_model

PROMPT = "The tower of the Space Needle is in"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    lm = tiny_model("llama")
    lm.model.save_pretrained(path)
    lm.tokenizer.save_pretrained(path)
    return path


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["trace", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_draws_maps_and_saves_them(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = tmp_path / "map.png"
    result = run(
        folder, PROMPT, "-s", "Space Needle", "--samples", 2, "--severed", "--figure", figure
    )
    assert result.exit_code == 0
    for text in ("state after the block restored", "MLP outputs of 1", "mlp severed", "early site"):
        assert text in result.stdout
    assert "it does not say where an edit works best" in " ".join(result.stdout.split())
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_json_is_one_object(folder: Path) -> None:
    result = run(folder, PROMPT, "--subject", "Space Needle", "--kind", "mlp", "--json")
    record = json.loads(result.stdout)
    assert list(record["effects"]) == ["mlp"]
    assert record["samples"] == 10
    assert record["subject"] == "Space Needle"


def test_subject_is_found_where_it_is_certain(folder: Path) -> None:
    record = json.loads(run(folder, PROMPT, "--samples", 1, "--kind", "state", "--json").stdout)
    assert record["subject"] == "Space Needle"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kind", "mpl"), 'Did you mean "mlp"?'),
        (("--kind", ","), "nothing to restore"),
        (("--figure", "map.gif"), "map.gif"),
        (("--subject", "Space needle"), 'Did you mean "Space Needle"?'),
    ],
)
def test_misuse_ends_with_2(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run(folder, PROMPT, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
