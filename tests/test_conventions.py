"""House rules that no tool checks: sizes, names, cards, docstrings, paths, what scripts print."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from corrigenda.methods.presets import presets
from corrigenda.methods.registry import METHODS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "corrigenda"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PERF = sorted((ROOT / "perf").glob("*.py"))
MAX_LINES = 450
MAX_FIRST_LINE = 100
UNTOLD = {"utils", "helpers", "misc", "base"}
BINARY = {".safetensors", ".png", ".npz", ".parquet"}

# Split so that this file does not match itself.
MACHINE_PATHS = re.compile(
    r"(?<![\w.~/\-])/(?:" + "|".join(("work", "root", "opt", "farm", "home")) + r")/[\w.]"
    r"|(?<![\w.~/\-])/tmp/(?!never)" + r"[\w.]"
)
SESSION_WORDS = re.compile(
    r"\b(?:(?:this|my|our|earlier|previous|next) ses" + "sion|sub" + "agent|as an A" + "I)\\b"
    r"|CONTRACT" + r"\.md|\.lib" + r"rary\b|\bbui" + r"lder H\d",
    re.IGNORECASE,
)
# First lines that a reader of the papers would not understand, and habit words of their kind.
STRAINED = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^Who\b",
        r"\bnobody\b",
        r"\bsomebody\b",
        r"\bwhoever\b",
        r"what became of",
        r"^It, of these",
        r"^Say how\b",
        r"^Get ready\b",
        r"\bhear of them\b",
        r"\bgoes on\b",
        r"\bstands?\b(?! for)",
        r"\bbehind\b",
        r"\bbeside\b",
    )
]
FRONT_MATTER = {
    "name",
    "title",
    "family",
    "paper",
    "url",
    "training",
    "batch",
    "sequential",
    "area",
    "parameters",
}


def named(paths: list[Path]) -> pytest.MarkDecorator:
    """Parametrise by path, named relative to the repository."""
    return pytest.mark.parametrize("path", paths, ids=[str(p.relative_to(ROOT)) for p in paths])


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def committed() -> list[Path]:
    """Text files under version control; every file where there is no repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        folders = ("src", "tests", "docs", "perf", "examples")
        names = [str(p.relative_to(ROOT)) for f in folders for p in (ROOT / f).rglob("*")]
    else:
        names = [name for name in listed.stdout.split("\0") if name]
    paths = [ROOT / name for name in names]
    return [p for p in paths if p.is_file() and p.suffix not in BINARY | {".pyc"}]


def test_something_is_checked() -> None:
    assert len(SOURCES) > 40
    assert len(METHODS.names()) >= 20
    assert PERF
    assert len(committed()) > 100


@named(SOURCES)
def test_file_is_short_enough_to_hold_one_idea(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@named(SOURCES)
def test_file_is_named_after_what_it_holds(path: Path) -> None:
    assert path.stem not in UNTOLD


@named(SOURCES)
def test_code_and_comments_are_ascii(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [n for n, line in enumerate(lines, start=1) if not line.isascii()] == []


@named(SOURCES)
def test_library_never_prints(path: Path) -> None:
    calls = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert calls == []


@named(SOURCES)
def test_public_names_have_docstrings(path: Path) -> None:
    missing = [name for name, node in public(tree(path)) if not ast.get_docstring(node)]
    assert missing == []


def public(
    module: ast.Module,
) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """The module, and its public functions, classes, methods and properties."""
    yield "module", module
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name.startswith("_") or is_overload(node):
                continue
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for item in node.body:
                    if (
                        isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
                        and not item.name.startswith("_")
                        and not is_overload(item)
                    ):
                        yield f"{node.name}.{item.name}", item


def is_overload(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Overloads, and setters that share the getter's docstring."""
    marks = [ast.unparse(mark) for mark in node.decorator_list]
    return any(mark.endswith(("overload", ".setter")) for mark in marks)


@named(SOURCES)
def test_docstrings_begin_with_a_plain_sentence(path: Path) -> None:
    """A first line is a sentence of at most 100 characters in the field's words."""
    found = {}
    for name, node in public(tree(path)):
        first = (ast.get_docstring(node) or "").split("\n")[0]
        # A title may name the module's subject without being a sentence.
        wrong = "" if first and name == "module" else why_no_sentence(first)
        strained = [match.group() for word in STRAINED if (match := word.search(first))]
        if wrong or strained:
            found[name] = f"{wrong or strained}: {first}"
    assert found == {}


def why_no_sentence(line: str) -> str:
    """What a first line lacks of a sentence; empty where it is one."""
    if not line:
        return "empty"
    if len(line) > MAX_FIRST_LINE:
        return f"{len(line)} characters"
    # A formula may begin with the paper's small letters.
    if re.match(r"[a-z]+\b", line):
        return "no capital"
    if not line.endswith((".", ":", "?")):
        return "no full stop"
    return ""


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("Return the subject of a prompt.", False),
        ("`fit` for one model.", False),
        ("d_in.", False),
        ("", True),
        ("return the subject.", True),
        ("Return the subject", True),
        ("Return " + "x" * 100 + ".", True),
    ],
)
def test_sentences_are_told_from_others(line: str, wrong: bool) -> None:
    assert bool(why_no_sentence(line)) is wrong


@named(SOURCES)
def test_ignored_types_say_which_and_why(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    bare = [
        n
        for n, line in enumerate(lines, start=1)
        if re.search(r"#\s*(type|pyright):\s*ignore", line)
        and not re.search(r"#\s*(type|pyright):\s*ignore\[[\w\-, ]+\]\s+#\s*\S+", line)
    ]
    assert bare == []


@pytest.mark.parametrize("name", METHODS.names())
def test_method_has_card_and_tests(name: str) -> None:
    assert (ROOT / "tests" / "methods" / f"test_{name.replace('-', '_')}.py").is_file()
    matter = METHODS.card(name)
    assert set(matter) >= FRONT_MATTER
    assert matter["name"] == name
    assert set(matter["presets"]) <= {preset.model for preset in presets(name)}


def test_every_folder_of_methods_has_a_card_and_an_editor() -> None:
    folders = [path for path in (PACKAGE / "methods").iterdir() if (path / "__init__.py").is_file()]
    assert folders
    assert [path.name for path in folders if not list(path.glob("*.md"))] == []


@named(SOURCES)
def test_no_module_begins_with_an_underscore(path: Path) -> None:
    assert not path.stem.startswith("_") or path.stem in ("__init__", "__main__")


def last_statement(path: Path, function: str) -> str:
    """The last statement of a function of a file."""
    functions = [node for node in tree(path).body if isinstance(node, ast.FunctionDef)]
    return ast.unparse(next(node for node in functions if node.name == function).body[-1])


@named([path for path in PERF if "__main__" in path.read_text(encoding="utf-8")])
def test_benchmark_ends_with_one_line_of_json(path: Path) -> None:
    """The last statement of `main` publishes its figures, and that ends with one line of JSON."""
    assert last_statement(path, "main").startswith("publish(")
    assert "from figures import publish" in path.read_text(encoding="utf-8")
    published = path.with_name("figures.py")
    assert last_statement(published, "publish") == "print(json.dumps(complete))"
    source = published.read_text(encoding="utf-8")
    assert all(f'"{key}"' in source for key in ("threads", "torch"))


def test_no_path_of_one_machine_is_committed() -> None:
    assert occurrences(MACHINE_PATHS) == []


def test_committed_text_speaks_of_the_library_only() -> None:
    assert occurrences(SESSION_WORDS) == []


def occurrences(pattern: re.Pattern[str]) -> list[str]:
    """Where a pattern occurs in committed text, as `file:line: match`."""
    found = []
    for path in committed():
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), start=1):
            if match := pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}")
    return found


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("see " + "/wo" + "rk/main", True),
        ('"/ro' + 'ot/x"', True),
        ("cd /tm" + "p/abc", True),
        ("../shared/wo" + "rk/x", False),
        ("docs/wo" + "rk/x", False),
        ("https://example.org/wo" + "rk/x", False),
    ],
)
def test_machine_paths_are_recognised(text: str, bad: bool) -> None:
    assert bool(MACHINE_PATHS.search(text)) is bad


def test_every_skip_is_listed_with_a_reason() -> None:
    """Each file with a skip has a row in SKIPS.md, and each row a file that skips."""
    listed = {
        cells[1].strip().strip("`"): cells[2].strip()
        for line in (ROOT / "tests" / "SKIPS.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `") and (cells := line.split("|"))
    }
    pattern = re.compile(
        r"pytest\.(?:skip|importorskip|xfail)\(|mark\.(?:skip|skipif|xfail|slow|gpu|network)\b"
    )
    skipping = {
        str(path.relative_to(ROOT / "tests"))
        for path in (ROOT / "tests").rglob("*.py")
        if path != Path(__file__) and pattern.search(path.read_text(encoding="utf-8"))
    }
    assert set(listed) == skipping
    assert all(listed.values())
