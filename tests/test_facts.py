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


def test_white_space_is_stripped_from_every_field() -> None:
    fact = Fact(
        prompt="  Rome is in ",
        target=" Italy\n",
        subject=" Rome ",
        before="\tGaul ",
        aliases=("Italia ", "  "),
        paraphrases=(" Rome lies in ",),
        neighbours=("Paris is in\u00a0",),
    )
    plain = Fact(
        prompt="Rome is in",
        target="Italy",
        subject="Rome",
        before="Gaul",
        aliases=("Italia",),
        paraphrases=("Rome lies in",),
        neighbours=("Paris is in",),
    )
    assert fact == plain
    assert Fact(prompt="a", target="b", separator=" ").separator == " "


@given(st.sampled_from(["", " ", "\n ", "\u3000"]), st.sampled_from(["", " ", "\t"]))
def test_a_start_is_moved_with_the_space_before_it(before: str, inner: str) -> None:
    prompt = f"{before}Rome and {inner}Rome are"
    start = prompt.rindex("Rome")
    fact = Fact(
        prompt=prompt, subject=f"{inner}Rome", subject_start=start - len(inner), target="one"
    )
    assert fact.subject == "Rome"
    assert fact.span == Span(start - len(before), start - len(before) + 4)
    assert dataclasses.replace(fact, target="two").span == fact.span


def test_one_text_is_one_item() -> None:
    fact = Fact(
        prompt="Rome is in", target="Italy", aliases="Italia", paraphrases="Rome lies in",
        neighbours="Paris is in",
    )  # fmt: skip
    assert (fact.aliases, fact.paraphrases) == (("Italia",), ("Rome lies in",))
    assert fact.neighbours == ("Paris is in",)
    (read,) = facts_from_lines([line(aliases="Italia", paraphrases=["a", "b"])], where="x")
    assert (read.aliases, read.paraphrases) == (("Italia",), ("a", "b"))
    assert hash(Fact(prompt="Rome is in", target="Italy", aliases=["a"]))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"prompt": 3}, "prompt: text was expected, not int 3"),
        ({"target": None}, "target: text was expected"),
        ({"subject": b"Rome"}, "subject: text was expected"),
        ({"aliases": 3}, "aliases: texts was expected"),
        ({"aliases": b"ab"}, "aliases: texts was expected"),
        ({"paraphrases": ["a", 1]}, "paraphrases: text was expected, not int 1"),
        ({"subject_start": "3"}, "subject_start: a number was expected"),
        ({"subject_start": True}, "subject_start: a number was expected"),
        ({"separator": None}, "separator: text was expected"),
        ({"target": "a\0"}, "target: .* holds a NUL"),
        ({"prompt": "Rome \ud800 is in"}, "prompt: .* lone surrogate"),
    ],
)
def test_fields_that_are_no_text_are_refused(fields: dict[str, object], why: str) -> None:
    with pytest.raises(MalformedFacts, match=f"(?s)CG101 .*{why}.*record 7"):
        Fact(**{"prompt": "Rome is in", "target": "Italy", "name": "record 7", **fields})


@pytest.mark.parametrize(
    ("prompt", "subject", "found"),
    [
        ("The wife of O\u2019Brien is", "O'Brien", "O\u2019Brien"),
        ("The wife of O'Brien is", "O\u02bcBrien", "O'Brien"),
        ("The city of Ren\u00e9 is", "Rene\u0301", "Ren\u00e9"),
        ("The city of Rene\u0301 is", "Ren\u00e9", "Rene\u0301"),
        ("The capital of Franche\u2011Comt\u00e9 is", "Franche-Comte", "Franche\u2011Comt\u00e9"),
        ("The\u00a0Space\u00a0Needle is in", "Space Needle", "Space\u00a0Needle"),
        ("The Space\u200b Needle is in", "Space Needle", "Space\u200b Needle"),
        ("\u201cAnna\u201d was written by", '"anna"', "\u201cAnna\u201d"),
    ],
)
def test_look_alike_subjects_are_named(prompt: str, subject: str, found: str) -> None:
    with pytest.raises(SubjectNotFound) as info:
        find_subject(prompt, subject)
    assert f'Did you mean "{found}"?' in info.value.hint
    assert "U+" in info.value.hint


def test_a_subject_that_looks_like_nothing_in_the_prompt_has_no_hint() -> None:
    with pytest.raises(SubjectNotFound) as info:
        find_subject("The Space Needle is in", "Eiffel Tower")
    assert "Did you mean" not in info.value.hint


FOREIGN = {
    "counterfact": {
        "case_id": 7,
        "pararel_idx": 1,
        "requested_rewrite": {
            "prompt": "{} is in",
            "relation_id": "P17",
            "target_new": {"str": "Spain", "id": "Q29"},
            "target_true": {"str": "Italy", "id": "Q38"},
            "subject": "Rome",
        },
        "paraphrase_prompts": ["Rome lies in"],
        "neighborhood_prompts": ["Milan is in"],
        "attribute_prompts": [],
        "generation_prompts": ["Rome is known for"],
    },
    "rome request": {"prompt": "{} is in", "subject": "Rome", "target_new": {"str": "Spain"}},
    "easyedit": {
        "prompt": "Rome is in",
        "subject": "Rome",
        "target_new": "Spain",
        "ground_truth": ["Italy"],
        "rephrase_prompt": "Rome lies in",
        "locality": {"neighborhood": []},
        "portability": {},
    },
    "zsre": {
        "src": "Which country is Rome in?",
        "subject": "Rome",
        "alt": "Spain",
        "answers": ["Italy"],
        "rephrase": "Where is Rome?",
        "loc": "nq question: who is",
        "loc_ans": "he",
    },
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.filterwarnings("ignore:fields not used")
def test_field_names_of_other_frameworks_are_understood(name: str, tmp_path: Path) -> None:
    (fact,) = as_facts(FOREIGN[name])
    assert (fact.subject, fact.target) == ("Rome", "Spain")
    assert "Rome" in fact.prompt
    assert "{" not in fact.prompt
    if name in ("counterfact", "easyedit"):
        assert (fact.before, fact.paraphrases) == ("Italy", ("Rome lies in",))
    if name == "counterfact":
        assert fact.neighbours == ("Milan is in",)
    forms = {
        "lines.jsonl": json.dumps(FOREIGN[name]),
        "list.json": json.dumps([FOREIGN[name]], indent=2),
        "one.json": json.dumps(FOREIGN[name], indent=2),
    }
    for file, text in forms.items():
        (tmp_path / file).write_text(text)
        assert read_facts(tmp_path / file) == [fact]


def test_fields_that_are_not_used_are_told_once() -> None:
    with pytest.warns(UserWarning, match="not used for the edit: generation_prompts, pararel_idx"):
        facts = as_facts(
            [{**line_fields(), "pararel_idx": 1}, {**line_fields(), "generation_prompts": []}]
        )
    assert len(facts) == 2


def line_fields() -> dict[str, object]:
    return json.loads(line())


def test_foreign_fields_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join([line(objekt="x")] * 12_005))
    with pytest.raises(MalformedFacts) as info:
        read_facts(path)
    shown = str(info.value).splitlines()
    assert len(shown) == 4
    assert "lines 1, 2, 3, 4, 5 and 12,000 more: objekt" in shown[1]
    path.write_text("\n".join(line(**{f"f{number}": 1}) for number in range(500)))
    with pytest.raises(MalformedFacts, match=r"500 bad line(.|\n)*and 480 other problems"):
        read_facts(path)


def test_facts_are_read_from_csv(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text(
        "\ufeffprompt,target_new,subject,aliases,subject_start\r\n"
        '"Rome, it is said, is in",Spain,Rome,Hispania|Iberia,0\r\n'
        "\r\n"
        "Paris is in,Spain,,,\r\n",
        encoding="utf-8",
    )
    first, second = read_facts(path)
    assert (first.prompt, first.target) == ("Rome, it is said, is in", "Spain")
    assert (first.aliases, first.subject_start) == (("Hispania", "Iberia"), 0)
    assert (second.subject, second.aliases, second.name) == (None, (), "facts.csv:4")
    path.write_text("prompt,target\nRome is in\nParis is in,a,b\n")
    with pytest.raises(MalformedFacts, match=r"line 2: 1 cells, but 2 columns(.|\n)*line 3: 3"):
        read_facts(path)
    path.write_text("prompt;target\nRome is in;Italy\n")
    with pytest.raises(MalformedFacts, match="prompt;target"):
        read_facts(path)
    (tmp_path / "facts.tsv").write_text("prompt\ttarget\nRome is in\tItaly\n")
    assert read_facts(tmp_path / "facts.tsv")[0].target == "Italy"


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_a_file_without_facts_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(content)
    with pytest.raises(MalformedFacts, match="the file holds no facts"):
        read_facts(path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"prompt": "a", "target": NaN}', "line 1: NaN is no finite number"),
        (b'{"prompt": "a", "target": ' + b"9" * 5000 + b"}", "an integer of 5000 digits"),
        (b"[" * 2000, "nested deeper|not JSON"),
        (b'{"prompt": "\\ud800", "target": "b"}', "lone surrogate"),
        (b'{"prompt": "a\\u0000", "target": "b"}', "NUL"),
        (b'{"prompt": "a\0", "target": "b"}', "cannot be read: it holds a NUL"),
        ('{"prompt": "a", "target": "b"}'.encode("utf-16"), "UTF-16, not UTF-8"),
        (b'[{"prompt": "a", "target": "b"}, 3]', "record 2: fact: an object"),
    ],
)
def test_limits_of_files_have_codes(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(content)
    with pytest.raises(MalformedFacts, match=f"(?s)^CG101 .*({why})"):
        read_facts(path)


def test_devices_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/full"), Path("/dev/zero")):
        with pytest.raises(MalformedFacts, match=r"CG101 .*cannot be read: it is"):
            read_facts(path)


def test_other_facts_of_the_subject_are_read_and_filled_in(tmp_path: Path) -> None:
    fact = Fact(prompt="{} is in", subject="Rome", target="Italy", same_subject=" {} has the river")
    assert fact.same_subject == ("Rome has the river",)
    table = tmp_path / "facts.csv"
    table.write_text(
        "prompt,target,subject,same_subject\n{} is in,Italy,Rome,{} has the river|Rome speaks\n"
    )
    assert read_facts(table)[0].same_subject == ("Rome has the river", "Rome speaks")
    with pytest.raises(MalformedFacts, match="same_subject"):
        as_facts({"prompt": "a", "target": "b", "same_subject": [3]})
