"""RoundEdit: a fact with several true objects, edited away and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import distinct
from corrigenda.benchmarks.benchmark import Benchmark, Tally, Unusable, each
from corrigenda.benchmarks.files import Files
from corrigenda.benchmarks.pitfalls.records import Edit, Named, fact_of, paraphrases, templates
from corrigenda.benchmarks.sequences import filled, round_case
from corrigenda.cases import Case


class _Record(TypedDict):
    type: str
    edit: Edit
    true_objects: list[Named]


_SCHEMA = TypeAdapter(_Record)

REPEATED = "a true object is listed twice"


class RoundEdit(Benchmark):
    """An edit and its reversal, and what both did to the other true objects.

    Attributes:
        part: "easy" or "hard", of the facts that GPT-2 XL knows; the same with "gpt-j/" in front.
        multi_label: Whether the second round writes every true object, not the one replaced alone.
    """

    name: ClassVar[str] = "roundedit"
    part: Literal["easy", "hard", "gpt-j/easy", "gpt-j/hard"] = "easy"
    multi_label: bool = False

    def read(self, files: Files, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        records = files.records(files.main(), _SCHEMA)
        table = paraphrases(files, "round_prompts.json")

        def make(index: int, record: _Record) -> tuple[Case]:
            return (self._case(index, record, table),)

        yield from each(records, make, tally)

    def _case(self, index: int, record: _Record, table: dict[str, list[str]]) -> Case:
        edit = record["edit"]
        relation, subject = edit["relation"], edit["subject"]["label"]
        start, middle = edit["object"]["label"].strip(), edit["new_object"]["label"].strip()
        true = distinct(one["label"].strip() for one in record["true_objects"])
        if start not in true or len(true) < 2:
            raise Unusable("the object is not one of several true ones")
        if middle in true:
            raise Unusable("the object in between is a true one")
        back = true if self.multi_label else (start,)
        return round_case(
            str(index),
            fact_of(relation, subject, start, middle, f"record {index}, there"),
            [fact_of(relation, subject, middle, one, f"record {index}, back") for one in back],
            filled(templates(relation, table), subject),
            true,
            {
                "kind": "round",
                "relation": relation["id"],
                "true_objects": len(true),
                "flags": (REPEATED,) if len(true) < len(record["true_objects"]) else (),
            },
        )
