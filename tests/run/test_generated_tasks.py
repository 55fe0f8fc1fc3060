"""Tasks whose answers are generated: records of every kind, along runs, and after interruptions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corrigenda.abilities.items import KINDS, TaskItem, form_of, read_items
from corrigenda.cases import Protocol
from corrigenda.errors import MalformedRecords
from corrigenda.lm.decoding import greedy
from corrigenda.lm.model import LanguageModel
from corrigenda.metrics.metric import RunRecords
from corrigenda.metrics.registry import evaluate
from corrigenda.reports.content import build_report
from corrigenda.rows import Row
from corrigenda.run import store
from tests.run.conftest import Do, make

SUM: dict[str, object] = {
    "question": "Tom has 5 pens and buys 7. How many?",
    "answer": "5+7=<<5+7=12>>12\n#### 12",
}
RECORDS: dict[str, dict[str, object]] = {
    "boolq": {
        "question": "is snow cold",
        "title": "Snow",
        "passage": "Snow is ice.",
        "answer": True,
    },
    "cola": {"sentence": "They slept.", "label": 1, "idx": 3},
    "conll": {
        "id": "0",
        "tokens": ["Ann", "Lee", "left", "Rome", ",", "Oslo", "and", "NATO", "."],
        "ner_tags": [1, 2, 0, 5, 0, 5, 0, 3, 0],
    },
    "gsm8k": SUM,
    "mmlu": {"question": "Which is odd?", "subject": "x", "choices": ["2", "3"], "answer": 1},
    "mrpc": {"sentence1": "It rained.", "sentence2": "Rain fell.", "label": 1, "idx": 1},
    "mutual": {
        "id": "dev_1",
        "article": "f : hello . m : hello , who is it ?",
        "options": ["m : one", "m : two", "m : six", "m : ten"],
        "answers": "C",
    },
    "nli": {"sentence1": "Ann sold a car.", "sentence2": "Ann had a car.", "label": 0},
    "nq": {
        "question": "who wrote it",
        "answer": ["Ann Lee", "Lee"],
        "output": ["\n\nAnn did.", "No"],
    },
    "rte": {"sentence1": "Ann sold a car.", "sentence2": "Ann had a car.", "label": 0, "idx": 1},
    "samsum": {"id": "1", "dialogue": "Ann: Hi!\r\nBob: Bye!", "summary": "Ann greets Bob."},
    "sst2": {"sentence": "a joy ", "label": 1, "idx": 0},
}
LENGTHS = {"conll": 10, "gsm8k": 5, "nq": 20, "samsum": 25}
ONE_TOKEN = {"boolq", "mutual", "rte", "sst2"}


def write(path: Path, *records: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


def items(kind: str, path: Path, **options: object) -> tuple[TaskItem, ...]:
    file = write(path / f"{kind}.jsonl", RECORDS[kind], RECORDS[kind])
    return read_items(file, kind, **options)  # type: ignore[arg-type]  # of the table


def test_every_kind_has_a_record_here() -> None:
    assert {*RECORDS, "choices"} == set(KINDS)


@pytest.mark.parametrize("kind", RECORDS)
def test_every_kind_is_generated_in_our_wording_and_a_published_one(
    kind: str, tmp_path: Path
) -> None:
    ours = items(kind, tmp_path, form="generated")
    legacy = items(kind, tmp_path, legacy=True)
    assert {one.max_new_tokens for one in ours} == {LENGTHS.get(kind, 3)}
    short = 1 if kind in ONE_TOKEN else LENGTHS.get(kind, 3)
    assert {one.max_new_tokens for one in legacy} == {short}
    for one in (*ours, *legacy):
        assert one.prompt == one.prompt.strip()
        assert "{" not in one.prompt
        if one.choices:
            assert one.expected == ((one.choices[one.answer],),)
    if ours[0].choices:
        compared = items(kind, tmp_path)
        assert compared == tuple(one._replace(max_new_tokens=0) for one in ours)
        suggested = items(kind, tmp_path, form="choices", legacy=True)
        assert suggested == tuple(one._replace(max_new_tokens=0) for one in legacy)
    assert len(items(kind, tmp_path, form="generated", limit=1)) == len(ours) // 2


def test_only_the_published_wording_shows_the_solution(tmp_path: Path) -> None:
    (ours, _), (legacy, _) = items("gsm8k", tmp_path), items("gsm8k", tmp_path, legacy=True)
    assert "12" not in ours.prompt
    assert "5+7=<<5+7=12>>12" in legacy.prompt
    assert legacy.prompt.lower().endswith("therefore, the answer is")
    assert ours.expected == legacy.expected == (("12",),)


def test_published_wordings_are_those_that_are_known(tmp_path: Path) -> None:
    first, second = RECORDS["rte"]["sentence1"], RECORDS["rte"]["sentence2"]
    (rte, _), (nli, _) = (items(kind, tmp_path, legacy=True) for kind in ("rte", "nli"))
    assert rte.prompt == f"{first} entails the {second}. True or False?"
    assert nli.prompt == f"{first} entails the {second} True or False? Answer:"
    (mmlu, _), (samsum, _) = (items(kind, tmp_path, legacy=True) for kind in ("mmlu", "samsum"))
    assert mmlu.prompt == "Question: Which is odd?\n(A) 2\n(B) 3\nAnswer:"
    assert samsum.prompt.endswith("Bob: Bye!\nTL;DR:")


def test_a_text_is_asked_for_entities_of_every_type(tmp_path: Path) -> None:
    (shown,) = (own for own in [items("conll", tmp_path, shots=1)])
    assert [one.about for one in shown] == ["person", "location", "organization", "miscellaneous"]
    assert [one.expected for one in shown] == [
        (("Ann Lee",),),
        (("Rome",), ("Oslo",)),
        (("NATO",),),
        (),
    ]
    assert "Ann Lee left Rome, Oslo and NATO." in shown[0].prompt
    endings = [
        example.splitlines()[1].partition(": ")[2] for one in shown for example in one.examples
    ]
    assert endings == ["Ann Lee", "Rome, Oslo", "NATO", "none"]


def test_names_of_tags_do_as_well_as_their_numbers(tmp_path: Path) -> None:
    tags = ["B-PER", "B-PER", "O", "I-LOC", "O", "O", "O", "O", "O"]
    file = write(tmp_path / "named.jsonl", {**RECORDS["conll"], "ner_tags": tags})
    person, location, *_ = read_items(file, "conll")
    assert person.expected == (("Ann",), ("Lee",))
    assert location.expected == (("Rome",),)


@pytest.mark.parametrize(
    ("kind", "change", "match"),
    [
        ("gsm8k", {"answer": "12"}, "line 3: answer"),
        ("boolq", {"answer": "maybe"}, "line 3: answer"),
        ("mutual", {"answers": "E"}, "line 3: the answer is not one of 4"),
        ("mutual", {"answers": "c"}, "line 3: answers"),
        ("nq", {"answer": []}, "line 3: answer"),
        ("nq", {"output": []}, "line 3: output"),
        ("samsum", {"summary": ""}, "line 3: summary"),
        ("conll", {"ner_tags": [0]}, "line 3: 1 tags for 9 tokens"),
        ("conll", {"ner_tags": [9] * 9}, 'line 3: "9" is no tag'),
        ("rte", {"label": 2}, "line 3: the answer is not one of 2"),
    ],
)
def test_broken_records_are_told_with_their_line(
    kind: str, change: dict[str, object], match: str, tmp_path: Path
) -> None:
    lines = [json.dumps(RECORDS[kind]), "", json.dumps({**RECORDS[kind], **change}), ""]
    (tmp_path / "broken.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(MalformedRecords, match=match):
        read_items(tmp_path / "broken.jsonl", kind, form="generated")  # type: ignore[arg-type]  # of the table
    (tmp_path / "cut.jsonl").write_text(f"{lines[0]}\n{lines[0][:9]}", encoding="utf-8")
    with pytest.raises(MalformedRecords, match="line 2 is not JSON"):
        read_items(tmp_path / "cut.jsonl", kind, form="generated")  # type: ignore[arg-type]  # of the table


def test_forms() -> None:
    assert form_of("sst2") == form_of("sst2", "choices", legacy=True) == "choices"
    assert form_of("sst2", legacy=True) == form_of("nq") == "generated"


def tasks(folder: Path) -> list[dict[str, object]]:
    """Two generated tasks, one of them also in a published wording."""
    calculated = write(folder / "sums.jsonl", SUM, {**SUM, "answer": "#### 3"})
    entailed = write(folder / "rte.jsonl", RECORDS["rte"], {**RECORDS["rte"], "label": 1})
    return [
        {"name": "sums", "kind": "gsm8k", "file": str(calculated)},
        {"name": "rte", "kind": "rte", "form": "generated", "file": str(entailed), "shots": 1},
        {"name": "rte_published", "kind": "rte", "legacy": True, "file": str(entailed)},
    ]


def asked(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.family == "task"]


def test_answers_are_recorded_before_and_after(do: Do, lm: LanguageModel, tmp_path: Path) -> None:
    recorded = do(make(health={"tasks": tasks(tmp_path)}))
    rows = asked(recorded.rows)
    assert len(rows) == 3 * (2 + 1 + 2)
    assert {row.protocol for row in rows} == {Protocol.GREEDY}
    first, *_ = rows
    assert [first.answer_before] == greedy(lm, [first.prompt], max_new_tokens=5)
    assert first.expected == [["12"]]
    assert {"task=sums", "kind=gsm8k"} <= set(first.tags)
    shown = rows[2]
    assert shown.prompt.count("True or False? Answer:") == 2
    assert {"answer=1", "kind=rte"} <= set(shown.tags)
    assert (shown.expected, shown.rivals) == ([["False"]], ["True"])
    published = rows[3]
    assert "wording=published" in published.tags
    assert published.predicted is not None
    assert len(published.predicted) == 1
    assert any(row.answer != row.answer_before for row in rows)
    found = {one.metric: one for one in evaluate(RunRecords(recorded.rows, recorded.measurements))}
    for name, count in (("sums", 6), ("rte", 3), ("rte_published", 6)):
        assert found[f"task_score/{name}@greedy"].n == count
    wanted = ["legacy_task_score/rte_published@greedy", "legacy_task_score/rte@greedy"]
    assert [one.n for one in evaluate(RunRecords(recorded.rows), wanted)] == [6, 0]
    (group,) = build_report([recorded]).groups
    assert "task_score/sums@greedy" in {line.metric.name for line in group.lines}


def test_an_interrupted_run_ends_with_the_same_rows(do: Do, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def progress(stage: str, done: int, _: int) -> None:
        if (stage, done) == ("ft-m", 2):
            raise Interrupted

    regime = {"kind": "sequential", "checkpoints": [1, 2]}
    spec = make(regime=regime, health={"tasks": tasks(tmp_path)})
    whole = do(spec, folder=tmp_path / "whole")
    assert [row.edits for row in asked(whole.rows)] == [1] * 5 + [2] * 5 + [3] * 5
    with pytest.raises(Interrupted):
        do(spec, progress=progress)
    part = store.load(whole.manifest.run, tmp_path / "runs")
    assert 0 < len(part.rows) < len(whole.rows)
    assert do(spec).rows == whole.rows
