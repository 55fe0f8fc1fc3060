"""Facts are text: their checks, their subjects, files of them, and the form of errors."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrigenda import errors
from corrigenda.errors import (
    AmbiguousSubject,
    CorrigendaError,
    EmptyTarget,
    MalformedFacts,
    SubjectNotFound,
    did_you_mean,
)
from corrigenda.facts import Fact, Span, as_facts, facts_from_lines, find_subject, read_facts


def classes() -> list[type[CorrigendaError]]:
    return [
        one
        for one in vars(errors).values()
        if inspect.isclass(one) and issubclass(one, CorrigendaError) and one is not CorrigendaError
    ]


def test_every_error_has_its_own_code() -> None:
    codes = [one.code for one in classes()]
    assert len(set(codes)) == len(codes) > 20
    assert all(len(code) == 5 and code.startswith("CG") and code[2:].isdigit() for code in codes)
    assert CorrigendaError.code not in codes


@pytest.mark.parametrize("kind", classes())
def test_an_error_says_what_where_and_what_to_do(kind: type[CorrigendaError]) -> None:
    error = kind("it broke.", where="fact #3", hint="Mend it.")
    assert str(error) == f"{kind.code} {kind.__name__}: it broke.\n  fact #3\n  Mend it."
    assert isinstance(error, ValueError)
    assert (error.message, error.where, error.hint) == ("it broke.", "fact #3", "Mend it.")
    assert str(kind("it broke.")) == f"{kind.code} {kind.__name__}: it broke."


def test_did_you_mean() -> None:
    assert did_you_mean("memmit", ["rome", "memit"]) == 'Did you mean "memit"?'
    assert did_you_mean("zzz", ["rome", "memit"]) == "Known: memit, rome."


def test_facts_and_errors_import_without_torch() -> None:
    code = "import sys, corrigenda.facts, corrigenda.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_fact_is_frozen_and_compares_by_content() -> None:
    fact = Fact(prompt="Rome is in", target="Italy", name="a")
    assert fact == Fact(prompt="Rome is in", target="Italy", name="b")
    assert fact != Fact(prompt="Rome is in", target="Spain")
    assert len({fact, Fact(prompt="Rome is in", target="Italy")}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        fact.target = "Spain"  # type: ignore[misc]  # what is refused


@pytest.mark.parametrize(
    ("prompt", "target", "named"),
    [("", "Italy", "prompt"), (" \n", "Italy", "prompt"), ("Rome is in", "\t", 'of "Rome is in"')],
)
def test_empty_text_is_refused(prompt: str, target: str, named: str) -> None:
    with pytest.raises(EmptyTarget, match=f"CG102 (.|\n)*{named}(.|\n)*record 7"):
        Fact(prompt=prompt, target=target, name="record 7")


def test_a_prompt_with_a_blank_is_filled_in() -> None:
    fact = Fact(
        prompt="The {} is in",
        subject="Space Needle",
        target="Rome",
        paraphrases=("{} lies in", "The tower lies in"),
        neighbours=("The {} of Paris is",),
    )
    assert fact.prompt == "The Space Needle is in"
    assert fact.span == Span(4, 16)
    assert fact.paraphrases == ("Space Needle lies in", "The tower lies in")
    assert fact.neighbours == ("The {} of Paris is",)
    assert dataclasses.replace(fact, target="Oslo").prompt == fact.prompt
    own = Fact(prompt="In Python, {} is", subject="Python", target="a dict")
    assert own.prompt == "In Python, {} is"
    assert Fact(prompt="The {} is", target="a dict").prompt == "The {} is"


def test_facts_are_made_of_mappings() -> None:
    record = {"prompt": "{} is in", "subject": "Rome", "target": "Italy", "aliases": ["Italia"]}
    (fact,) = as_facts(record)
    assert (fact.prompt, fact.aliases, fact.name) == ("Rome is in", ("Italia",), "fact #0")
    assert as_facts([fact, record]) == [fact, fact]
    assert as_facts(iter([record])) == [fact]
    assert as_facts([]) == []
    for bad in ("Rome is in", b"x", 3, None):
        with pytest.raises(MalformedFacts, match=r"CG101 .*facts were expected"):
            as_facts(bad)
    with pytest.raises(MalformedFacts, match=r"(?s)CG101 .*objekt.*fact #1"):
        as_facts([record, {**record, "objekt": "x"}])


def test_a_missing_subject_is_refused_at_once() -> None:
    with pytest.raises(SubjectNotFound, match=r"CG103(.|\n)*record 7"):
        Fact(prompt="Rome is in", target="Italy", subject="Paris", name="record 7")


def test_a_fact_without_subject_has_no_span() -> None:
    with pytest.raises(AmbiguousSubject, match=r'CG104 .*"Rome is in"'):
        _ = Fact(prompt="Rome is in", target="Italy").span


def test_label_is_the_name_or_the_prompt() -> None:
    assert Fact(prompt="Rome is in", target="Italy", name="record 7").label == "record 7"
    assert Fact(prompt="Rome is in", target="Italy").label == '"Rome is in"'


@pytest.mark.parametrize(
    ("prompt", "subject", "start"),
    [
        ("The Space Needle is in", "Space Needle", 4),
        ("Rome is in", "Rome", 0),
        ("In the city of Rome", "Rome", 15),
        ("Romeo lives in Rome, near", "Rome", 15),
        ("Romeo lives in", "Rome", 0),
        ("the {} of {name} is", "{name}", 10),
        ("a(b)c is (b) here", "(b)", 9),
        ("\U0001f469\u200d\U0001f52c works in", "\U0001f469\u200d\U0001f52c", 0),
        ("Rene\u0301 was", "Rene\u0301", 0),
    ],
)
def test_subjects_are_found(prompt: str, subject: str, start: int) -> None:
    span = find_subject(prompt, subject, start=start)
    assert span == Span(start, start + len(subject))
    assert prompt[span.start : span.end] == subject
    assert find_subject(prompt, subject) == span


def test_case_is_part_of_a_subject() -> None:
    with pytest.raises(SubjectNotFound, match='Did you mean "Space Needle"') as info:
        find_subject("The Space Needle is in", "Space needle", where="fact #12")
    assert str(info.value).splitlines()[:2] == [
        'CG103 SubjectNotFound: "Space needle" does not occur in the prompt '
        '"The Space Needle is in".',
        "  fact #12",
    ]


def test_two_free_standing_occurrences_are_ambiguous() -> None:
    prompt = "Rome, not Romeo, is Rome in"
    with pytest.raises(AmbiguousSubject, match=r"CG104 .*occurs 2 times(.|\n)*one of 0, 20\."):
        find_subject(prompt, "Rome")
    assert find_subject(prompt, "Rome", start=20) == Span(20, 24)
    assert find_subject(prompt, "Rome", start=10) == Span(10, 14)


@pytest.mark.parametrize("start", [1, 99, -4])
def test_a_wrong_start_is_refused(start: int) -> None:
    with pytest.raises(SubjectNotFound, match=f"CG103 .*at character {start} "):
        find_subject("In Rome", "Rome", start=start)


def test_an_empty_subject_is_refused() -> None:
    with pytest.raises(SubjectNotFound, match=r"CG103 .*empty"):
        find_subject("Rome is in", "")


@given(st.text(max_size=5), st.text(min_size=1, max_size=4), st.text(max_size=5))
def test_a_found_subject_is_what_stands_there(before: str, subject: str, after: str) -> None:
    prompt = before + subject + after
    assert find_subject(prompt, subject, start=len(before)) == (
        len(before),
        len(before) + len(subject),
    )
    try:
        span = find_subject(prompt, subject)
    except AmbiguousSubject:
        assert prompt.find(subject, prompt.find(subject) + 1) >= 0
    else:
        assert prompt[span.start : span.end] == subject


def line(**keys: object) -> str:
    return json.dumps({"prompt": "Rome is in", "target": "Italy"} | keys)


def test_facts_are_read_with_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(
        line(subject="Rome", aliases=["Italia"], neighbours=["Paris is in"])
        + "\n\n"
        + line(target="\u30ed\u30fc {} \u2028\u30de", separator="", name="mine")
        + "\r\n",
        encoding="utf-8",
    )
    first, second = read_facts(path)
    assert (first.name, first.aliases, first.neighbours) == (
        "facts.jsonl:1",
        ("Italia",),
        ("Paris is in",),
    )
    assert (second.name, second.target, second.separator) == (
        "mine",
        "\u30ed\u30fc {} \u2028\u30de",
        "",
    )


def test_all_bad_lines_are_listed_together() -> None:
    lines = [
        line(),
        "{not json",
        line(target=" "),
        line(subject="Paris"),
        line(objekt="Italy"),
        json.dumps({"prompt": "Rome is in"}),
        json.dumps({"prompt": 3, "target": "Italy"}),
        "[1, 2]",
        line(prompt="Rome and Rome", subject="Rome"),
    ]
    with pytest.raises(MalformedFacts) as info:
        facts_from_lines(lines, where="facts.jsonl")
    shown = str(info.value)
    assert shown.startswith("CG101 MalformedFacts: 8 bad line(s)")
    for number, part in [
        (2, "not JSON"),
        (3, "CG102"),
        (4, "CG103"),
        (5, "objekt"),
        (6, "target"),
        (7, "prompt"),
        (8, "fact"),
        (9, "CG104"),
    ]:
        (found,) = [text for text in shown.splitlines() if f"line {number}:" in text]
        assert part in found
    assert "line 1:" not in shown


def test_no_lines_are_no_facts() -> None:
    assert facts_from_lines(["", "  "], where="x") == []


@pytest.mark.parametrize("content", [None, b"\xff\xfe{}"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "facts.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MalformedFacts, match=r"CG101 .*facts\.jsonl cannot be read"):
        read_facts(path)
