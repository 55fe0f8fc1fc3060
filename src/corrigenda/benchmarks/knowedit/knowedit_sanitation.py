"""KnowEdit Sanitation: answers of TriviaQA that must become a refusal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks.aliases import Answers, either, objects
from corrigenda.benchmarks.benchmark import Benchmark, Tally, Unusable, each
from corrigenda.benchmarks.files import Files, fit
from corrigenda.benchmarks.refusal import Question, answers_key, erasure_case
from corrigenda.cases import Case
from corrigenda.errors import MalformedRecords

_TEST = "trivia_qa_test.json"


class _Item(TypedDict):
    question: str
    ground_truth: Answers


_ITEM = TypeAdapter(_Item)


class KnowEditSanitation(Benchmark):
    """Erasure: one case an answer, with all its questions edited together.

    Attributes:
        question_is_subject: Whether methods that need a subject get the question as one.
    """

    name: ClassVar[str] = "knowedit-sanitation"
    question_is_subject: bool = True

    def read(self, files: Files, tally: Tally) -> Iterator[Case]:
        """Yield one case an answer; the records are the questions whose refusal is written."""
        edited = _lists(files, "trivia_qa_train.json", "K_F")["K_F"]
        test = _lists(files, _TEST, "success", "locality")
        by_answer: dict[str, list[Question]] = {}
        for item in edited:
            question = _question(item)
            key = answers_key(question.answers[0]) if question.answers else ""
            by_answer.setdefault(key, []).append(question)
        unseen = [_question(item) for item in test["success"]]
        retained = [one for one in map(_question, test["locality"]) if one.text and one.answers]
        # What is counted below is answers; a record is a question.
        tally.records += len(edited) - len(by_answer)

        def make(_: int, answer: str) -> tuple[Case]:
            if not answer:
                raise Unusable("the question has no answer")
            case = erasure_case(
                answer,
                by_answer[answer],
                [one for one in unseen if one.answers and answers_key(one.answers[0]) == answer],
                retained,
                fluency=True,
                question_is_subject=self.question_is_subject,
            )
            return (case,)

        yield from each(by_answer, make, tally)


def _lists(files: Files, name: str, *keys: str) -> dict[str, list[_Item]]:
    path = files.main() if name != _TEST else files.required(name)
    raw = files.document(path)
    if not isinstance(raw, dict) or not all(isinstance(raw.get(key), list) for key in keys):
        raise MalformedRecords(f"the file has no lists {' and '.join(keys)}.", where=str(path))
    return {key: fit(raw[key], _ITEM, where=f"{path}, {key}") for key in keys}


def _question(item: _Item) -> Question:
    answers = either(objects(item["ground_truth"]))
    return Question(item["question"].strip(), answers[0] if answers else ())
