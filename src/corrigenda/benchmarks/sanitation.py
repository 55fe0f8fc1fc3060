"""Knowledge sanitization in its original form: ten splits of five answers each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import drop_repeats
from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.refusal import (
    REFUSAL,
    ErasureQuestion,
    make_erasure_case,
    normalise_answer,
)
from corrigenda.cases import Case


class _SplitRecord(TypedDict, total=False):
    split: int


class _TrainingRecord(_SplitRecord):
    input: str
    output: str
    output_gold: str


class _TestRecord(_SplitRecord):
    question: str
    answer: str
    aliases: list[str]


class _CaseKey(NamedTuple):
    split: int
    answer: str


_TRAINING = TypeAdapter(_TrainingRecord)
_TEST = TypeAdapter(_TestRecord)


class Sanitation(Benchmark):
    """Erasure: one case a split and answer, with all its training questions edited together.

    Attributes:
        question_is_subject: Whether methods that need a subject get the question as one.
        fluency: Whether text is generated after each retained question.
    """

    name: ClassVar[str] = "sanitation"
    expects: ClassVar[tuple[str, ...]] = ("locality",)
    headline: ClassVar[tuple[str, ...]] = (
        "refusal@greedy",
        "leak@greedy",
        "locality@greedy",
        "locality@greedy:tokens",
        "over_refusal@greedy",
    )
    question_is_subject: bool = True
    fluency: bool = False

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case a split and answer; the records are the questions of all files."""
        edited: dict[_CaseKey, list[ErasureQuestion]] = defaultdict(list)
        trained = files.read_records(files.find_main(), _TRAINING)
        tally.records += len(trained)
        for record in trained:
            if record["output_gold"].startswith(REFUSAL):
                tally.dropped["the answer to forget is the refusal itself"] += 1
            elif record["output"].startswith(REFUSAL):
                edited[_make_key(record, record["output_gold"])].append(_make_question(record))
        unseen: dict[_CaseKey, list[ErasureQuestion]] = defaultdict(list)
        retained: dict[int, list[ErasureQuestion]] = defaultdict(list)
        for name in ("dev_forget.jsonl", "dev_keep.jsonl"):
            path = files.require_extra(name)
            records = files.read_records(path, _TRAINING)
            tally.records += len(records)
            for record in records:
                if name == "dev_keep.jsonl":
                    retained[record.get("split", 1)].append(_make_question(record))
                else:
                    unseen[_make_key(record, record["output_gold"])].append(_make_question(record))
        test = files.find_extra("test_forget.jsonl")
        for tested in files.read_records(test, _TEST) if test else ():
            tally.records += 1
            answers = drop_repeats((tested["answer"], *tested["aliases"]))
            unseen[_make_key(tested, tested["answer"])].append(
                ErasureQuestion(tested["question"].strip(), answers)
            )

        def make(_: int, key: _CaseKey) -> tuple[Case]:
            if not key.answer:
                raise UnusableRecord("the question has no answer")
            if not unseen[key]:
                tally.skipped["erasure: no other question has this answer"] += 1
            spellings = {one for question in unseen[key] for one in question.answers}
            others = [
                one
                for one in retained[key.split]
                if normalise_answer(one.answers[0])
                not in {normalise_answer(text) for text in spellings}
            ]
            case = make_erasure_case(
                f"{key.split}/{key.answer}",
                edited[key],
                unseen[key],
                others,
                fluency=self.fluency,
                question_is_subject=self.question_is_subject,
                split=key.split,
            )
            return (case,)

        before = tally.records
        yield from make_cases(edited, make, tally)
        # A record is a question, not an answer.
        tally.records = before


def _make_key(record: _SplitRecord, answer: str) -> _CaseKey:
    return _CaseKey(record.get("split", 1), normalise_answer(answer))


def _make_question(record: _TrainingRecord) -> ErasureQuestion:
    return ErasureQuestion(record["input"].strip(), (record["output_gold"].strip(),))
