"""One noun names one class in the whole package; private classes may repeat."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "corrigenda"

SHARED: frozenset[str] = frozenset()
"""Names that two classes have for a reason; each is to be explained here."""


def find_classes() -> dict[str, list[str]]:
    """Return the modules that define each public class, by its name."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path.relative_to(PACKAGE)))
    return found


def test_a_class_name_is_defined_once() -> None:
    classes = find_classes()
    assert len(classes) > 200
    repeated = {name: modules for name, modules in classes.items() if len(modules) > 1}
    assert {name: where for name, where in repeated.items() if name not in SHARED} == {}
    assert set(repeated) >= SHARED, "a name that is no longer shared"
