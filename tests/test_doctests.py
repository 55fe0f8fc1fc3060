"""Every example in a docstring does what it says.

Collected from the source text, so that no module is imported to list them and wrapped functions
are found too.
"""

from __future__ import annotations

import ast
import doctest
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "corrigenda"


def examples() -> list[tuple[str, str, int, str]]:
    """Module, name, line and text of each docstring that holds an example."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if ">>> " not in text:
            continue
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                docstring = ast.get_docstring(node) or ""
                if ">>> " in docstring:
                    name = getattr(node, "name", "")
                    found.append((module, name, getattr(node, "lineno", 0), docstring))
    return found


EXAMPLES = examples()


def test_examples_were_found() -> None:
    assert {module for module, *_ in EXAMPLES} >= {
        "corrigenda.errors",
        "corrigenda.facts",
        "corrigenda.linalg.solve",
    }


@pytest.mark.parametrize(
    ("module", "name", "line", "docstring"),
    EXAMPLES,
    ids=[f"{module}.{name}" for module, name, *_ in EXAMPLES],
)
def test_example(module: str, name: str, line: int, docstring: str) -> None:
    names = dict(vars(import_module(module)))
    test = doctest.DocTestParser().get_doctest(docstring, names, name, module, line)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    runner.run(test, out=report.append, clear_globs=False)
    assert runner.failures == 0, "".join(report)
    assert runner.tries > 0
