"""Multiple-choice items of other tasks, which show what an edited model can still do.

No cases to edit: items are asked of the whole model along a run (`health.tasks` of a recipe). The
files are JSON lines. Kind "choices" is plain; the others are the records of the GLUE tasks and of
MMLU as they are published, with wordings of our own around them.

| kind | fields | choices |
|---|---|---|
| `choices` | `prompt`, `choices`, `answer`: the place of the right one, from 0 | as given |
| `cola` | `sentence`, `label`: 1 acceptable | No, Yes |
| `mrpc` | `sentence1`, `sentence2`, `label`: 1 the same | No, Yes |
| `rte` | `sentence1`, `sentence2`, `label`: 0 entailed | True, False |
| `sst2` | `sentence`, `label`: 1 positive | negative, positive |
| `mmlu` | `question`, `choices`, `answer`: the place of the right one | A, B, C, D |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import Field, NonNegativeInt, TypeAdapter
from typing_extensions import TypedDict

from corrigenda.benchmarks._sources import fit
from corrigenda.errors import MalformedRecords, MissingData

Kind = Literal["choices", "cola", "mmlu", "mrpc", "rte", "sst2"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Kinds of files."""

Text = Annotated[str, Field(min_length=1)]


class Item(NamedTuple):
    """A question with its choices.

    Attributes:
        prompt: Everything up to the answer, worked examples included.
        choices: What may follow, behind a space.
        answer: Place of the right choice.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int


class _Choices(TypedDict):
    prompt: Text
    choices: Annotated[list[Text], Field(min_length=2)]
    answer: NonNegativeInt


class _Mmlu(TypedDict):
    question: Text
    choices: Annotated[list[Text], Field(min_length=2)]
    answer: NonNegativeInt


class _One(TypedDict):
    sentence: Text
    label: NonNegativeInt


class _Two(TypedDict):
    sentence1: Text
    sentence2: Text
    label: NonNegativeInt


class _Form(NamedTuple):
    """How the records of a task become questions."""

    schema: TypeAdapter[Any]
    template: str
    choices: tuple[str, ...]


_SENTENCE, _PAIR = TypeAdapter(_One), TypeAdapter(_Two)
_FORMS: Mapping[str, _Form] = {
    "cola": _Form(_SENTENCE, "Sentence: {sentence}\nIs it correct English? Answer:", ("No", "Yes")),
    "mrpc": _Form(
        _PAIR,
        "First: {sentence1}\nSecond: {sentence2}\nDo both say the same? Answer:",
        ("No", "Yes"),
    ),
    "rte": _Form(
        _PAIR,
        "{sentence1}\nFrom this it follows: {sentence2}\nTrue or False? Answer:",
        ("True", "False"),
    ),
    "sst2": _Form(_SENTENCE, "Review: {sentence}\nSentiment:", ("negative", "positive")),
}
_LETTERS = "ABCDEFGHIJ"
_PLAIN, _EXAM = TypeAdapter(_Choices), TypeAdapter(_Mmlu)


def read_items(
    path: str | Path, kind: Kind = "choices", *, shots: int = 0, limit: int | None = None
) -> tuple[Item, ...]:
    """Items of a file, in its order.

    Args:
        path: The file.
        kind: Which records it holds.
        shots: Worked examples put before each question: so many items from the beginning, which
            are not asked themselves.
        limit: Most items.

    Raises:
        MissingData (CG604): there is no such file.
        MalformedRecords (CG603): it cannot be read, or a record does not fit.
    """
    found = _items(_records(Path(path)), kind, str(path))
    shown = "".join(f"{one.prompt} {one.choices[one.answer]}\n\n" for one in found[:shots])
    asked = found[shots:] if limit is None else found[shots : shots + limit]
    return tuple(one._replace(prompt=shown + one.prompt) for one in asked)


def _items(raw: list[object], kind: Kind, where: str) -> list[Item]:
    if kind == "choices":
        plain = fit(raw, _PLAIN, where=where)
        found = [Item(one["prompt"], tuple(one["choices"]), one["answer"]) for one in plain]
    elif kind == "mmlu":
        exam = fit(raw, _EXAM, where=where)
        found = [_lettered(one["question"], one["choices"], one["answer"]) for one in exam]
    else:
        form = _FORMS[kind]
        records = fit(raw, form.schema, where=where)
        found = [
            Item(form.template.format(**_stripped(one)), form.choices, one["label"])
            for one in records
        ]
    for index, one in enumerate(found):
        if one.answer >= len(one.choices) or len(set(one.choices)) < len(one.choices):
            raise MalformedRecords(
                f"record {index}: the answer is not one of {len(one.choices)} different choices.",
                where=where,
            )
    return found


def _stripped(record: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value).strip() for name, value in record.items()}


def _lettered(question: str, choices: list[str], answer: int) -> Item:
    letters = tuple(_LETTERS[: len(choices)])
    listed = "".join(
        f"\n({letter}) {choice}" for letter, choice in zip(letters, choices, strict=False)
    )
    return Item(f"Question: {question.strip()}{listed}\nAnswer:", letters, answer)


def _records(path: Path) -> list[object]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line.strip()]
    except FileNotFoundError as error:
        raise MissingData("there is no file of items.", where=str(path)) from error
    except (OSError, ValueError) as error:
        raise MalformedRecords(
            f"the items cannot be read: {error}.",
            where=str(path),
            hint="Give one JSON object a line.",
        ) from error
