"""Records of other tasks as they are published: the schema of each kind, and its questions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import Field, NonNegativeInt, TypeAdapter
from typing_extensions import TypedDict

Kind = Literal[
    "choices",
    "boolq",
    "cola",
    "conll",
    "gsm8k",
    "mmlu",
    "mrpc",
    "mutual",
    "nli",
    "nq",
    "rte",
    "samsum",
    "sst2",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Kinds of files."""

Text = Annotated[str, Field(min_length=1)]

LETTERS = "ABCDEFGHIJ"
"""Letters of the choices of an examination."""

_TYPES = {"PER": "person", "LOC": "location", "ORG": "organization", "MISC": "miscellaneous"}
_TAGS = ("O", *(f"{place}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for place in "BI"))
_TAG = re.compile(rf"O|[BI]-(?:{'|'.join(_TYPES)})")
_SPACE_BEFORE = re.compile(r" (?=[,.](?: |$))")


class TaskQuestion(NamedTuple):
    """One question of a record.

    Attributes:
        fields: What a wording may name.
        choices: What may follow the prompt and a space; empty where the answer is free.
        answer: Place of the right choice.
        expected: Groups of accepted spellings of a free answer, all of which should be given.
        about: Which of several questions of the record it is.
    """

    fields: Mapping[str, str]
    choices: tuple[str, ...] = ()
    answer: int = 0
    expected: tuple[tuple[str, ...], ...] = ()
    about: str = ""

    @property
    def worked_answer(self) -> str:
        """The right answer, as a worked example gives it."""
        if self.choices:
            return self.choices[self.answer]
        return ", ".join(group[0] for group in self.expected) or "none"


class RecordFormat(NamedTuple):
    """Format of the records of a kind.

    Attributes:
        schema: Their fields, as published; others are ignored.
        questions: Returns the questions of one record; raises ValueError where fields contradict
            each other.
    """

    schema: TypeAdapter[Any]
    questions: Callable[[Any], list[TaskQuestion]]


class _Choices(TypedDict):
    prompt: Text
    choices: Annotated[list[Text], Field(min_length=2)]
    answer: NonNegativeInt


class _Mmlu(TypedDict):
    question: Text
    choices: Annotated[list[Text], Field(min_length=2, max_length=len(LETTERS))]
    answer: NonNegativeInt


class _Mutual(TypedDict):
    article: Text
    options: Annotated[list[Text], Field(min_length=2, max_length=len(LETTERS))]
    answers: Annotated[str, Field(pattern=f"^[{LETTERS}]$")]


class _Sentence(TypedDict):
    sentence: Text
    label: NonNegativeInt


class _SentencePair(TypedDict):
    sentence1: Text
    sentence2: Text
    label: NonNegativeInt


class _BoolQ(TypedDict):
    question: Text
    passage: Text
    answer: bool


class _Gsm8k(TypedDict):
    question: Text
    answer: Annotated[str, Field(pattern=r"#### *\S*\d")]


class _Nq(TypedDict):
    question: Text
    answer: Annotated[list[Text], Field(min_length=1)]
    output: Annotated[list[Text], Field(min_length=1)]


class _Samsum(TypedDict):
    dialogue: Text
    summary: Text


class _Conll(TypedDict):
    tokens: Annotated[list[Text], Field(min_length=1)]
    ner_tags: list[int | str]


def find_entities(tokens: Sequence[str], tags: Sequence[str]) -> list[tuple[str, str]]:
    """Return types and texts of the entities marked by tags such as B-PER, I-PER and O, in order.

    Example:
        >>> find_entities(["Ann", "Lee", "saw", "Rome"], ["B-PER", "I-PER", "O", "B-LOC"])
        [('PER', 'Ann Lee'), ('LOC', 'Rome')]
    """
    found: list[tuple[str, list[str]]] = []
    before = ""
    for token, tag in zip(tokens, tags, strict=True):
        place, _, kind = tag.partition("-")
        if kind and (place == "B" or kind != before):
            found.append((kind, [token]))
        elif kind:
            found[-1][1].append(token)
        before = kind
    return [(kind, " ".join(words)) for kind, words in found]


def _read_choices(record: _Choices) -> list[TaskQuestion]:
    return [_require_choice({"prompt": record["prompt"]}, record["choices"], record["answer"])]


def _read_labels(*labels: str) -> Callable[[Mapping[str, Any]], list[TaskQuestion]]:
    def read(record: Mapping[str, Any]) -> list[TaskQuestion]:
        return [_require_choice(_strip_texts(record), labels, record["label"])]

    return read


def _read_exam(record: _Mmlu) -> list[TaskQuestion]:
    choices = record["choices"]
    return [_letter_choices({"question": record["question"]}, choices, record["answer"])]


def _read_dialogue(record: _Mutual) -> list[TaskQuestion]:
    answer = LETTERS.index(record["answers"])
    return [_letter_choices({"article": record["article"]}, record["options"], answer)]


def _read_boolq(record: _BoolQ) -> list[TaskQuestion]:
    return [_require_choice(_strip_texts(record), ("no", "yes"), int(record["answer"]))]


def _read_gsm8k(record: _Gsm8k) -> list[TaskQuestion]:
    rationale, _, number = record["answer"].rpartition("####")
    fields = {"question": record["question"].strip(), "rationale": rationale.strip()}
    return [TaskQuestion(fields, expected=((number.strip(),),))]


def _read_nq(record: _Nq) -> list[TaskQuestion]:
    fields = {"question": record["question"].strip(), "passage": record["output"][0].strip()}
    return [TaskQuestion(fields, expected=(tuple(record["answer"]),))]


def _read_samsum(record: _Samsum) -> list[TaskQuestion]:
    return [TaskQuestion(_strip_texts(record), expected=((record["summary"].strip(),),))]


def _read_conll(record: _Conll) -> list[TaskQuestion]:
    tags = [_check_tag(one) for one in record["ner_tags"]]
    if len(tags) != len(record["tokens"]):
        raise ValueError(f"{len(tags)} tags for {len(record['tokens'])} tokens")
    found = find_entities(record["tokens"], tags)
    text = _SPACE_BEFORE.sub("", " ".join(record["tokens"]))
    return [
        TaskQuestion(
            {"text": text, "type": name},
            expected=tuple((entity,) for kind, entity in found if kind == short),
            about=name,
        )
        for short, name in _TYPES.items()
    ]


def _check_tag(one: int | str) -> str:
    tag = _TAGS[one] if isinstance(one, int) and 0 <= one < len(_TAGS) else str(one)
    if not _TAG.fullmatch(tag):
        raise ValueError(f'"{one}" is no tag of CoNLL-2003')
    return tag


def _require_choice(fields: Mapping[str, str], choices: Sequence[str], answer: int) -> TaskQuestion:
    if answer >= len(choices) or len(set(choices)) < len(choices):
        raise ValueError(f"the answer is not one of {len(choices)} different choices")
    return TaskQuestion(fields, tuple(choices), answer)


def _letter_choices(fields: Mapping[str, str], choices: Sequence[str], answer: int) -> TaskQuestion:
    listed = "".join(
        f"\n({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False)
    )
    stripped = {name: value.strip() for name, value in fields.items()}
    return _require_choice({**stripped, "listed": listed}, LETTERS[: len(choices)], answer)


def _strip_texts(record: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value).strip() for name, value in record.items()}


_PAIR = TypeAdapter(_SentencePair)
FORMATS: Mapping[Kind, RecordFormat] = {
    "choices": RecordFormat(TypeAdapter(_Choices), _read_choices),
    "boolq": RecordFormat(TypeAdapter(_BoolQ), _read_boolq),
    "cola": RecordFormat(TypeAdapter(_Sentence), _read_labels("No", "Yes")),
    "conll": RecordFormat(TypeAdapter(_Conll), _read_conll),
    "gsm8k": RecordFormat(TypeAdapter(_Gsm8k), _read_gsm8k),
    "mmlu": RecordFormat(TypeAdapter(_Mmlu), _read_exam),
    "mrpc": RecordFormat(_PAIR, _read_labels("No", "Yes")),
    "mutual": RecordFormat(TypeAdapter(_Mutual), _read_dialogue),
    "nli": RecordFormat(_PAIR, _read_labels("True", "False")),
    "nq": RecordFormat(TypeAdapter(_Nq), _read_nq),
    "rte": RecordFormat(_PAIR, _read_labels("True", "False")),
    "samsum": RecordFormat(TypeAdapter(_Samsum), _read_samsum),
    "sst2": RecordFormat(TypeAdapter(_Sentence), _read_labels("negative", "positive")),
}
"""The format of each kind."""
