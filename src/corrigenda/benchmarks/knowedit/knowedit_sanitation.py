"""KnowEdit Sanitation: answers of TriviaQA that must become a refusal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import Answers, group_answers, merge_groups
from corrigenda.benchmarks.benchmark import Benchmark, Tally, UnusableRecord, make_cases
from corrigenda.benchmarks.files import BenchmarkFiles, validate_records
from corrigenda.benchmarks.refusal import ErasureQuestion, make_erasure_case, normalise_answer
from corrigenda.cases import Case
from corrigenda.errors import MalformedRecords

_TEST = "trivia_qa_test.json"


class _QuestionRecord(TypedDict):
    question: str
    ground_truth: Answers


_ITEM = TypeAdapter(_QuestionRecord)


class KnowEditSanitation(Benchmark):
    """Erasure: one case an answer, with all its questions edited together.

    Attributes:
        question_is_subject: Whether methods that need a subject get the question as one.
    """

    name: ClassVar[str] = "knowedit-sanitation"
    expects: ClassVar[tuple[str, ...]] = ("locality",)
    headline: ClassVar[tuple[str, ...]] = (
        "reliability@greedy:tokens",
        "locality@greedy:tokens",
        "fluency@greedy",
        "refusal@greedy",
    )
    question_is_subject: bool = True

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield one case an answer; the records are the questions whose refusal is written."""
        edited = _read_lists(files, "trivia_qa_train.json", "K_F")["K_F"]
        test = _read_lists(files, _TEST, "success", "locality")
        by_answer: dict[str, list[ErasureQuestion]] = {}
        for item in edited:
            question = _make_question(item)
            key = normalise_answer(question.answers[0]) if question.answers else ""
            by_answer.setdefault(key, []).append(question)
        unseen = [_make_question(item) for item in test["success"]]
        retained = [
            one for one in map(_make_question, test["locality"]) if one.text and one.answers
        ]
        # What is counted below is answers; a record is a question.
        tally.records += len(edited) - len(by_answer)

        def make(_: int, answer: str) -> tuple[Case]:
            if not answer:
                raise UnusableRecord("the question has no answer")
            case = make_erasure_case(
                answer,
                by_answer[answer],
                [
                    one
                    for one in unseen
                    if one.answers and normalise_answer(one.answers[0]) == answer
                ],
                retained,
                fluency=True,
                question_is_subject=self.question_is_subject,
            )
            return (case,)

        yield from make_cases(by_answer, make, tally)


def _read_lists(files: BenchmarkFiles, name: str, *keys: str) -> dict[str, list[_QuestionRecord]]:
    path = files.find_main() if name != _TEST else files.require_extra(name)
    raw = files.read_document(path)
    if not isinstance(raw, dict) or not all(isinstance(raw.get(key), list) for key in keys):
        raise MalformedRecords(f"the file has no lists {' and '.join(keys)}.", where=str(path))
    return {key: validate_records(raw[key], _ITEM, where=f"{path}, {key}") for key in keys}


def _make_question(item: _QuestionRecord) -> ErasureQuestion:
    answers = merge_groups(group_answers(item["ground_truth"]))
    return ErasureQuestion(item["question"].strip(), answers[0] if answers else ())
