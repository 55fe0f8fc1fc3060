"""Records of other tasks as they are published: the schema of each kind, and what a record asks."""

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
"""What stands for the choices of an examination."""

_TYPES = {"PER": "person", "LOC": "location", "ORG": "organization", "MISC": "miscellaneous"}
_TAGS = ("O", *(f"{place}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for place in "BI"))
_TAG = re.compile(rf"O|[BI]-(?:{'|'.join(_TYPES)})")
_SPACE_BEFORE = re.compile(r" (?=[,.](?: |$))")


class Part(NamedTuple):
    """One question of a record.

    Attributes:
        fields: What a wording may name.
        choices: What may follow, behind a space; empty where the answer is free.
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
    def shown(self) -> str:
        """The right answer, as a worked example gives it."""
        if self.choices:
            return self.choices[self.answer]
        return ", ".join(group[0] for group in self.expected) or "none"


class Records(NamedTuple):
    """What the records of a kind are.

    Attributes:
        schema: Their fields, as published; others are not looked at.
        parts: The questions of one; raises ValueError where fields contradict each other.
    """

    schema: TypeAdapter[Any]
    parts: Callable[[Any], list[Part]]


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


class _One(TypedDict):
    sentence: Text
    label: NonNegativeInt


class _Two(TypedDict):
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


def entities(tokens: Sequence[str], tags: Sequence[str]) -> list[tuple[str, str]]:
    """Types and texts of the entities that tags of the form B-PER, I-PER, O mark, in their order.

    Example:
        >>> entities(["Ann", "Lee", "saw", "Rome"], ["B-PER", "I-PER", "O", "B-LOC"])
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


def _plain(record: _Choices) -> list[Part]:
    return [_chosen({"prompt": record["prompt"]}, record["choices"], record["answer"])]


def _labelled(*labels: str) -> Callable[[Mapping[str, Any]], list[Part]]:
    def parts(record: Mapping[str, Any]) -> list[Part]:
        return [_chosen(_texts(record), labels, record["label"])]

    return parts


def _examined(record: _Mmlu) -> list[Part]:
    choices = record["choices"]
    return [_lettered({"question": record["question"]}, choices, record["answer"])]


def _replied(record: _Mutual) -> list[Part]:
    answer = LETTERS.index(record["answers"])
    return [_lettered({"article": record["article"]}, record["options"], answer)]


def _yes_or_no(record: _BoolQ) -> list[Part]:
    return [_chosen(_texts(record), ("no", "yes"), int(record["answer"]))]


def _calculated(record: _Gsm8k) -> list[Part]:
    rationale, _, number = record["answer"].rpartition("####")
    fields = {"question": record["question"].strip(), "rationale": rationale.strip()}
    return [Part(fields, expected=((number.strip(),),))]


def _read_up(record: _Nq) -> list[Part]:
    fields = {"question": record["question"].strip(), "passage": record["output"][0].strip()}
    return [Part(fields, expected=(tuple(record["answer"]),))]


def _summed_up(record: _Samsum) -> list[Part]:
    return [Part(_texts(record), expected=((record["summary"].strip(),),))]


def _marked(record: _Conll) -> list[Part]:
    tags = [_tag(one) for one in record["ner_tags"]]
    if len(tags) != len(record["tokens"]):
        raise ValueError(f"{len(tags)} tags for {len(record['tokens'])} tokens")
    found = entities(record["tokens"], tags)
    text = _SPACE_BEFORE.sub("", " ".join(record["tokens"]))
    return [
        Part(
            {"text": text, "type": name},
            expected=tuple((entity,) for kind, entity in found if kind == short),
            about=name,
        )
        for short, name in _TYPES.items()
    ]


def _tag(one: int | str) -> str:
    tag = _TAGS[one] if isinstance(one, int) and 0 <= one < len(_TAGS) else str(one)
    if not _TAG.fullmatch(tag):
        raise ValueError(f'"{one}" is no tag of CoNLL-2003')
    return tag


def _chosen(fields: Mapping[str, str], choices: Sequence[str], answer: int) -> Part:
    if answer >= len(choices) or len(set(choices)) < len(choices):
        raise ValueError(f"the answer is not one of {len(choices)} different choices")
    return Part(fields, tuple(choices), answer)


def _lettered(fields: Mapping[str, str], choices: Sequence[str], answer: int) -> Part:
    listed = "".join(
        f"\n({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False)
    )
    stripped = {name: value.strip() for name, value in fields.items()}
    return _chosen({**stripped, "listed": listed}, LETTERS[: len(choices)], answer)


def _texts(record: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value).strip() for name, value in record.items()}


_PAIR = TypeAdapter(_Two)
RECORDS: Mapping[Kind, Records] = {
    "choices": Records(TypeAdapter(_Choices), _plain),
    "boolq": Records(TypeAdapter(_BoolQ), _yes_or_no),
    "cola": Records(TypeAdapter(_One), _labelled("No", "Yes")),
    "conll": Records(TypeAdapter(_Conll), _marked),
    "gsm8k": Records(TypeAdapter(_Gsm8k), _calculated),
    "mmlu": Records(TypeAdapter(_Mmlu), _examined),
    "mrpc": Records(_PAIR, _labelled("No", "Yes")),
    "mutual": Records(TypeAdapter(_Mutual), _replied),
    "nli": Records(_PAIR, _labelled("True", "False")),
    "nq": Records(TypeAdapter(_Nq), _read_up),
    "rte": Records(_PAIR, _labelled("True", "False")),
    "samsum": Records(TypeAdapter(_Samsum), _summed_up),
    "sst2": Records(TypeAdapter(_One), _labelled("negative", "positive")),
}
"""The records of each kind."""
