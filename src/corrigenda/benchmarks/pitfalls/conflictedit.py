"""ConflictEdit: a second edit that contradicts the first, directly or by implication."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.benchmark import Benchmark, Tally, Unusable, each
from corrigenda.benchmarks.files import Files
from corrigenda.benchmarks.pitfalls.records import Edit, Triple, fact_of, paraphrases, templates
from corrigenda.benchmarks.sequences import Conflict, Scored, conflict_case, filled, scored
from corrigenda.cases import Case


class _Optional(TypedDict, total=False):
    rule: str


class _Record(_Optional):
    type: Literal["reverse", "composite", "coverage"]
    triples: list[Triple]
    edits: list[Edit]


_SCHEMA = TypeAdapter(_Record)


class ConflictEdit(Benchmark):
    """Two edits in sequence, and what the model makes of both.

    Attributes:
        part: "reverse", "composite" or "coverage", of the facts that GPT-2 XL knows; the same with
            "gpt-j/" in front.
        alone: Whether each "coverage" record also gives a case in which the second edit is made
            alone.
    """

    name: ClassVar[str] = "conflictedit"
    part: Literal[
        "reverse", "composite", "coverage", "gpt-j/reverse", "gpt-j/composite", "gpt-j/coverage"
    ] = "reverse"
    alone: bool = True

    def read(self, files: Files, tally: Tally) -> Iterator[Case]:
        """Yield one case a record, two for "coverage"."""
        records = files.records(files.main(), _SCHEMA)
        table = paraphrases(files, "conflict_prompts.json")

        def make(index: int, record: _Record) -> Iterator[Case]:
            one = _conflict(index, record, table)
            meta: dict[str, object] = {"kind": record["type"], "rule": record.get("rule", "")}
            yield conflict_case(str(index), one, meta)
            if record["type"] == "coverage" and self.alone:
                yield Case(
                    id=f"{index}/alone",
                    facts=(one.second,),
                    probes=tuple(
                        scored(one.new, "conflict/single", after=(), rivals=(one.old.answer,))
                    ),
                    meta={"edit": "modification", "kind": "alone", "rule": ""},
                )

        yield from each(records, make, tally)


def _conflict(index: int, record: _Record, table: dict[str, list[str]]) -> Conflict:
    if len(record["edits"]) != 2 or not record["triples"]:
        raise Unusable("there are not two edits")
    first, second = record["edits"]
    subjects = first["subject"]["label"], second["subject"]["label"]
    facts = [
        fact_of(
            edit["relation"],
            edit["subject"]["label"],
            edit["object"]["label"],
            edit["new_object"]["label"],
            f"record {index}, edit {number}",
        )
        for number, edit in enumerate((first, second), start=1)
    ]
    asks_first, asks_second = (templates(edit["relation"], table) for edit in (first, second))
    implied, tied = None, None
    if record["type"] == "reverse":
        implied = Scored(filled(asks_first, facts[1].target), facts[0].target)
    elif record["type"] == "composite":
        implied = Scored(filled(asks_first, subjects[0]), facts[1].target)
        tie = record["triples"][0]
        tied = Scored(
            filled(templates(tie["relation"], table), tie["subject"]["label"]),
            tie["object"]["label"].strip(),
        )
    return Conflict(
        first=facts[0],
        second=facts[1],
        old=Scored(filled(asks_first, subjects[0]), facts[0].target),
        new=Scored(filled(asks_second, subjects[1]), facts[1].target),
        implied=implied,
        tied=tied,
    )
