"""Other tasks during a run: items become questions and rows, scores of lm-eval measurements."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from corrigenda.abilities import harness
from corrigenda.abilities.harness import HarnessTask
from corrigenda.abilities.items import TaskItem, read_items
from corrigenda.cases import Against, Protocol
from corrigenda.errors import CorrigendaError
from corrigenda.files import cache_folder, is_cached, write_cached
from corrigenda.lm.model import LanguageModel
from corrigenda.metrics.tasks.answers import PUBLISHED
from corrigenda.metrics.tasks.scores import FAMILY
from corrigenda.rows import Measurement, Row, Stage, tags
from corrigenda.run.prober import Answer, Query, add_examples, ask, describe_error
from corrigenda.run.spec import HealthSpec, TaskSpec, hash_json
from corrigenda.run.store import read_table, write_table

_FORMAT = 1


class RunItem(NamedTuple):
    """An item of a task of a recipe.

    Attributes:
        task: Settings of the task.
        number: Place among its items, from 0.
        item: The question.
    """

    task: TaskSpec
    number: int
    item: TaskItem

    @property
    def rivals(self) -> tuple[str, ...]:
        """The wrong choices, in their order."""
        answer = self.item.answer
        return self.item.choices[:answer] + self.item.choices[answer + 1 :]

    @property
    def question(self) -> Query:
        """Every choice, scored after the prompt; or the prompt, to be continued.

        In a published wording an answer may have more than one line.
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
        """Tags of its rows, by which answers are judged."""
        item, task = self.item, self.task
        known: dict[str, object] = {"task": task.name}
        if item.choices:
            known["answer"] = item.answer
        if item.max_new_tokens:
            known["kind"] = task.kind
        if item.about:
            known["about"] = item.about
        return tags(known) + ([PUBLISHED] if task.legacy else [])


class Moment(NamedTuple):
    """Where in a run a measurement was made.

    Attributes:
        run: Id of the run.
        label: Name of the unit of work in measurements.
        edits: Edits of the sequence in force.
    """

    run: str
    label: str
    edits: int = 0


def items_of(health: HealthSpec) -> tuple[RunItem, ...]:
    """Return the items of all tasks but those of the harness.

    Raises:
        MissingData (CG604), MalformedRecords (CG603): as `read_items`.
    """
    found: list[RunItem] = []
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
            seed=task.seed,
        )
        found += [RunItem(task, number, item) for number, item in enumerate(items)]
    return tuple(found)


def ask_items(
    lm: LanguageModel,
    items: tuple[RunItem, ...],
    like: Row,
    before: Mapping[Query, Answer],
    batch_tokens: int | None = None,
) -> list[Row]:
    """Ask all items of a model as it is now.

    Args:
        lm: The model, with whatever patches are active.
        items: What is asked.
        like: A row with the run, unit and moment; its `case` is the label of the unit.
        before: Answers of the unedited model.
        batch_tokens: Most tokens in one batch; None takes what suits the device.
    """
    questions = [one.question for one in items]
    given = ask(lm, questions, batch_tokens=batch_tokens).given
    return [
        _row(one, like, add_examples(lm, question).prompt, given[question], before[question])
        for one, question in zip(items, questions, strict=True)
    ]


def harness_tasks(health: HealthSpec) -> tuple[HarnessTask, ...]:
    """Return the tasks of the harness."""
    return tuple(
        HarnessTask(task.name, task.file, task.shots, task.limit)
        for task in health.tasks
        if task.kind == "harness"
    )


def harness_versions(health: HealthSpec) -> dict[str, str]:
    """Return the version of the harness, where it is used.

    Raises:
        MissingExtra (CG504): it is used and not installed.
    """
    return harness.versions(harness_tasks(health))


def harness_digest(health: HealthSpec) -> str:
    """Return a hash of what a score depends on other than the model: tasks, files, version.

    Raises:
        MissingExtra (CG504): the harness is not installed.
    """
    tasks = harness_tasks(health)
    plain = [task.model_dump(mode="json") for task in health.tasks if task.kind == "harness"]
    return hash_json([_FORMAT, plain, harness.file_digests(tasks), harness.versions(tasks)])


def scores_before(
    lm: LanguageModel, health: HealthSpec, base: str, batch_tokens: int | None = None
) -> list[Measurement]:
    """Return harness scores of the unedited model, cached by the digest of its weights.

    Raises:
        MissingExtra (CG504): the harness is not installed.
        BadConfig (CG502): it does not know a task, or cannot load it.
    """
    tasks = harness_tasks(health)
    if not tasks:
        return []
    name = hash_json([harness_digest(health), batch_tokens])
    path = cache_folder() / "harness" / base[:32] / f"{name}.parquet"
    if is_cached(path):
        try:
            return read_table(path, Measurement)
        except CorrigendaError as error:
            warnings.warn(f"{error.message} It is written again.", stacklevel=2)
    found = harness.scores(lm, tasks, batch_tokens)
    write_cached(path, lambda file: write_table(file, found, Measurement))
    return found


def scores_after(
    lm: LanguageModel, health: HealthSpec, moment: Moment, batch_tokens: int | None = None
) -> list[Measurement]:
    """Return harness scores of the edited model; a task that cannot be asked is skipped."""
    tasks = harness_tasks(health)
    try:
        found = harness.scores(lm, tasks, batch_tokens)
    except CorrigendaError as error:
        reason = describe_error(error)
        found = [Measurement(name=f"{FAMILY}/{one.name}", skipped=reason) for one in tasks]
    return place_scores(found, moment, Stage.AFTER)


def place_scores(found: Sequence[Measurement], moment: Moment, stage: Stage) -> list[Measurement]:
    """Return harness scores with the moment of a run."""
    return [
        Measurement(
            run=moment.run,
            case=f"{moment.label}: {one.case}",
            name=one.name,
            values=one.values,
            stage=stage,
            edits=moment.edits if stage == Stage.AFTER else 0,
            skipped=one.skipped,
        )
        for one in found
    ]


def _row(one: RunItem, like: Row, prompt: str, answer: Answer, before: Answer) -> Row:
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
