"""Evaluation of an editor on known facts: alone and, where that is its use, many at once."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from corrigenda.almanac.exam import ExamEdit
from corrigenda.editor import Editor, State
from corrigenda.knowledge.edit_trial import TIMED, EditTrial, FactOutcome, Unedited
from corrigenda.lm.model import LanguageModel
from corrigenda.tuning.scores import DriftMeter, score_outcomes

BATCH = 16
"""Facts that are edited at once."""

_CHUNKS = (4, 4, 8)
_DRIFT_EVERY = 4


@dataclass
class Outcomes:
    """Outcomes of edits: single ones, and one batch.

    Attributes:
        single: Outcomes of facts edited alone, in the order of editing.
        batch: Outcomes of facts edited at once; empty where the method is not used so.
        single_drift: Drift after single edits, of every fourth.
        batch_drift: Drift after the batch; None without one.
        seconds: Time of each single edit.
    """

    single: list[FactOutcome] = field(default_factory=list)
    batch: list[FactOutcome] = field(default_factory=list)
    single_drift: list[float] = field(default_factory=list)
    batch_drift: float | None = None
    seconds: list[float] = field(default_factory=list)

    @property
    def score(self) -> float:
        """Return the mean of the scores of single edits and of the batch, as far as there are."""
        scores = []
        if self.single:
            drift = statistics.fmean(self.single_drift) if self.single_drift else 0.0
            scores.append(score_outcomes(self.single, drift))
        if self.batch:
            scores.append(score_outcomes(self.batch, self.batch_drift or 0.0))
        return statistics.fmean(scores)

    def to_json(self) -> dict[str, object]:
        """Return plain lists, from which `read_outcomes` reads it."""
        return {
            "single": [[*one] for one in self.single],
            "batch": [[*one] for one in self.batch],
            "single_drift": self.single_drift,
            "batch_drift": self.batch_drift,
            "seconds": self.seconds,
        }


class Evaluator:
    """Edits facts with any editor, and notes the outcomes; the unedited model is asked once."""

    def __init__(
        self, lm: LanguageModel, cases: Sequence[ExamEdit], meter: DriftMeter, *, chat: bool
    ) -> None:
        """Bind a model and facts.

        Args:
            lm: The model.
            cases: Facts it knows, in the order of editing.
            meter: Measures the drift.
            chat: Whether to ask in the chat template too.
        """
        self.lm, self.cases, self.meter = lm, cases, meter
        self._unedited = Unedited(lm, cases, chat=chat)

    def run(
        self, editor: Editor, state: State | None, *, at_once: bool, done: Outcomes | None = None
    ) -> Iterator[Outcomes]:
        """Edit in portions, and yield all outcomes after each: first the batch, then single ones.

        Args:
            editor: The editor.
            state: Its state.
            at_once: Whether facts are edited at once too.
            done: Outcomes of an evaluation that was stopped; it goes on there.
        """
        found = done or Outcomes()
        if at_once and not found.batch and len(self.cases) > 1:
            trial = EditTrial(self.lm, editor, self._unedited)
            cases = self.cases[:BATCH]
            patch, _ = trial.edit(cases, state)
            with patch.apply(self.lm):
                trial.judge(cases)
                found.batch_drift = self.meter.measure(self.lm)
            found.batch = trial.outcomes
            yield found
        begin = sum(not one.chat for one in found.single)
        for cases in self._split(begin):
            trial = EditTrial(self.lm, editor, self._unedited)
            trial.search_ahead(cases, state, timed=max(0, TIMED - len(found.seconds)))
            for case in cases:
                patch, _ = trial.edit([case], state)
                with patch.apply(self.lm):
                    trial.judge([case])
                    if begin % _DRIFT_EVERY == 0:
                        found.single_drift.append(self.meter.measure(self.lm))
                begin += 1
            found.single += trial.outcomes
            found.seconds += trial.seconds
            yield found

    def _split(self, begin: int) -> Iterator[Sequence[ExamEdit]]:
        """Yield the facts that are left, a few at first, so that a hopeless trial ends early."""
        sizes = iter(_CHUNKS)
        end = 0
        while end < len(self.cases):
            start, end = end, end + next(sizes, _CHUNKS[-1])
            if end > begin:
                yield self.cases[max(start, begin) : end]


def read_outcomes(plain: dict[str, object]) -> Outcomes:
    """Return outcomes from plain lists."""

    def rows(name: str) -> list[FactOutcome]:
        found = plain[name]
        assert isinstance(found, list)
        return [
            FactOutcome(fact, chat, efficacy, *(tuple(kind) for kind in kinds))
            for fact, chat, efficacy, *kinds in found
        ]

    drift = plain["batch_drift"]
    assert drift is None or isinstance(drift, float)
    return Outcomes(
        single=rows("single"),
        batch=rows("batch"),
        single_drift=_numbers(plain["single_drift"]),
        batch_drift=drift,
        seconds=_numbers(plain["seconds"]),
    )


def _numbers(plain: object) -> list[float]:
    assert isinstance(plain, list)
    return [float(one) for one in plain]
