"""RoundEdit: a fact with several true objects, edited to another object and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import drop_repeats
from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.pitfalls.records import (
    EditRecord,
    EntityRecord,
    list_templates,
    make_fact,
    read_paraphrases,
)
from corrigenda.benchmarks.sequences import fill_templates, make_round_case
from corrigenda.cases import Case


class _RoundRecord(TypedDict):
    type: str
    edit: EditRecord
    true_objects: list[EntityRecord]


_SCHEMA = TypeAdapter(_RoundRecord)

REPEATED = "a true object is listed twice"


class RoundEdit(Benchmark):
    """An edit and its reversal, scored on all true objects.

    Attributes:
        part: "easy" or "hard", of the facts that GPT-2 XL knows; the same with "gpt-j/" in front.
        multi_label: Whether the second round writes every true object, not the one replaced alone.
    """

    name: ClassVar[str] = "roundedit"
    headline: ClassVar[tuple[str, ...]] = (
        "round_success@rank",
        "distortion@rank",
        "ignore_rate@rank",
        "failure_rate@rank",
    )
    part: Literal["easy", "hard", "gpt-j/easy", "gpt-j/hard"] = "easy"
    multi_label: bool = False

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        records = files.read_records(files.find_main(), _SCHEMA)
        table = read_paraphrases(files, "round_prompts.json")

        def make(index: int, record: _RoundRecord) -> tuple[Case]:
            return (self._make_case(index, record, table),)

        yield from make_cases(records, make, tally)

    def _make_case(self, index: int, record: _RoundRecord, table: dict[str, list[str]]) -> Case:
        edit = record["edit"]
        relation, subject = edit["relation"], edit["subject"]["label"]
        start, middle = edit["object"]["label"].strip(), edit["new_object"]["label"].strip()
        true = drop_repeats(one["label"].strip() for one in record["true_objects"])
        if start not in true or len(true) < 2:
            raise UnusableRecord("the object is not one of several true ones")
        if middle in true:
            raise UnusableRecord("the object in between is a true one")
        back = true if self.multi_label else (start,)
        return make_round_case(
            str(index),
            make_fact(relation, subject, start, middle, f"record {index}, there"),
            [make_fact(relation, subject, middle, one, f"record {index}, back") for one in back],
            fill_templates(list_templates(relation, table), subject),
            true,
            {
                "kind": "round",
                "relation": relation["id"],
                "true_objects": len(true),
                "flags": (REPEATED,) if len(true) < len(record["true_objects"]) else (),
            },
        )
