"""QAEdit: real questions that a model answers wrongly, each with a rephrasing and five others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.probes import make_natural_probe
from corrigenda.cases import Against, Case
from corrigenda.facts import Fact

_FULL_STOP = "the target has a full stop inside, where WILD cuts the answer"


class _LocalityRecord(TypedDict):
    loc: str
    loc_ans: str


class _QAEditRecord(TypedDict):
    id: int
    source: str
    prompt: str
    target: str
    subject: str
    rephrase: str
    locality: list[_LocalityRecord]


_SCHEMA = TypeAdapter(_QAEditRecord)


class QAEdit(Benchmark):
    """Answers to questions of Natural Questions, TriviaQA and SimpleQA, judged as generated.

    Attributes:
        part: "1k" or "all".
        unrelated: How many of the unrelated questions of a record are asked; WILD asks the first.
    """

    name: ClassVar[str] = "qaedit"
    kinds: ClassVar[tuple[str, ...]] = ("source",)
    expects: ClassVar[tuple[str, ...]] = ("generalization", "locality")
    headline: ClassVar[tuple[str, ...]] = (
        "reliability@teacher_forced",
        "reliability@generate:wild",
        "reliability@generate:judge",
        "generalization@generate:wild",
        "generalization@generate:judge",
        "locality@generate",
        "locality@generate:tokens",
    )
    part: Literal["1k", "all"] = "1k"
    unrelated: Literal[1, 2, 3, 4, 5] = 5

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""

        def make(_: int, record: _QAEditRecord) -> tuple[Case]:
            return (self._make_case(record, tally),)

        yield from make_cases(files.read_records(files.find_main(), _SCHEMA), make, tally)

    def _make_case(self, record: _QAEditRecord, tally: Tally) -> Case:
        subject, prompt, target = record["subject"], record["prompt"].strip(), record["target"]
        if not subject.strip():
            raise UnusableRecord("the subject is empty")
        fact = Fact(
            prompt=prompt,
            target=target,
            subject=subject,
            # Three questions name their subject twice; the last is where it is asked about.
            subject_start=prompt.rfind(subject) if prompt.count(subject) > 1 else None,
            name=f"record {record['id']}",
        )
        probes = [make_natural_probe(prompt, fact.target, "reliability")]
        if record["rephrase"].strip():
            probes.append(make_natural_probe(record["rephrase"], fact.target, "generalization"))
        else:
            tally.skipped["generalization: no prompt"] += 1
        for one in record["locality"][: self.unrelated]:
            if not one["loc"].strip():
                tally.skipped["locality/unrelated_question: no prompt"] += 1
                continue
            probes.append(
                make_natural_probe(
                    one["loc"],
                    ((one["loc_ans"].strip(),),) if one["loc_ans"].strip() else (),
                    "locality/unrelated_question",
                    against=Against.UNEDITED,
                )
            )
        flags = (_FULL_STOP,) if "." in fact.target.rstrip(".") else ()
        return Case(
            id=f"{record['source']}-{record['id']}",
            facts=(fact,),
            probes=tuple(probes),
            meta={"edit": "modification", "source": record["source"], "flags": flags},
        )
