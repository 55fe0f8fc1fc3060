"""Workflows, hooks, addresses and changelog agree with the project."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHECK = (ROOT / ".ci" / "check").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def workflow(name: str) -> dict[str, object]:
    """A workflow as data."""
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text("utf-8"))


def test_workflows_are_those_of_tests_docs_and_release() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "release", "tests"]


def test_tests_run_on_every_version_the_package_is_for() -> None:
    classifiers = " ".join(PROJECT["classifiers"])
    versions = re.findall(r"Python :: (3\.\d+)", classifiers)
    assert workflow("tests")["jobs"]["newest"]["strategy"]["matrix"]["python"] == versions


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_is_there(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    commands = "\n".join(step["run"] for step in steps if "run" in step)
    named = set(re.findall(r"[\w./-]*\w\.py\b|\.ci/\w+|\btests/\w+", commands))
    assert [name for name in named if not (ROOT / name).exists()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}:" in makefile for target in re.findall(r"\bmake (\w+)", commands))


def test_commits_check_files_and_pushes_check_all() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = {hook["id"]: hook for repository in config["repos"] for hook in repository["hooks"]}
    assert hooks["check"]["stages"] == ["pre-push"]
    assert hooks["check"]["entry"] == ".ci/check"
    fast = {name: hook for name, hook in hooks.items() if hook["stages"] == ["pre-commit"]}
    assert set(fast) == {"ruff-check", "ruff-format", "typos"}
    assert all(hook.get("pass_filenames", True) for hook in fast.values())
    assert set(config["default_install_hook_types"]) == {"pre-commit", "pre-push"}


@pytest.mark.parametrize("name", ["check", "run"])
def test_scripts_parse(name: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / name)], check=True)


def test_check_holds_the_generated_lists_too() -> None:
    assert "docs/generate.py --check" in CHECK


def test_addresses_agree_with_the_citation() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["urls"]["Homepage"] == citation["url"]
    assert PROJECT["urls"]["Source"] == citation["repository-code"]
    assert PROJECT["version"] == citation["version"]


def test_changelog_has_this_version_and_one_line_a_change() -> None:
    headings = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert PROJECT["version"] in headings
    entries = CHANGELOG.partition("## Unreleased")[2].splitlines()
    assert [line for line in entries if line and not line.startswith(("- ", "## ", "### "))] == []
