"""What is asked beside answers while an edit is active: CounterFact's scores, and perplexity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from corrigenda.almanac.exam import ExamEdit
from corrigenda.cases import Case, Protocol
from corrigenda.knowledge.edit_trial import AnswerJudge
from corrigenda.lm.model import LanguageModel
from corrigenda.metrics import counterfact
from corrigenda.metrics.estimate import AnswerValue, Estimate, over_cases
from corrigenda.rows import Row
from corrigenda.run.health import compute_ratio, make_text_query
from corrigenda.run.prober import ask
from corrigenda.run.queries import AnswerTable, make_query
from corrigenda.run.row_builder import DueProbe, ModelDigests, build_row

_NO_ANSWERS = AnswerTable({}, {})
_NO_DIGESTS = ModelDigests("", "")


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


def estimate(role: str, judge: AnswerJudge) -> Estimate | None:
    """Return the share of a role with its interval; None where nothing was asked."""
    values = [AnswerValue(one.fact, float(one.right)) for one in judge.values[role]]
    return over_cases(role, values) if values else None


def to_list(one: Estimate) -> list[float]:
    """Return the value with the ends of its interval, four digits."""
    return [round(number, 4) for number in (one.value, one.low, one.high)]
