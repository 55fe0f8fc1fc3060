"""CounterFact as EasyEdit flattens it: one rephrasing and one neighbour a record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.files import BenchmarkFiles, validate_records
from corrigenda.benchmarks.probes import make_forced_probe
from corrigenda.cases import Against, Case
from corrigenda.errors import MalformedRecords
from corrigenda.facts import Fact


class _FlatRecord(TypedDict):
    case_id: int
    prompt: str
    subject: str
    target_new: str
    ground_truth: str
    rephrase_prompt: str
    locality_prompt: str
    locality_ground_truth: str


class _RelationRecord(TypedDict):
    relation_id: str
    prompt: str


_SCHEMA = TypeAdapter(_FlatRecord)
_RELATION = TypeAdapter(_RelationRecord)


class CounterFactFlat(Benchmark):
    """Counterfactual edits, scored under teacher forcing.

    Attributes:
        part: "edit", "train" or "val".
    """

    name: ClassVar[str] = "counterfact-flat"
    expects: ClassVar[tuple[str, ...]] = ("generalization", "locality")
    headline: ClassVar[tuple[str, ...]] = (
        "reliability@teacher_forced",
        "generalization@teacher_forced",
        "locality@teacher_forced",
    )
    part: Literal["edit", "train", "val"] = "edit"

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""
        records = files.read_records(files.find_main(), _SCHEMA)
        relations = _read_relations(files)

        def make(_: int, record: _FlatRecord) -> tuple[Case]:
            subject = record["subject"]
            if not subject.strip():
                raise UnusableRecord("the subject is empty")
            relation = relations.get(str(record["case_id"]))
            start = None
            if relation and relation["prompt"].replace("{}", subject) == record["prompt"]:
                start = relation["prompt"].index("{}")
            fact = Fact(
                prompt=record["prompt"].rstrip(),
                target=record["target_new"].strip(),
                subject=subject,
                subject_start=start,
                before=record["ground_truth"].strip(),
                name=f"case {record['case_id']}",
            )
            rivals = (fact.before,) if fact.before else ()
            probes = [make_forced_probe(fact.prompt, fact.target, "reliability", rivals=rivals)]
            if record["rephrase_prompt"].strip():
                probes.append(
                    make_forced_probe(
                        record["rephrase_prompt"], fact.target, "generalization", rivals=rivals
                    )
                )
            if record["locality_prompt"].strip() and record["locality_ground_truth"].strip():
                probes.append(
                    make_forced_probe(
                        record["locality_prompt"],
                        record["locality_ground_truth"].strip(),
                        "locality/neighborhood",
                        against=Against.UNEDITED,
                    )
                )
            else:
                tally.skipped["locality/neighborhood: no answer"] += 1
            meta: dict[str, object] = {"edit": "modification"}
            if relation:
                meta["relation"] = relation["relation_id"]
            case = Case(id=str(record["case_id"]), facts=(fact,), probes=tuple(probes), meta=meta)
            return (case,)

        yield from make_cases(records, make, tally)


def _read_relations(files: BenchmarkFiles) -> dict[str, _RelationRecord]:
    path = files.find_extra("relation_map.json")
    if path is None:
        return {}
    raw = files.read_document(path)
    if not isinstance(raw, dict):
        raise MalformedRecords("the file is no table by case.", where=str(path))
    return dict(
        zip(raw, validate_records(list(raw.values()), _RELATION, where=str(path)), strict=True)
    )
