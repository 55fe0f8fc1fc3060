"""Edits of a regime with their cost, and what is asked beside answers while they are active."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from corrigenda.almanac.exam import ExamEdit
from corrigenda.cases import Case, Protocol
from corrigenda.editor import State
from corrigenda.errors import CorrigendaError
from corrigenda.knowledge.edit_trial import EditTrial, FactOutcome, count_hits
from corrigenda.lm.model import LanguageModel
from corrigenda.metrics import counterfact
from corrigenda.metrics.estimate import AnswerValue, Estimate, over_cases
from corrigenda.rows import Row
from corrigenda.run.health import compute_ratio, make_text_query
from corrigenda.run.prober import ask
from corrigenda.run.queries import AnswerTable, make_query
from corrigenda.run.row_builder import DueProbe, ModelDigests, build_row
from corrigenda.tuning.scores import list_answers

Judge = Callable[[Sequence[ExamEdit]], None]
"""Called with the facts to ask about, while their edits are active."""

_NO_ANSWERS = AnswerTable({}, {})
_NO_DIGESTS = ModelDigests("", "")


class EditCourse:
    """Edits of one regime, each undone at the end; a fact that is refused is left out.

    Attributes:
        cpu_seconds: Seconds of the processor for each edit, per fact; of single facts only where
            the edit did all its work itself.
        errors: Errors of edits that were refused.
        refused: Codes of these errors, and of how many facts.
        asked: Number of facts that judges were asked about.
    """

    def __init__(
        self, trial: EditTrial, judges: Sequence[Judge], *, ahead_seconds: float = 0.0
    ) -> None:
        """Bind a trial, and the judges that are called while an edit is active.

        Args:
            trial: The edits.
            judges: What is asked.
            ahead_seconds: Seconds of the processor for a fact that was searched before this course.
        """
        self.trial, self.judges, self.ahead_seconds = trial, judges, ahead_seconds
        self.cpu_seconds: list[float] = []
        self.errors: list[CorrigendaError] = []
        self.refused: Counter[str] = Counter()
        self.asked = 0

    def run(
        self,
        regime: str,
        cases: Sequence[ExamEdit],
        asked: Sequence[ExamEdit],
        state: State | None,
        budget: float,
    ) -> None:
        """Edit, and ask.

        Args:
            regime: "single" edits each fact alone, "batch" all at once, "sequence" one on top of
                the other.
            cases: What is edited.
            asked: What is asked about, but for single edits.
            state: State of the method.
            budget: Seconds of the processor after which no other fact is edited alone.
        """
        if regime == "single":
            end = time.process_time() + budget
            self.trial.search_ahead(cases, state)
            for case in cases:
                if self.asked and time.process_time() > end:
                    break
                self._edit_and_ask([[case]], [case], state)
        else:
            parts = [cases] if regime == "batch" else [[case] for case in cases]
            self._edit_and_ask(parts, asked, state)

    def _edit_and_ask(
        self, parts: Sequence[Sequence[ExamEdit]], asked: Sequence[ExamEdit], state: State | None
    ) -> None:
        with ExitStack() as stack:
            for part in parts:
                state = self._edit(part, state, stack)
            for judge in self.judges:
                judge(asked)
        self.asked += len(asked)

    def _edit(
        self, cases: Sequence[ExamEdit], state: State | None, stack: ExitStack
    ) -> State | None:
        """Leave an edit active on `stack`, and return the state after it."""
        begin, hits = time.process_time(), count_hits()
        try:
            patch, after = self.trial.edit(cases, state)
            spent = time.process_time() - begin + (count_hits() - hits) * self.ahead_seconds
            if len(cases) > 1 or count_hits() == hits:
                self.cpu_seconds.append(spent / len(cases))
            stack.enter_context(patch.apply(self.trial.lm))
        except CorrigendaError as error:
            self.errors.append(error)
            self.refused[error.code] += len(cases)
            return state
        return after


class TextJudge:
    """Perplexity of texts, over that of the unedited model.

    Attributes:
        ratios: One for each time it was asked.
    """

    def __init__(self, lm: LanguageModel, texts: Sequence[str]) -> None:
        """Ask the unedited model."""
        self.lm = lm
        self.queries = [make_text_query(text) for text in texts]
        self.before = ask(lm, self.queries).given
        self.ratios: list[float] = []

    def __call__(self, cases: Sequence[ExamEdit]) -> None:
        """Ask the model as it is now."""
        self.ratios.append(compute_ratio(ask(self.lm, self.queries).given, self.before))


class RecordJudge:
    """CounterFact's scores: which of two answers is more probable.

    Attributes:
        rows: Answers to the probes of every record asked about.
    """

    def __init__(self, lm: LanguageModel, records: Mapping[str, Case]) -> None:
        """Bind the records, by the label of their fact."""
        self.lm, self.records = lm, records
        self.rows: list[Row] = []

    def __call__(self, cases: Sequence[ExamEdit]) -> None:
        """Ask the model as it is now."""
        for case in cases:
            record = self.records[case.fact.label]
            due = [
                DueProbe(record, number, probe, make_query(probe, 0), rounds=1)
                for number, probe in enumerate(record.probes)
                if probe.protocol == Protocol.RANK
            ]
            given = ask(self.lm, [one.query for one in due])
            self.rows += [build_row("", one, given, {}, _NO_ANSWERS, _NO_DIGESTS) for one in due]

    def score(self) -> dict[str, Estimate]:
        """Return ES, PS, NS and their harmonic mean S."""
        return {
            "ES": counterfact.score(self.rows, "efficacy"),
            "PS": counterfact.score(self.rows, "paraphrase"),
            "NS": counterfact.score(self.rows, "neighborhood"),
            "S": counterfact.harmonic_score(self.rows),
        }


def estimate(outcomes: Sequence[FactOutcome], role: str, *, chat: bool) -> Estimate | None:
    """Return the share of a role with its interval; None where nothing was asked."""
    values = [
        AnswerValue(one.fact, float(right))
        for one in outcomes
        if one.chat is chat
        for right in list_answers(one, role)
    ]
    return over_cases(role, values) if values else None


def to_list(one: Estimate) -> list[float]:
    """Return the value with the ends of its interval, four digits."""
    return [round(number, 4) for number in (one.value, one.low, one.high)]
