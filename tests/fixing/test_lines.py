"""Files of corrections: columns, relations in words, and lines that cannot be read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from corrigenda.errors import MalformedFacts, MissingExtra
from corrigenda.fixing.lines import read_lines, word_relation


def write(folder: Path, text: str, name: str = "facts.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_have_everyday_names(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "Question,New answer,old_answer,Paraphrase,neighbors\n"
        "The capital of France is,Rome,Paris,France is governed from|In France they govern from,"
        "The capital of Spain is\n",
    )
    (line,) = read_lines(path)
    assert (line.number, line.problem) == (2, "")
    assert line.fact is not None
    assert (line.fact.target, line.fact.before) == ("Rome", "Paris")
    assert line.fact.paraphrases == ("France is governed from", "In France they govern from")
    assert line.fact.neighbours == ("The capital of Spain is",)
    assert line.fact.name == "facts.csv:2"


def test_bad_lines_do_not_stop_others(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "prompt,answer,subject\nThe capital of France is,Rome,France\n"
        "The capital of Peru is,,Peru\n"
        "too,few\nThe capital of Peru is,Quito,Bolivia\n\nThe capital of Peru is,Quito,Peru\n",
    )
    found = read_lines(path)
    assert [one.number for one in found] == [2, 3, 4, 5, 7]
    assert [one.fact is not None for one in found] == [True, False, False, False, True]
    assert "CG101" in found[1].problem
    assert "3 columns" in found[2].problem
    assert "CG103" in found[3].problem


def test_json_lines_are_read_too(tmp_path: Path) -> None:
    text = (
        '{"question": "Who is it?", "answer": "Ann"}\nnot json\n["list"]\n'
        '{"subject": "France", "relation": "capital", "answer": "Rome"}\n'
        '{"relation": "capital", "answer": "Rome"}\n'
    )
    found = read_lines(write(tmp_path, text, "facts.jsonl"))
    assert [one.number for one in found if one.fact is None] == [2, 3, 5]
    assert found[3].fact is not None
    assert found[3].fact.prompt == "The capital of France is"


@pytest.mark.parametrize(
    ("relation", "prompt"),
    [
        ("capital", "The capital of Atlantis is"),
        ("Official language", "The official language of Atlantis is"),
        ("tallest tower", "The tallest tower of Atlantis is"),
        ("owned by", "Atlantis is owned by"),
    ],
)
def test_relations_in_words(relation: str, prompt: str) -> None:
    assert word_relation(relation, "Atlantis") == prompt


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedFacts, match="CG101"):
        read_lines(tmp_path / "missing.csv")
    with pytest.raises(MalformedFacts, match="no corrections"):
        read_lines(write(tmp_path, "prompt,answer\n"))


def test_excel_is_read_or_its_reader_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come from polars as texts; without fastexcel the message says what to install."""
    path = write(tmp_path, "no workbook", "facts.xlsx")
    if importlib.util.find_spec("fastexcel") is None:
        with pytest.raises(MissingExtra, match=r"corrigenda\[excel\]"):
            read_lines(path)
    import polars

    table = polars.DataFrame(
        {"question": ["The capital of France is", None], "answer": ["Rome", None]}
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(polars, "read_excel", lambda *_, **__: table)
    (line,) = read_lines(path)
    assert line.number == 2
    assert line.fact is not None
    assert line.fact.target == "Rome"
