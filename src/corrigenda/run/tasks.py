"""Multiple choice along a run: the items of other tasks become questions, and answers rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from corrigenda.benchmarks.downstream import Item, read_items
from corrigenda.cases import Against, Protocol
from corrigenda.lm.model import LanguageModel
from corrigenda.metrics.tasks import FAMILY
from corrigenda.rows import Row, tags
from corrigenda.run.asking import Answer, Question, ask
from corrigenda.run.spec import HealthSpec


class TaskItem(NamedTuple):
    """An item of a task.

    Attributes:
        task: Name of the task.
        number: Place among its items, from 0.
        item: What is asked.
    """

    task: str
    number: int
    item: Item

    @property
    def rivals(self) -> tuple[str, ...]:
        """The wrong choices, in their order."""
        answer = self.item.answer
        return self.item.choices[:answer] + self.item.choices[answer + 1 :]

    @property
    def question(self) -> Question:
        """Every choice, scored behind the prompt."""
        right = self.item.choices[self.item.answer]
        return Question(self.item.prompt, Protocol.RANK, right, self.rivals)


def items_of(health: HealthSpec) -> tuple[TaskItem, ...]:
    """The items of all tasks but those of the harness.

    Raises:
        MissingData (CG604), MalformedRecords (CG603): as `read_items`.
    """
    found: list[TaskItem] = []
    for task in health.tasks:
        if task.kind == "harness":
            continue
        assert task.file is not None
        items = read_items(task.file, task.kind, shots=task.shots, limit=task.limit)
        found += [TaskItem(task.name, number, item) for number, item in enumerate(items)]
    return tuple(found)


def rows(
    lm: LanguageModel,
    items: tuple[TaskItem, ...],
    like: Row,
    before: Mapping[Question, Answer],
    batch_tokens: int | None = None,
) -> list[Row]:
    """Ask all items of a model as it is now.

    Args:
        lm: The model, with whatever patches are active.
        items: What is asked.
        like: A row that says of which run, unit and moment they are: its `case` is that unit's
            label.
        before: Answers of the unedited model.
        batch_tokens: Most tokens in one batch; None takes what suits the device.
    """
    given = ask(lm, [one.question for one in items], batch_tokens=batch_tokens).given
    return [_row(one, like, given[one.question], before[one.question]) for one in items]


def _row(one: TaskItem, like: Row, answer: Answer, before: Answer) -> Row:
    return dataclasses.replace(
        like,
        case=f"{like.case}: {one.task} {one.number}",
        role=f"{FAMILY}/{one.task}",
        protocol=Protocol.RANK,
        against=Against.TARGET,
        prompt=one.item.prompt,
        expected=[[one.item.choices[one.item.answer]]],
        rivals=list(one.rivals),
        token_ids=answer.token_ids,
        log_probs=answer.log_probs,
        rival_log_probs=answer.rival_log_probs,
        log_probs_before=None if answer.skipped else before.log_probs,
        rival_log_probs_before=None if answer.skipped else before.rival_log_probs,
        tags=tags({"task": one.task, "answer": one.item.answer}),
        skipped=answer.skipped,
    )
