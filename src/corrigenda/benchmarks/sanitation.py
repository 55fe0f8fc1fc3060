"""Knowledge sanitization in its original form: ten splits of five answers each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import distinct
from corrigenda.benchmarks.benchmark import Benchmark, Tally, Unusable, each
from corrigenda.benchmarks.files import Files
from corrigenda.benchmarks.refusal import REFUSAL, Question, answers_key, erasure_case
from corrigenda.cases import Case


class _Split(TypedDict, total=False):
    split: int


class _Trained(_Split):
    input: str
    output: str
    output_gold: str


class _Tested(_Split):
    question: str
    answer: str
    aliases: list[str]


class _Key(NamedTuple):
    split: int
    answer: str


_TRAINED = TypeAdapter(_Trained)
_TESTED = TypeAdapter(_Tested)


class Sanitation(Benchmark):
    """Erasure: one case a split and answer, with all its training questions edited together.

    Attributes:
        question_is_subject: Whether methods that need a subject get the question as one.
        fluency: Whether text is generated behind each retained question.
    """

    name: ClassVar[str] = "sanitation"
    question_is_subject: bool = True
    fluency: bool = False

    def read(self, files: Files, tally: Tally) -> Iterator[Case]:
        """Yield one case a split and answer; the records are the questions of all files."""
        edited: dict[_Key, list[Question]] = defaultdict(list)
        trained = files.records(files.main(), _TRAINED)
        tally.records += len(trained)
        for record in trained:
            if record["output_gold"].startswith(REFUSAL):
                tally.dropped["the answer to forget is the refusal itself"] += 1
            elif record["output"].startswith(REFUSAL):
                edited[_key(record, record["output_gold"])].append(_question(record))
        unseen: dict[_Key, list[Question]] = defaultdict(list)
        retained: dict[int, list[Question]] = defaultdict(list)
        for name in ("dev_forget.jsonl", "dev_keep.jsonl"):
            path = files.required(name)
            records = files.records(path, _TRAINED)
            tally.records += len(records)
            for record in records:
                if name == "dev_keep.jsonl":
                    retained[record.get("split", 1)].append(_question(record))
                else:
                    unseen[_key(record, record["output_gold"])].append(_question(record))
        test = files.extra("test_forget.jsonl")
        for tested in files.records(test, _TESTED) if test else ():
            tally.records += 1
            answers = distinct((tested["answer"], *tested["aliases"]))
            unseen[_key(tested, tested["answer"])].append(
                Question(tested["question"].strip(), answers)
            )

        def make(_: int, key: _Key) -> tuple[Case]:
            if not key.answer:
                raise Unusable("the question has no answer")
            if not unseen[key]:
                tally.skipped["erasure: no other question has this answer"] += 1
            spellings = {one for question in unseen[key] for one in question.answers}
            others = [
                one
                for one in retained[key.split]
                if answers_key(one.answers[0]) not in {answers_key(text) for text in spellings}
            ]
            case = erasure_case(
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
        yield from each(edited, make, tally)
        # A record is a question, not an answer.
        tally.records = before


def _key(record: _Split, answer: str) -> _Key:
    return _Key(record.get("split", 1), answers_key(answer))


def _question(record: _Trained) -> Question:
    return Question(record["input"].strip(), (record["output_gold"].strip(),))
