"""Other tasks along a run: items are asked before and after, on the model as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from corrigenda.abilities.items import read_items
from corrigenda.cases import Protocol
from corrigenda.errors import BadConfig, MalformedRecords, MissingData
from corrigenda.lm.decoding import score
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.spans import encode
from corrigenda.metrics.metric import RunRecords
from corrigenda.metrics.registry import evaluate, metric
from corrigenda.metrics.tasks.choices import chosen_place
from corrigenda.run.prober import Query, add_examples
from corrigenda.run.spec import HealthSpec
from tests.run.conftest import Do, make

ITEMS = [
    {"prompt": "Snow is", "choices": ["cold", "hot and dry", "green"], "answer": 0},
    {"prompt": "A cat is an", "choices": ["engine", "animal"], "answer": 1},
    {"prompt": "Two and two make", "choices": ["four", "five"], "answer": 0},
]


def write(path: Path, records: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


@pytest.fixture
def items(tmp_path: Path) -> Path:
    return write(tmp_path / "items.jsonl", ITEMS)


def test_items_are_scored_before_and_after(do: Do, lm: LanguageModel, items: Path) -> None:
    recorded = do(make(health={"tasks": [{"name": "sense", "file": str(items)}]}))
    rows = [row for row in recorded.rows if row.role == "task/sense"]
    assert len(rows) == 3 * len(ITEMS)
    assert {row.protocol for row in rows} == {Protocol.RANK}
    row = rows[1]
    assert "answer=1" in row.tags
    own, other = score(lm, [("A cat is an", "animal"), ("A cat is an", "engine")])
    assert row.log_probs_before == pytest.approx(own.log_probs, abs=1e-4)
    assert row.rival_log_probs_before is not None
    assert row.rival_log_probs_before[0] == pytest.approx(other.log_probs, abs=1e-4)
    assert row.log_probs != row.log_probs_before
    found = {one.metric: one for one in evaluate(RunRecords(recorded.rows, recorded.measurements))}
    right = [
        row.rival_log_probs is not None
        and row.log_probs is not None
        and chosen_place(answer, row.log_probs, row.rival_log_probs, "mean") == answer
        for row in rows
        for answer in [int(next(tag for tag in row.tags if "answer=" in tag)[-1])]
    ]
    assert found["task_accuracy/sense@rank"].value == pytest.approx(sum(right) / len(right))
    assert found["task_accuracy/sense@rank"].n == len(rows)
    assert metric("task_f1/sense@rank").name == "task_f1/sense@rank"


def test_of_a_sequence_tasks_are_asked_at_checkpoints(do: Do, items: Path) -> None:
    regime = {"kind": "sequential", "checkpoints": [2]}
    recorded = do(make(regime=regime, health={"tasks": [{"name": "sense", "file": str(items)}]}))
    rows = [row for row in recorded.rows if row.role == "task/sense"]
    assert [row.edits for row in rows] == [2] * len(ITEMS) + [3] * len(ITEMS)
    assert len({row.model for row in rows}) == 2


def test_a_run_is_another_where_the_items_are(do: Do, items: Path) -> None:
    spec = make(health={"tasks": [{"name": "sense", "file": str(items)}]})
    first = do(spec)
    write(items, ITEMS[:1])
    second = do(spec)
    assert first.manifest.run != second.manifest.run
    assert sum(row.family == "task" for row in second.rows) == 3


@pytest.mark.parametrize("protocol", [Protocol.RANK, Protocol.GREEDY])
def test_as_many_examples_are_shown_as_there_is_room(protocol: Protocol, lm: LanguageModel) -> None:
    examples = tuple(f"{word} cat is an animal\n\n" for word in ("One", "Two", "Six", "Ten"))
    longest = 9
    question = Query("A cat is an", protocol, "animal", ("engine",), examples=examples)
    if protocol == Protocol.GREEDY:
        question = question._replace(target=None, rivals=(), max_new_tokens=longest)
    found: list[int] = []
    for words in range(40):
        asked = question._replace(prompt="green " * words + question.prompt)
        prompt = add_examples(lm, asked).prompt
        found.append(prompt.count("cat is an animal"))
        assert prompt == "".join(examples[: found[-1]]) + asked.prompt

        def length(count: int, asked: Query = asked) -> int:
            text = "".join(examples[:count]) + asked.prompt
            if protocol == Protocol.GREEDY:
                return len(encode(lm, text, max_length=999).ids) + longest
            both = ("animal", "engine")
            return max(len(encode(lm, text, target=one, max_length=999).ids) for one in both)

        assert found[-1] == 0 or length(found[-1]) <= lm.context_length
        assert found[-1] == len(examples) or length(found[-1] + 1) > lm.context_length
        if not found[-1]:
            break
    assert found == sorted(found, reverse=True)
    assert {0, 1, 2, 3, 4} == set(found)


def test_rows_tell_the_examples_that_were_shown(do: Do, tmp_path: Path) -> None:
    file = write(tmp_path / "items.jsonl", ITEMS)
    task = {"name": "sense", "file": str(file), "shots": 2}
    rows = [row for row in do(make(health={"tasks": [task]})).rows if row.family == "task"]
    assert {row.prompt for row in rows} == {
        "Snow is cold\n\nA cat is an animal\n\nTwo and two make"
    }
    assert not any(row.skipped for row in rows)


def test_items_too_long_are_skipped_and_counted(do: Do, tmp_path: Path) -> None:
    long = {"prompt": "word " * 200, "choices": ["one", "two"], "answer": 0}
    file = write(tmp_path / "long.jsonl", [long, ITEMS[0]])
    recorded = do(make(health={"tasks": [{"name": "long", "file": str(file)}]}))
    (found,) = evaluate(RunRecords(recorded.rows), ["task_accuracy/long@rank"])
    assert found.n == 3
    assert found.skipped == {"CG105 PromptTooLong": 3}


GLUE = {
    "cola": ({"sentence": "They slept.", "label": 1, "idx": 3}, ("No", "Yes"), "They slept."),
    "mrpc": (
        {"sentence1": "It {rained}.", "sentence2": "Rain fell.", "label": 0, "idx": 1},
        ("No", "Yes"),
        "{rained}",
    ),
    "rte": (
        {"sentence1": "Ann sold a car.", "sentence2": "Ann had a car.", "label": 0, "idx": 1},
        ("True", "False"),
        "Ann had a car.",
    ),
    "sst2": ({"sentence": "a joy ", "label": 1, "idx": 0}, ("negative", "positive"), "a joy\n"),
    "mmlu": (
        {"question": "Which is odd?", "subject": "x", "choices": ["2", "3"], "answer": 1},
        ("A", "B"),
        "(B) 3",
    ),
}


@pytest.mark.parametrize("kind", GLUE)
def test_published_records_become_items(kind: str, tmp_path: Path) -> None:
    record, choices, inside = GLUE[kind]
    file = write(tmp_path / "one.jsonl", [record, record])
    plain, _ = read_items(file, kind)  # type: ignore[arg-type]  # of the table
    assert plain.choices == choices
    assert plain.answer == record.get("label", record.get("answer"))
    assert inside in plain.prompt
    assert not plain.prompt.endswith(" ")
    (last,) = read_items(file, kind, shots=1)  # type: ignore[arg-type]  # of the table
    right = choices[plain.answer]
    assert last == plain._replace(examples=(f"{plain.prompt} {right}\n\n",))
    assert read_items(file, kind, limit=1) == (plain,)  # type: ignore[arg-type]  # of the table


@pytest.mark.parametrize(
    ("record", "match"),
    [
        ({"prompt": "x", "choices": ["a", "b"], "answer": 2}, "line 1: the answer"),
        ({"prompt": "x", "choices": ["a", "a"], "answer": 0}, "2 different choices"),
        ({"prompt": "x", "choices": ["a"], "answer": 0}, "line 1: choices"),
        ({"prompt": "x", "answer": 0}, "line 1: choices"),
    ],
)
def test_broken_items_are_told(record: dict[str, object], match: str, tmp_path: Path) -> None:
    with pytest.raises(MalformedRecords, match=match):
        read_items(write(tmp_path / "broken.jsonl", [record]))


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="no file of items"):
        read_items(tmp_path / "absent.jsonl")
    (tmp_path / "odd.jsonl").write_text("not JSON", encoding="utf-8")
    with pytest.raises(MalformedRecords, match="cannot be read: line 1 is not JSON"):
        read_items(tmp_path / "odd.jsonl")


@pytest.mark.parametrize(
    ("tasks", "match"),
    [
        ([{"name": "a"}], "give the file of its items"),
        ([{"name": "a", "file": "x"}, {"name": "a", "file": "y"}], "two tasks have one name"),
        ([{"name": "a b", "file": "x"}], "name"),
        ([{"name": "a", "file": "x", "kind": "glue"}], "kind"),
        ([{"name": "a", "file": "x", "form": "generated"}], "in the wording that they bring"),
        ([{"name": "a", "file": "x", "legacy": True}], "in the wording that they bring"),
        ([{"name": "a", "file": "x", "kind": "nq", "form": "choices"}], "have no choices"),
        ([{"name": "a", "kind": "harness", "form": "generated"}], "of its own"),
    ],
)
def test_settings_that_cannot_be_are_told(tasks: list[dict[str, object]], match: str) -> None:
    with pytest.raises(BadConfig, match=match):
        make(health={"tasks": tasks})
    assert HealthSpec().tasks == ()


def test_a_limit_draws_records_by_its_seed(tmp_path: Path) -> None:
    records = [
        {"question": f"Which is {n}?", "subject": "x", "choices": ["2", "3"], "answer": n // 10}
        for n in range(20)
    ]
    file = write(tmp_path / "grouped.jsonl", records)
    drawn = [read_items(file, "mmlu", limit=4, seed=seed) for seed in range(5)]
    assert len(set(drawn)) > 1
    for items in drawn:
        assert tuple(one for one in read_items(file, "mmlu") if one in items) == items
        assert sum(one.answer for one in items) == 2
