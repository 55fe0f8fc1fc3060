"""Answers to probes become rows: with those of the unedited model, place, moment and model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from corrigenda.cases import Case, Probe
from corrigenda.rows import Row, Stage, tags
from corrigenda.run.prober import Answer, Answers, Question, divergences

ROLLED_BACK = "rolled_back"
"""Tag of rows whose edit was taken back: `rolled_back=<round>`."""

Before = Mapping[Question, Answer]
"""Answers of the unedited model."""


class Asked(NamedTuple):
    """A probe that is due.

    Attributes:
        case: Its case.
        number: Its place in the case, from 0.
        probe: The probe.
        question: What is asked.
        rounds: Rounds of the case done; 0 for the unedited model.
        position: Place of the case in a sequence, from 1; 0 outside a sequence.
        edits: Cases of the sequence edited; 0 outside a sequence.
        rolled_back: Rounds whose edit was taken back.
    """

    case: Case
    number: int
    probe: Probe
    question: Question
    rounds: int
    position: int = 0
    edits: int = 0
    rolled_back: tuple[int, ...] = ()


class Models(NamedTuple):
    """What answered: digests of the unedited model, and of the edited one."""

    before: str
    after: str


def row_before(run: str, asked: Asked, given: Before, models: Models) -> Row:
    """The row of a probe that only the unedited model is asked."""
    return _row(run, asked, given[asked.question], Stage.BEFORE, model=models.before)


def row_after(
    run: str,
    asked: Asked,
    given: Answers,
    before: Before,
    distributions: Answers,
    models: Models,
) -> Row:
    """The row of an answer of the edited model."""
    answer, old = given.given[asked.question], before.get(asked.question, Answer())
    more: dict[str, object] = {}
    if asked.question in given.distributions and asked.question in distributions.distributions:
        first = distributions.distributions[asked.question]
        forward, backward = divergences(first, given.distributions[asked.question])
        more = {
            "divergence": forward,
            "divergence_reversed": backward,
            "vocabulary": int(first.shape[1]),
        }
    if not answer.skipped:
        more |= {
            "answer_before": old.answer,
            "predicted_before": old.predicted,
            "log_probs_before": old.log_probs,
            "rival_log_probs_before": old.rival_log_probs,
        }
    return _row(
        run,
        asked,
        answer,
        Stage.AFTER,
        model=models.after,
        model_before=models.before,
        **more,
    )


def row_skipped(run: str, asked: Asked, reason: str) -> Row:
    """The row of a probe that could not be asked because its edit failed."""
    return _row(run, asked, Answer(skipped=reason), Stage.AFTER)


def _row(run: str, asked: Asked, answer: Answer, stage: Stage, **more: object) -> Row:
    probe = asked.probe
    values: dict[str, object] = {
        "run": run,
        "case": asked.case.id,
        "probe": asked.number,
        "role": probe.role,
        "protocol": probe.protocol,
        "against": probe.against,
        "prompt": probe.prompt,
        "expected": [list(group) for group in probe.expected],
        "rivals": list(probe.rivals),
        "test": probe.test,
        "every": probe.every,
        "stage": stage,
        "rounds": asked.rounds,
        "position": asked.position,
        "edits": asked.edits,
        "answer": answer.answer,
        "token_ids": answer.token_ids,
        "predicted": answer.predicted,
        "log_probs": answer.log_probs,
        "rival_log_probs": answer.rival_log_probs,
        "tags": tags({**asked.case.meta, ROLLED_BACK: asked.rolled_back}),
        "skipped": answer.skipped,
        **more,
    }
    return Row(**values)  # type: ignore[arg-type]  # names of fields
