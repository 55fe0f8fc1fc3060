"""ConflictEdit: a second edit that contradicts the first, directly or by implication."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.pitfalls.records import (
    EditRecord,
    TripleRecord,
    list_templates,
    make_fact,
    read_paraphrases,
)
from corrigenda.benchmarks.sequences import (
    EditConflict,
    ScoredAnswer,
    fill_templates,
    make_conflict_case,
    make_score_probes,
)
from corrigenda.cases import Case


class _ConflictOptional(TypedDict, total=False):
    rule: str


class _ConflictRecord(_ConflictOptional):
    type: Literal["reverse", "composite", "coverage"]
    triples: list[TripleRecord]
    edits: list[EditRecord]


_SCHEMA = TypeAdapter(_ConflictRecord)


class ConflictEdit(Benchmark):
    """Two edits in sequence, scored for the old, the new and the implied answer.

    Attributes:
        part: "reverse", "composite" or "coverage", of the facts that GPT-2 XL knows; the same with
            "gpt-j/" in front.
        alone: Whether each "coverage" record also gives a case in which the second edit is made
            alone.
    """

    name: ClassVar[str] = "conflictedit"
    kinds: ClassVar[tuple[str, ...]] = ("kind", "rule")
    headline: ClassVar[tuple[str, ...]] = (
        "conflict_score@rank",
        "conflict_magnitude@rank",
        "success_alone@rank",
        "tied_fact_damage@rank",
    )
    part: Literal[
        "reverse", "composite", "coverage", "gpt-j/reverse", "gpt-j/composite", "gpt-j/coverage"
    ] = "reverse"
    alone: bool = True

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record, two for "coverage"."""
        records = files.read_records(files.find_main(), _SCHEMA)
        table = read_paraphrases(files, "conflict_prompts.json")

        def make(index: int, record: _ConflictRecord) -> Iterator[Case]:
            one = _make_conflict(index, record, table)
            meta: dict[str, object] = {"kind": record["type"], "rule": record.get("rule", "")}
            yield make_conflict_case(str(index), one, meta)
            if record["type"] == "coverage" and self.alone:
                yield Case(
                    id=f"{index}/alone",
                    facts=(one.second,),
                    probes=tuple(
                        make_score_probes(
                            one.new, "conflict/single", after=(), rivals=(one.old.answer,)
                        )
                    ),
                    meta={"edit": "modification", "kind": "alone", "rule": ""},
                )

        yield from make_cases(records, make, tally)


def _make_conflict(
    index: int, record: _ConflictRecord, table: dict[str, list[str]]
) -> EditConflict:
    if len(record["edits"]) != 2 or not record["triples"]:
        raise UnusableRecord("there are not two edits")
    first, second = record["edits"]
    subjects = first["subject"]["label"], second["subject"]["label"]
    facts = [
        make_fact(
            edit["relation"],
            edit["subject"]["label"],
            edit["object"]["label"],
            edit["new_object"]["label"],
            f"record {index}, edit {number}",
        )
        for number, edit in enumerate((first, second), start=1)
    ]
    asks_first, asks_second = (list_templates(edit["relation"], table) for edit in (first, second))
    implied, tied = None, None
    if record["type"] == "reverse":
        implied = ScoredAnswer(fill_templates(asks_first, facts[1].target), facts[0].target)
    elif record["type"] == "composite":
        implied = ScoredAnswer(fill_templates(asks_first, subjects[0]), facts[1].target)
        tie = record["triples"][0]
        tied = ScoredAnswer(
            fill_templates(list_templates(tie["relation"], table), tie["subject"]["label"]),
            tie["object"]["label"].strip(),
        )
    return EditConflict(
        first=facts[0],
        second=facts[1],
        old=ScoredAnswer(fill_templates(asks_first, subjects[0]), facts[0].target),
        new=ScoredAnswer(fill_templates(asks_second, subjects[1]), facts[1].target),
        implied=implied,
        tied=tied,
    )
