"""No module imports itself by way of others; imports in functions and for types count too."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"


def find_modules(source: Path, package: str) -> dict[str, Path]:
    """Return the file of every module of a package, by dotted name."""
    found: dict[str, Path] = {}
    for path in sorted((source / package).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def find_imports(text: str, modules: dict[str, Path]) -> set[str]:
    """Return the modules that a text imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                found |= {name.name for name in names}
            case ast.ImportFrom(module=str(origin), names=names, level=0):
                for name in names:
                    inside = f"{origin}.{name.name}"
                    found.add(inside if inside in modules else origin)
            case _:
                pass
    return found & modules.keys()


def find_circle(source: Path, package: str) -> list[str]:
    """Return the modules of one circle of imports; none if there is no circle."""
    modules = find_modules(source, package)
    graph = {
        name: find_imports(path.read_text(encoding="utf-8"), modules) - {name}
        for name, path in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_there_are_no_circles() -> None:
    assert len(find_modules(SOURCE, "corrigenda")) > 200
    circle = find_circle(SOURCE, "corrigenda")
    assert not circle, " imports ".join(circle)


@pytest.mark.parametrize(
    ("first", "second", "circle"),
    [
        ("import p.b", "x = 1", False),
        ("import p.b", "from p import a", True),
        ("import p.b", "def f():\n    from p.a import x", True),
        (
            "from p import b",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n import p.a",
            True,
        ),
    ],
)
def test_circles_are_found(tmp_path: Path, first: str, second: str, circle: bool) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    for name, text in (("__init__", ""), ("a", first), ("b", second)):
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    found = find_circle(tmp_path, "p")
    assert bool(found) == circle
    assert not circle or {"p.a", "p.b"} == set(found)
