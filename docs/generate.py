"""Write the lists of README, docs and the package from cards and registries.

    python docs/generate.py [--check | --reading]

Lists lie between `<!-- generated: NAME -->` and `<!-- end -->`, in Python between comments that say
the same; text outside of them is left alone.

With --check nothing is written: the exit status is 1 if a list differs from what would be written,
or if a method lacks a line of its card, a row in the measured table, or a recipe. With --reading,
the number of files that hold each method is printed: its own and the engines that it imports.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path

from corrigenda.benchmarks.benchmark import BENCHMARKS
from corrigenda.cards import read_card
from corrigenda.methods.registry import METHODS
from corrigenda.registry import Registry
from corrigenda.run.spec import read_recipe
from corrigenda.transforms.registry import TRANSFORMS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "corrigenda"
PAGES = (
    *(ROOT / "README.md", ROOT / "docs" / "choose.md", ROOT / "docs" / "index.md"),
    PACKAGE / "__init__.py",
)
MEASURED = ROOT / "perf" / "pocket_table.json"
RECIPES = ROOT / "recipes"
SECTION = re.compile(r"((?:<!--|#) generated: ([\w-]+)(?: -->)?\n).*?((?:<!--|#) end\b)", re.DOTALL)

# Families in the order of the lists; any other comes after them.
GROUPS = (
    *("locate", "fine-tuning", "adapters", "gradient", "meta-learning"),
    *("side module", "memory", "context", "procedure", "states"),
)
SHORT_FORMS = ("group", "changes", "choose_when", "not_when")


def main() -> int:
    """Write the pages, check them, or print the numbers of files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="write nothing; exit 1 on a problem")
    choice.add_argument("--reading", action="store_true", help="print the files of each method")
    options = parser.parse_args()
    if options.reading:
        for name in METHODS.names():
            modules = reading_list(METHODS.entry(name).module)
            print(f"{name:<18} {len(modules)}  {' '.join(modules)}")
        return 0
    problems = [*find_missing()]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        generated = fill(page, text)
        if options.check and generated != text:
            problems.append(f"{page.relative_to(ROOT)} differs: run python docs/generate.py")
        if not options.check:
            page.write_text(generated, encoding="utf-8")
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


def fill(page: Path, text: str) -> str:
    """Return the text of a page with every generated section as it should be."""
    writers: dict[str, Callable[[Path], Iterable[str]]] = {
        "methods": method_rows,
        "choices": choice_rows,
        "pages": page_lists,
        "classes": class_imports,
        "names": class_names,
    }

    def replace(match: re.Match[str]) -> str:
        lines = writers[match[2]](page)
        return "".join((match[1], *(f"{line}\n" for line in lines), match[3]))

    found, number = SECTION.subn(replace, text)
    assert number, f"{page} has no generated section"
    return found


def method_rows(page: Path) -> Iterable[str]:
    """Return the table of methods: family, what changes, what the first edit needs."""
    yield "| method | family | what changes | needs before the first edit | many facts at once |"
    yield "|---|---|---|---|---|"
    for name in sorted_methods():
        matter = METHODS.card(name)
        batch = "yes" if matter["batch"] else "no"
        cells = (
            link(METHODS, name, page),
            *(matter.get("group", matter["family"]), matter.get("changes", matter["area"])),
            *(needs(name), batch),
        )
        yield row(cells)


def choice_rows(page: Path) -> Iterable[str]:
    """Return the table of situations: what a method is for, and when not to use it."""
    yield "| you have | use | but not when |"
    yield "|---|---|---|"
    for name in sorted_methods():
        matter = METHODS.card(name)
        cells = (matter.get("choose_when", ""), code_link(name, page), matter.get("not_when", ""))
        yield row(cells)


def page_lists(page: Path) -> Iterable[str]:
    """Return the cards of methods, benchmarks, transforms and analyses, as lists of links."""
    yield "## Methods"
    yield ""
    by_group: dict[str, list[str]] = {}
    for name in sorted_methods():
        matter = METHODS.card(name)
        group = str(matter.get("group", matter["family"]))
        by_group.setdefault(group, []).append(link(METHODS, name, page))
    for group, links in by_group.items():
        yield f"- {group}: {', '.join(links)}"
    for title, registry in (("Benchmarks", BENCHMARKS), ("Transforms of patches", TRANSFORMS)):
        yield from ("", f"## {title}", "")
        yield from (f"- {link(registry, name, page)}" for name in registry.names())
    yield from ("", "## Analyses", "")
    for file in sorted((PACKAGE / "analysis").glob("*.md")):
        heading = re.search(r"^# (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert heading, f"{file} has no heading"
        yield f"- [{heading[1]}]({relative(file, page)})"


def class_imports(_: Path) -> Iterable[str]:
    """Return the imports of editors and benchmarks, for type checkers and completion alone."""
    imports = (f"    from {module} import {name}" for name, module in own_classes().items())
    return ("if TYPE_CHECKING:", *sorted(imports))


def class_names(_: Path) -> Iterable[str]:
    """Return the names of editors and benchmarks, in the order in which ruff sorts them."""
    names = sorted(own_classes(), key=lambda name: (not name.isupper(), name))
    return ("__all__ += [", *(f'    "{name}",' for name in names), "]")


def own_classes() -> dict[str, str]:
    """Return the module of each editor and benchmark of the package by the name of its class."""
    return {
        class_name: registry.entry(name).module
        for registry in (METHODS, BENCHMARKS)
        for class_name, name in registry.class_names().items()
        if registry.entry(name).module.startswith(f"{registry.package}.")
    }


def sorted_methods() -> list[str]:
    """Return the methods of the package by family, then by name."""

    def place(name: str) -> tuple[int, str]:
        group = str(METHODS.card(name).get("group"))
        return GROUPS.index(group) if group in GROUPS else len(GROUPS), name

    return sorted(own_methods(), key=place)


def own_methods() -> list[str]:
    """Return the methods whose cards are in the package, without plug-ins."""
    prefix = f"{METHODS.package}."
    return [name for name in METHODS.names() if METHODS.entry(name).module.startswith(prefix)]


def needs(name: str) -> str:
    """Return what a method must gather before its first edit, from what its class requires."""
    requires = METHODS.get(name)().requires
    if requires.moments:
        return "second moments of keys"
    return "training on facts" if METHODS.card(name)["training"] else "nothing"


def card_file(registry: Registry[object], name: str) -> Path:
    """Return the file of a card."""
    folder: Traversable = registry.entry(name).folder
    files = [Path(str(item)) for item in folder.iterdir() if item.name.endswith(".md")]
    return next(file for file in files if read_card(file).matter.get("name") == name)


def link(registry: Registry[object], name: str, page: Path) -> str:
    """Return a link to a card under its title."""
    return f"[{registry.card(name)['title']}]({relative(card_file(registry, name), page)})"


def code_link(name: str, page: Path) -> str:
    """Return a link to the card of a method under its name for commands and calls."""
    return f"[`{name}`]({relative(card_file(METHODS, name), page)})"


def relative(file: Path, page: Path) -> str:
    """Return the path of a file as a link from a page."""
    return Path(os.path.relpath(file, page.parent)).as_posix()


def row(cells: Iterable[object]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def find_missing() -> Iterable[str]:
    """Name every method without short forms in its card, a measured row, or a recipe."""
    measured = {label.split(": ")[0].split()[0] for label in json.loads(MEASURED.read_text())}
    recipes = [read_recipe(path) for path in sorted(RECIPES.glob("*.toml"))]
    tried = {METHODS.resolve(one.name) for recipe in recipes for one in recipe.methods}
    for name in own_methods():
        for key in SHORT_FORMS:
            if not METHODS.card(name).get(key):
                yield f'{name}: the card has no "{key}"'
        if name not in measured:
            yield f"{name}: not measured; run perf/pocket_table.py --only {name} --write"
        if name not in tried:
            yield f"{name}: in no recipe"


def reading_list(module: str) -> list[str]:
    """Return a module and all modules of methods and engines it imports, also by way of others."""
    prefix = ("corrigenda.methods.", "corrigenda.engines.")
    found: dict[str, None] = {}
    waiting = [module]
    while waiting:
        one = waiting.pop(0)
        if one in found or not one.startswith(prefix):
            continue
        spec = find_spec(one)
        if spec is None or spec.origin is None:
            continue
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        waiting += imports(tree)
        # A folder's own file counts only if it holds more than a docstring.
        if spec.submodule_search_locations is None or len(tree.body) > 1:
            found[one] = None
    return [name.removeprefix("corrigenda.") for name in found]


def imports(tree: ast.Module) -> list[str]:
    """Return the modules that a module imports, without those imported for types alone."""
    names = []
    for node in walk_at_run_time(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names a module too.
            names += [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name for name in names if exists(name)]


def walk_at_run_time(tree: ast.AST) -> Iterable[ast.AST]:
    """Walk a tree without the blocks that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from walk_at_run_time(node)


def exists(module: str) -> bool:
    """Tell whether a dotted name is a module of methods or engines."""
    if not module.startswith(("corrigenda.methods.", "corrigenda.engines.")):
        return False
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


if __name__ == "__main__":
    sys.exit(main())
