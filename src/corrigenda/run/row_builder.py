"""Rows of a run: an answer with that of the unedited model, its place, moment and model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from corrigenda.cases import Case, Probe
from corrigenda.rows import Row, Stage, tags
from corrigenda.run.prober import compute_divergences
from corrigenda.run.queries import Answer, AnswerTable, Query

ROLLED_BACK = "rolled_back"
"""Tag of rows whose edit was rolled back: `rolled_back=<round>`."""

BaselineAnswers = Mapping[Query, Answer]
"""Answers of the unedited model."""


class DueProbe(NamedTuple):
    """A probe to be asked now, with its place and moment.

    Attributes:
        case: Its case.
        number: Its place in the case, from 0.
        probe: The probe.
        query: What is asked.
        rounds: Rounds of the case done; 0 for the unedited model.
        position: Place of the case in a sequence, from 1; 0 outside a sequence.
        edits: Cases of the sequence edited; 0 outside a sequence.
        rolled_back: Rounds whose edit was rolled back.
    """

    case: Case
    number: int
    probe: Probe
    query: Query
    rounds: int
    position: int = 0
    edits: int = 0
    rolled_back: tuple[int, ...] = ()


class ModelDigests(NamedTuple):
    """Digests of the unedited model and of the edited one."""

    before: str
    after: str


def build_unedited_row(
    run: str, due: DueProbe, given: BaselineAnswers, models: ModelDigests
) -> Row:
    """Return the row of a probe that only the unedited model is asked."""
    return _build_row(run, due, given[due.query], Stage.BEFORE, model=models.before)


def build_row(
    run: str,
    due: DueProbe,
    given: AnswerTable,
    baseline: BaselineAnswers,
    distributions: AnswerTable,
    models: ModelDigests,
) -> Row:
    """Return the row of an answer of the edited model."""
    answer, old = given.given[due.query], baseline.get(due.query, Answer())
    more: dict[str, object] = {}
    if due.query in given.distributions and due.query in distributions.distributions:
        first = distributions.distributions[due.query]
        forward, backward = compute_divergences(first, given.distributions[due.query])
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
    return _build_row(
        run,
        due,
        answer,
        Stage.AFTER,
        model=models.after,
        model_before=models.before,
        **more,
    )


def build_skipped_row(run: str, due: DueProbe, reason: str) -> Row:
    """Return the row of a probe that is not asked because its edit failed."""
    return _build_row(run, due, Answer(skipped=reason), Stage.AFTER)


def _build_row(run: str, due: DueProbe, answer: Answer, stage: Stage, **more: object) -> Row:
    probe = due.probe
    values: dict[str, object] = {
        "run": run,
        "case": due.case.id,
        "probe": due.number,
        "role": probe.role,
        "protocol": probe.protocol,
        "against": probe.against,
        "prompt": probe.prompt,
        "expected": [list(group) for group in probe.expected],
        "rivals": list(probe.rivals),
        "test": probe.test,
        "every": probe.every,
        "stage": stage,
        "rounds": due.rounds,
        "position": due.position,
        "edits": due.edits,
        "answer": answer.answer,
        "token_ids": answer.token_ids,
        "predicted": answer.predicted,
        "log_probs": answer.log_probs,
        "rival_log_probs": answer.rival_log_probs,
        "ended": answer.ended,
        "tags": tags({**due.case.meta, ROLLED_BACK: due.rolled_back}),
        "skipped": answer.skipped,
        **more,
    }
    return Row(**values)  # type: ignore[arg-type]  # names of fields
