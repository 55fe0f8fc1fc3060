"""Items of other tasks, which show what an edited model can still do.

Nothing is edited for them: items are asked of the whole model during a run (`health.tasks` of a
recipe). The files are JSON lines. Kind "choices" is plain; the others are records as they are
published, one a line. Fields that are not listed are ignored.

| kind | fields | answer |
|---|---|---|
| `choices` | `prompt`, `choices`, `answer`: the place of the right one, from 0 | as given |
| `cola` | `sentence`, `label`: 1 acceptable | No, Yes |
| `mrpc` | `sentence1`, `sentence2`, `label`: 1 the same | No, Yes |
| `rte`, `nli` | `sentence1`, `sentence2`, `label`: 0 entailed | True, False |
| `sst2` | `sentence`, `label`: 1 positive | negative, positive |
| `mmlu` | `question`, `choices`, `answer`: the place of the right one | A, B, C, D |
| `boolq` | `question`, `passage`, `answer`: true or false | no, yes |
| `mutual` | `article`, `options`, `answers`: the letter of the right one | A, B, C, D |
| `gsm8k` | `question`, `answer`: the way to it, `####`, the number | a number |
| `nq` | `question`, `answer`: spellings, `output`: passages, of which the first is read | words |
| `samsum` | `dialogue`, `summary` | a text |
| `conll` | `tokens`, `ner_tags`: numbers or names (B-PER, I-PER, O, ...) | entities, by type |

Tasks are asked in two forms: the choices are compared by likelihood, or the answer is generated. A
wording is this library's own, or follows a published one (`legacy`), with its length of answers:
Gu et al. 2024 for `rte`, `sst2`, `boolq`, `mutual`, `gsm8k`, `nq`, `samsum` and `conll`; the suite
of Gupta et al. 2024 for `nli`, `mmlu`, `cola` and `mrpc`. Published wordings of which only the
parts are known are put in our own words. That of `gsm8k` shows the solution before it asks for the
answer, so it measures no reasoning; ours does not show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from corrigenda.abilities.record_formats import FORMATS, KINDS, Kind, TaskQuestion
from corrigenda.benchmarks.draw import draw_places
from corrigenda.benchmarks.files import validate_records
from corrigenda.errors import MalformedRecords, MissingData
from corrigenda.text_files import NotJson, UnreadableText, parse_json, read_text

__all__ = ["KINDS", "Form", "Kind", "TaskItem", "form_of", "read_items"]

Form = Literal["choices", "generated"]
"""Choices compared by likelihood, or an answer that the model writes."""

_FREE = ("conll", "gsm8k", "nq", "samsum")
_HINT = "`corrigenda.abilities.items` lists the fields of each kind."


class TaskItem(NamedTuple):
    """A question of a task.

    Attributes:
        prompt: Everything up to the answer.
        choices: What may follow the prompt and a space; empty where the answer is free.
        answer: Place of the right choice.
        expected: Groups of accepted spellings, all of which should be given.
        examples: Worked examples shown before the prompt, as many of the first as there is room.
        max_new_tokens: Length of a generated answer; 0 where choices are compared.
        about: Which of several questions of one record it is.
    """

    prompt: str
    choices: tuple[str, ...] = ()
    answer: int = 0
    expected: tuple[tuple[str, ...], ...] = ()
    examples: tuple[str, ...] = ()
    max_new_tokens: int = 0
    about: str = ""


class _Wording(NamedTuple):
    """Wording of questions.

    Attributes:
        template: Up to the answer.
        length: Most tokens of a generated answer.
    """

    template: str
    length: int = 3


_OURS: Mapping[Kind, _Wording] = {
    "choices": _Wording("{prompt}"),
    "boolq": _Wording("{passage}\nQuestion: {question}?\nYes or no? Answer:"),
    "cola": _Wording("Sentence: {sentence}\nIs it correct English? Answer:"),
    "conll": _Wording("Text: {text}\nEntities of type {type}, with commas between, or none:", 10),
    "gsm8k": _Wording("Problem: {question}\nThe answer is the number", 5),
    "mmlu": _Wording("Question: {question}{listed}\nAnswer:"),
    "mrpc": _Wording("First: {sentence1}\nSecond: {sentence2}\nDo both say the same? Answer:"),
    "mutual": _Wording("Dialogue: {article}\nWhich reply comes next?{listed}\nAnswer:"),
    "nli": _Wording("{sentence1} entails the {sentence2} True or False? Answer:"),
    "nq": _Wording("Passage: {passage}\nQuestion: {question}\nAnswer:", 20),
    "rte": _Wording("{sentence1}\nFrom this it follows: {sentence2}\nTrue or False? Answer:"),
    "samsum": _Wording("{dialogue}\nTL;DR:", 25),
    "sst2": _Wording("Review: {sentence}\nSentiment:"),
}
_LEGACY: Mapping[Kind, _Wording] = {
    **_OURS,
    "boolq": _Wording(
        "Answer yes or no, by the passage. Passage: {passage} Question: {question}? Answer:", 1
    ),
    "conll": _Wording("Identify {type} entity in the text. Text: {text} Entity:", 10),
    "gsm8k": _Wording("Problem: {question}\nSolution: {rationale}\nTherefore, the answer is", 5),
    "mutual": _Wording("{article}\nWhich reply comes next?{listed}\nThe answer is", 1),
    "nq": _Wording("Answer by the passage. Passage: {passage} Question: {question}", 20),
    "rte": _Wording("{sentence1} entails the {sentence2}. True or False?", 1),
    "sst2": _Wording("Label the text as positive or negative. Text: {sentence} Label:", 1),
}


def form_of(kind: Kind, form: Form | None = None, *, legacy: bool = False) -> Form:
    """Return the form in which items of a kind are asked.

    Args:
        kind: Which records.
        form: The form wanted; None compares choices where there are any and the wording is ours.
        legacy: Whether the wording is a published one.

    Raises:
        ValueError: the kind is not asked so.

    Example:
        >>> form_of("rte"), form_of("rte", legacy=True), form_of("samsum")
        ('choices', 'generated', 'generated')
    """
    if kind == "choices" and (legacy or form == "generated"):
        raise ValueError('items of kind "choices" are compared, in the wording that they bring')
    if kind in _FREE and form == "choices":
        raise ValueError(f'items of kind "{kind}" have no choices: their answers are generated')
    return form or ("generated" if legacy or kind in _FREE else "choices")


def read_items(
    path: str | Path,
    kind: Kind = "choices",
    *,
    form: Form | None = None,
    legacy: bool = False,
    shots: int = 0,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[TaskItem, ...]:
    """Return the items of a file, in its order.

    Args:
        path: The file.
        kind: Which records it holds.
        form: How they are asked; None as in `form_of`.
        legacy: Whether in a published wording.
        shots: Records from the beginning that are not asked but shown as worked examples.
        limit: Most records to ask; of more, as many are drawn, each label by its share.
        seed: Seed of that draw.

    Raises:
        MissingData (CG604): there is no such file.
        MalformedRecords (CG603): it cannot be read, or a record does not fit; with its line.
        ValueError: as `form_of`.
    """
    generated = form_of(kind, form, legacy=legacy) == "generated"
    wording = (_LEGACY if legacy else _OURS)[kind]
    records = _read_questions(Path(path), kind)
    examples: dict[str, list[str]] = {}
    for record in records[:shots]:
        for question in record:
            example = f"{wording.template.format(**question.fields)} {question.worked_answer}\n\n"
            examples.setdefault(question.about, []).append(example)
    asked = records[shots:]
    if limit is not None:
        labels = [str([question.answer for question in record]) for record in asked]
        asked = [asked[place] for place in draw_places(labels, limit, seed)]
    return tuple(
        TaskItem(
            prompt=wording.template.format(**question.fields),
            choices=question.choices,
            answer=question.answer,
            expected=((question.worked_answer,),) if question.choices else question.expected,
            examples=tuple(examples.get(question.about, ())),
            max_new_tokens=wording.length if generated else 0,
            about=question.about,
        )
        for record in asked
        for question in record
    )


def _read_questions(path: Path, kind: Kind) -> list[list[TaskQuestion]]:
    """Return the questions of each record of a file."""
    lines, raw = _read_lines(path)
    places = [f"line {line}" for line in lines]
    schema, questions_in = FORMATS[kind]
    records = validate_records(raw, schema, where=str(path), places=places, hint=_HINT)
    found: list[list[TaskQuestion]] = []
    for place, record in zip(places, records, strict=True):
        try:
            found.append(questions_in(record))
        except ValueError as error:
            raise MalformedRecords(f"{place}: {error}.", where=str(path), hint=_HINT) from error
    return found


def _explain(error: UnreadableText) -> str:
    return f" is {error}" if isinstance(error, NotJson) else f": {error}"


def _read_lines(path: Path) -> tuple[Sequence[int], list[object]]:
    """Return the objects of the lines that are not blank, with their numbers from 1."""
    try:
        # Not splitlines: questions hold line separators of Unicode.
        text = read_text(path).split("\n")
    except UnreadableText as error:
        if not path.exists():
            raise MissingData("there is no file of items.", where=str(path)) from error
        raise MalformedRecords(f"the items cannot be read: {error}.", where=str(path)) from error
    lines = [number for number, line in enumerate(text, start=1) if line.strip()]
    raw: list[object] = []
    for number in lines:
        try:
            raw.append(parse_json(text[number - 1]))
        except UnreadableText as error:
            raise MalformedRecords(
                f"the items cannot be read: line {number}{_explain(error)}.",
                where=str(path),
                hint="Give one JSON object a line.",
            ) from error
    return lines, raw
