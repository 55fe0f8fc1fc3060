"""Every error code has a page, every page a code, and the examples do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from corrigenda import errors
from corrigenda.errors import CorrigendaError

PAGES = Path(__file__).parents[1] / "docs" / "errors"
CODES = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, CorrigendaError) and kind is not CorrigendaError
}
EXAMPLES = [
    (path.stem, part, code)
    for path in sorted(PAGES.glob("CG*.md"))
    for part, text in re.findall(
        r"## (Wrong|Right)\n(.*?)(?=\n## |\Z)", path.read_text(), re.DOTALL
    )
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
]


def test_codes_are_distinct() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(CODES) == sum(issubclass(kind, CorrigendaError) for kind in kinds) - 1


def test_each_code_has_a_page_and_each_page_a_code() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == set(CODES)


@pytest.mark.parametrize("code", sorted(CODES))
def test_page_shows_symptom_cause_wrong_and_right(code: str) -> None:
    text = (PAGES / f"{code}.md").read_text()
    assert text.startswith(f"# {code} {CODES[code].__name__}\n")
    headings = re.findall(r"^## (\w+)$", text, re.MULTILINE)
    assert headings == ["Symptom", "Cause", "Wrong", "Right"]
    symptom = text.split("## Symptom")[1].split("## Cause")[0]
    assert f"{code} {CODES[code].__name__}: " in symptom


def test_some_examples_are_run() -> None:
    assert {part for _, part, _ in EXAMPLES} == {"Wrong", "Right"}


@pytest.mark.parametrize(("code", "part", "source"), EXAMPLES)
def test_python_examples_do_what_they_say(code: str, part: str, source: str) -> None:
    if part == "Wrong":
        with pytest.raises(CODES[code], match=f"^{code} "):
            exec(compile(source, f"{code}.md", "exec"), {})
    else:
        exec(compile(source, f"{code}.md", "exec"), {})
