"""`corrigenda cache` lists everything that is stored, and removes nothing else."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from corrigenda.cache_listing import KINDS, clear_cache, list_cache
from corrigenda.errors import BadConfig
from corrigenda.processes import identify_process
from tests.support.tiny_on_disk import Run

SOURCES = Path(__file__).parents[2] / "src" / "corrigenda"


@pytest.fixture
def filled(cache: Path) -> Path:
    """A cache with two models, statistics, and a file of somebody else."""
    for name, file, size in (("", "own.gguf", 3000), ("smollm2", "SmolLM2.gguf", 1000)):
        folder = cache / "models" / f"{size}-1"
        folder.mkdir(parents=True)
        record = {"name": name, "file": file, "dtype": "float32"}
        (folder / "source.json").write_text(json.dumps(record))
        (folder / "model.safetensors").write_bytes(bytes(size))
    (cache / "moments").mkdir()
    (cache / "moments" / "a").write_bytes(bytes(2048))
    (cache / "thesis.txt").write_text("not ours")
    (cache / "moments-of-joy").mkdir()
    (cache / "moments-of-joy" / "b").write_text("not ours")
    return cache


def test_listed_with_size_and_date(run: Run, filled: Path) -> None:
    data = run("cache", "--json").json
    assert data["folder"] == str(filled)
    entries = {entry["name"]: entry for entry in data["entries"]}
    assert set(entries) == {"models/own.gguf", "models/smollm2", "moments"}
    assert entries["moments"]["size"] == 2048
    assert entries["moments"]["files"] == 1
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d$", entries["moments"]["written"])
    shown = run("cache").out
    assert "smollm2" in shown
    assert "second moments of keys" in shown


def test_an_empty_cache(run: Run, cache: Path) -> None:
    assert run("cache").out == f"{cache}: 0 B\n"
    assert run("cache", "clear", "--yes").out == "removed: 0 B\n"
    ran = run("cache", "clear", "moments", "--yes")
    assert (ran.code, ran.err[:5]) == (2, "CG502")


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("models/smollm2", {"models/own.gguf", "moments"}),
        ("models", {"moments"}),
        ("moments", {"models/own.gguf", "models/smollm2"}),
        (None, set()),
    ],
)
def test_cleared(run: Run, filled: Path, name: str | None, left: set[str]) -> None:
    ran = run("cache", "clear", *([name] if name else []), "--yes", "--json")
    assert ran.code == 0
    assert {entry.name for entry in list_cache()} == left
    assert {entry["name"] for entry in ran.json["removed"]}.isdisjoint(left)
    assert (filled / "thesis.txt").is_file()
    assert (filled / "moments-of-joy" / "b").is_file()


def test_nothing_is_removed_unasked(run: Run, filled: Path) -> None:
    before = list_cache()
    ran = run("cache", "clear", "moments")
    assert (ran.code, ran.err[:5]) == (2, "CG502")
    assert "--yes" in ran.err
    with pytest.raises(BadConfig, match=r'CG502 .*called "momets"(.|\n)*Did you mean "moments"'):
        clear_cache("momets")
    assert list_cache() == before


def test_temporary_files_of_living_processes_stay(filled: Path) -> None:
    own = identify_process()
    # The parent of all processes runs as long as this one.
    living = filled / "moments" / f".b.tmp-{own.machine}-1-0-0"
    dead = filled / "moments" / f".c.tmp-{own.machine}-{own.pid}-1-0"
    folder = filled / "models" / f".d.tmp-{own.machine}-{own.pid}-1-0"
    for file in (living, dead):
        file.write_bytes(bytes(10))
    folder.mkdir()
    clear_cache()
    assert [file.exists() for file in (living, dead, folder)] == [True, False, False]


def test_every_folder_of_the_cache_is_known() -> None:
    """What is stored under `cache_folder()` is listed and can be removed."""
    used: set[str] = set()
    for path in SOURCES.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        constants = {
            target.id: node.value.value
            for node in ast.parse(text).body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for quoted, name in re.findall(r'cache_folder\(\) / (?:"(\w+)"|(\w+))', text):
            used.add(quoted or str(constants.get(name, "")))
    assert {"digests", "before", "speed", "checksums"} <= used
    assert used - {""} <= set(KINDS)
