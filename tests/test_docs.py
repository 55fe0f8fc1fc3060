"""Pages: links lead to files, commands exist, Python snippets use public names and run."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
import typing
from importlib.resources import files
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

import corrigenda
from corrigenda.cli.main import app
from corrigenda.metrics.registry import metric
from corrigenda.run.spec import Recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CARDS = sorted((ROOT / "src" / "corrigenda").glob("*/*.md"))
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
SNIPPETS = [
    (path, text)
    for path in PAGES
    for language, text in FENCE.findall(path.read_text(encoding="utf-8"))
    if language == "python"
]
COMMANDS = [
    (path, line)
    for path in PAGES
    for language, text in FENCE.findall(path.read_text(encoding="utf-8"))
    if language == "sh"
    for line in text.replace("\\\n", " ").splitlines()
    if line.startswith("corrigenda ")
]

needs_pocket = pytest.mark.skipif(
    not files("corrigenda").joinpath("pocket", "pocket", "config.json").is_file(),
    reason="no trained pocket model in this checkout",
)


def name(value: object) -> str:
    return value.name if isinstance(value, Path) else ""


def test_there_are_snippets_and_commands() -> None:
    assert len(SNIPPETS) >= 3
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("path", [*PAGES, *CARDS], ids=name)
def test_links_lead_to_files(path: Path) -> None:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize(("path", "source"), SNIPPETS, ids=name)
def test_python_snippet_uses_public_names(path: Path, source: str) -> None:
    used = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "cg"
    }
    assert used <= set(corrigenda.__all__)


@pytest.mark.parametrize(("path", "line"), COMMANDS, ids=name)
def test_command_and_its_options_exist(path: Path, line: str) -> None:
    """Parsed by the real command line, without running it."""
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app)
    while (sub := getattr(command, "commands", None)) and words and words[0] in sub:
        command = sub[words.pop(0)]
    assert not getattr(command, "commands", None) or set(words) <= {"--help", "--version"}
    known = {option for item in command.params for option in item.opts} | {"--help"}
    assert {word for word in words if re.fullmatch(r"-[a-z]|--[\w-]+", word)} <= known


def pages_to_run() -> list[object]:
    """Pages with snippets; those that load the pocket model wait for it."""
    found = []
    for page in PAGES:
        sources = [source for path, source in SNIPPETS if path == page]
        marks = [needs_pocket] if any('load("pocket")' in source for source in sources) else []
        if sources:
            found.append(pytest.param(page, marks=marks, id=page.name))
    return found


@pytest.mark.parametrize("path", pages_to_run())
def test_python_snippets_run(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """All snippets of a page, one after the other, in a folder of their own."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    cache.mkdir(exist_ok=True)
    monkeypatch.setenv("CORRIGENDA_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for page, source in SNIPPETS:
        if page == path:
            exec(compile(source, path.name, "exec"), names)


TOML = [
    text
    for language, text in FENCE.findall((ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8"))
    if language == "toml"
]


@pytest.mark.parametrize("source", TOML, ids=range(len(TOML)))
def test_recipes_of_the_page_are_read_and_name_what_there_is(source: str) -> None:
    """A whole recipe by itself; a part of one on top of the least that a recipe needs."""
    table = tomllib.loads(source)
    least = {"methods": ["rome"], "benchmark": {"name": "pocketedit"}}
    recipe = Recipe(**{**least, **table})
    for run in recipe.runs(model="some/model"):
        run.check()


@pytest.mark.parametrize("page", [ROOT / "docs" / "evaluate.md", ROOT / "docs" / "footguns.md"])
def test_metrics_and_codes_that_a_page_names_exist(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    names = re.findall(r"`([a-z][\w/]*@[a-z_]+(?::[a-z]+)?)`", text)
    assert page.name != "evaluate.md" or len(names) > 5
    for name in names:
        metric(name)
    codes = re.findall(r"\bCG\d{3}\b", text)
    assert [code for code in codes if not (ROOT / "docs" / "errors" / f"{code}.md").exists()] == []


def models_of(annotation: object) -> list[type[BaseModel]]:
    """The tables within the type of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for part in typing.get_args(annotation) for one in models_of(part)]


def test_keys_of_a_recipe_that_the_page_explains_exist() -> None:
    text = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`[\w.]+`(?:, )?)+) \|", text, re.MULTILINE)
    keys = [key for row in rows for key in re.findall(r"`([\w.]+)`", row)]
    known = set(Recipe.model_fields)
    for key in keys:
        table, _, name = key.partition(".")
        if table not in known:
            continue
        if name:
            kinds = models_of(Recipe.model_fields[table].annotation)
            assert any(name in kind.model_fields for kind in kinds), key
    assert {"regime.kind", "ask.roles", "intervals"} <= set(keys)


def test_recipes_that_the_page_lists_are_those_there_are() -> None:
    text = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    table = text.partition("| recipe | shows |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([\w-]+)`", table)) == {
        path.stem for path in (ROOT / "recipes").glob("*.toml")
    }
