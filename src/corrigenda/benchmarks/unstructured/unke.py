"""UnKE: long, counterfactual answers, asked as a whole and in parts that were not edited."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.probes import make_natural_probe
from corrigenda.cases import Case
from corrigenda.errors import AmbiguousSubject, SubjectNotFound
from corrigenda.facts import Fact, find_subject
from corrigenda.subjects import guess_subject

NEW_TOKENS = 512
"""Most tokens of a long answer, as in the reference."""

UNKNOWN_SUBJECT = "no subject is certain: methods that need one cannot edit it"


_POSSESSIVE = re.compile("['\u2019]s?$")


class _UnkeRecord(TypedDict):
    id: int
    question: str
    para_question: str
    answer: str
    sub_question: list[str]
    sub_answer: list[str]


_SCHEMA = TypeAdapter(_UnkeRecord)


class Unke(Benchmark):
    """Edits of a question to a long text.

    Attributes:
        part: "v2", or "v3", whose further questions of MMLU are not read.
    """

    name: ClassVar[str] = "unke"
    expects: ClassVar[tuple[str, ...]] = ("generalization", "portability")
    headline: ClassVar[tuple[str, ...]] = (
        "reliability@generate:rouge_l",
        "reliability@generate:bleu",
        "generalization@generate:rouge_l",
        "generalization@generate:bleu",
        "portability@generate:rouge_l",
        "portability@generate:judge",
        "not_ended@generate",
    )
    part: Literal["v2", "v3"] = "v2"

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a record."""

        def make(_: int, record: _UnkeRecord) -> tuple[Case]:
            return (_make_case(record, tally),)

        yield from make_cases(files.read_records(files.find_main(), _SCHEMA), make, tally)


def find_certain_subject(prompt: str) -> str | None:
    """Return the subject of a question where only one is possible; "X" of "X's"."""
    try:
        name = _POSSESSIVE.sub("", guess_subject(prompt))
        find_subject(prompt, name)
    except (AmbiguousSubject, SubjectNotFound):
        return None
    return name


def _make_case(record: _UnkeRecord, tally: Tally) -> Case:
    question, answer = record["question"].strip(), record["answer"].strip()
    if len(record["sub_question"]) != len(record["sub_answer"]):
        raise UnusableRecord("questions about parts and their answers differ in number")
    subject = find_certain_subject(question)
    fact = Fact(prompt=question, target=answer, subject=subject, name=f"record {record['id']}")
    probes = [make_natural_probe(question, answer, "reliability", max_new_tokens=NEW_TOKENS)]
    if record["para_question"].strip():
        probes.append(
            make_natural_probe(
                record["para_question"], answer, "generalization", max_new_tokens=NEW_TOKENS
            )
        )
    else:
        tally.skipped["generalization: no prompt"] += 1
    for prompt, expected in zip(record["sub_question"], record["sub_answer"], strict=True):
        if not (prompt.strip() and expected.strip()):
            tally.skipped["portability/part: no answer"] += 1
            continue
        probes.append(
            make_natural_probe(prompt, expected, "portability/part", max_new_tokens=NEW_TOKENS)
        )
    return Case(
        id=str(record["id"]),
        facts=(fact,),
        probes=tuple(probes),
        meta={
            "edit": "modification",
            "flags": () if subject else (UNKNOWN_SUBJECT,),
        },
    )
