"""Other tasks along a run: their items become questions, and answers rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from corrigenda.abilities.items import Item, read_items
from corrigenda.cases import Against, Protocol
from corrigenda.lm.model import LanguageModel
from corrigenda.metrics.generated import PUBLISHED
from corrigenda.metrics.tasks import FAMILY
from corrigenda.rows import Row, tags
from corrigenda.run.prober import Answer, Query, add_examples, ask
from corrigenda.run.spec import HealthSpec, TaskSpec


class TaskItem(NamedTuple):
    """An item of a task.

    Attributes:
        task: What the recipe says of the task.
        number: Place among its items, from 0.
        item: What is asked.
    """

    task: TaskSpec
    number: int
    item: Item

    @property
    def rivals(self) -> tuple[str, ...]:
        """The wrong choices, in their order."""
        answer = self.item.answer
        return self.item.choices[:answer] + self.item.choices[answer + 1 :]

    @property
    def question(self) -> Query:
        """Every choice, scored behind the prompt; or the prompt, to be continued.

        In a published wording an answer goes on beyond its first line.
        """
        item = self.item
        if not item.max_new_tokens:
            right = item.choices[item.answer]
            return Query(item.prompt, Protocol.RANK, right, self.rivals, examples=item.examples)
        return Query(
            item.prompt,
            Protocol.GREEDY,
            max_new_tokens=item.max_new_tokens,
            is_text=self.task.legacy,
            examples=item.examples,
        )

    @property
    def tags(self) -> list[str]:
        """What its rows are judged by."""
        item, task = self.item, self.task
        known: dict[str, object] = {"task": task.name}
        if item.choices:
            known["answer"] = item.answer
        if item.max_new_tokens:
            known["kind"] = task.kind
        if item.about:
            known["about"] = item.about
        return tags(known) + ([PUBLISHED] if task.legacy else [])


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
        items = read_items(
            task.file,
            task.kind,
            form=task.form,
            legacy=task.legacy,
            shots=task.shots,
            limit=task.limit,
        )
        found += [TaskItem(task, number, item) for number, item in enumerate(items)]
    return tuple(found)


def rows(
    lm: LanguageModel,
    items: tuple[TaskItem, ...],
    like: Row,
    before: Mapping[Query, Answer],
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
    questions = [one.question for one in items]
    given = ask(lm, questions, batch_tokens=batch_tokens).given
    return [
        _row(one, like, add_examples(lm, question).prompt, given[question], before[question])
        for one, question in zip(items, questions, strict=True)
    ]


def _row(one: TaskItem, like: Row, prompt: str, answer: Answer, before: Answer) -> Row:
    name, fine = one.task.name, not answer.skipped
    return dataclasses.replace(
        like,
        case=f"{like.case}: {name} {one.number}",
        role=f"{FAMILY}/{name}",
        protocol=one.question.protocol,
        against=Against.TARGET,
        prompt=prompt,
        expected=[list(group) for group in one.item.expected],
        rivals=list(one.rivals),
        answer=answer.answer,
        answer_before=before.answer if fine else None,
        token_ids=answer.token_ids,
        predicted=answer.predicted,
        predicted_before=before.predicted if fine else None,
        log_probs=answer.log_probs,
        rival_log_probs=answer.rival_log_probs,
        log_probs_before=before.log_probs if fine else None,
        rival_log_probs_before=before.rival_log_probs if fine else None,
        tags=one.tags,
        skipped=answer.skipped,
    )
