"""From corrections to a patch that is measured, guarded and accounted for, line by line."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from corrigenda.assessment import Assessment, Outcome
from corrigenda.errors import BadConfig
from corrigenda.facts import Fact, FactLike, as_facts
from corrigenda.fixing.lines import FactLine, read_lines
from corrigenda.fixing.retries import Retried, RetryAttempt, retry
from corrigenda.fixing.search import (
    Approach,
    EditMaker,
    SearchTrial,
    list_approaches,
    list_outcomes,
    search,
)
from corrigenda.fixing.understanding import Fate, UnderstoodLine, understand
from corrigenda.guarding.damage import GuardVerdict
from corrigenda.guarding.guard import SAMPLE, GuardReport, guard
from corrigenda.lm.wrapping import require_lm
from corrigenda.patch.compare import add_up
from corrigenda.progress import Progress, report_stage, show_progress
from corrigenda.prompt_answers import Role

if TYPE_CHECKING:
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch import PatchValue

BUDGET = 5.0
"""Minutes of the search by default."""

SETTLED = (Fate.CORRECTED, Fate.HELD, Fate.DUPLICATE)
"""Fates that leave nothing to be done."""


@dataclass(frozen=True)
class LineFate:
    """What came of one line.

    Attributes:
        number: Number of the line.
        fate: Its fate.
        fact: The fact; None where the line cannot be read.
        reason: Why, in words; for a corrected line, how.
        before: Answer of the unedited model.
        after: Answer of the edited model; "" where nothing was edited.
        paraphrases: How many paraphrases have the new answer, and how many were asked.
    """

    number: int
    fate: Fate
    fact: Fact | None = None
    reason: str = ""
    before: str = ""
    after: str = ""
    paraphrases: tuple[int, int] = (0, 0)

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        fact = self.fact
        return {
            "line": self.number,
            "fate": str(self.fate),
            "reason": self.reason,
            "prompt": fact.prompt if fact else None,
            "subject": fact.subject if fact else None,
            "answer": fact.target if fact else None,
            "before": self.before,
            "after": self.after,
            "paraphrases": list(self.paraphrases),
        }


@dataclass(frozen=True, repr=False)
class FixResult:
    """Corrections made from a file.

    Attributes:
        lines: The fate of every line.
        patch: The edit; None where nothing was to be done, or the guard refused it.
        parts: The patches of which it is the sum: the first edit, then the retries that were kept.
        owners: For each of these, the facts that it was made for.
        below: Patches on top of which it was made.
        approach: The method that was chosen; None where nothing was to be done.
        trials: Outcomes of the search, best first.
        attempts: Retries.
        assessment: Answers without and with the edit, of the facts to be corrected.
        report: Report of the guard.
        seconds: Time by stage.
    """

    lines: tuple[LineFate, ...]
    patch: PatchValue | None = None
    parts: tuple[PatchValue, ...] = ()
    owners: tuple[tuple[Fact, ...], ...] = ()
    below: tuple[PatchValue, ...] = ()
    approach: Approach | None = None
    trials: tuple[SearchTrial, ...] = ()
    attempts: tuple[RetryAttempt, ...] = ()
    assessment: Assessment | None = None
    report: GuardReport | None = None
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def counts(self) -> Mapping[Fate, int]:
        """How many lines have each fate."""
        found = Counter(one.fate for one in self.lines)
        return {fate: found[fate] for fate in Fate if found[fate]}

    @property
    def succeeded(self) -> bool:
        """Whether all lines are true now, or say what an earlier one says."""
        return all(one.fate in SETTLED for one in self.lines)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts that were to be corrected, and could be read."""
        return self.assessment.facts if self.assessment else ()

    def __repr__(self) -> str:
        """Return the numbers of fates and the verdict, in a line."""
        counts = ", ".join(f"{count} {fate}" for fate, count in self.counts.items())
        verdict = f"; guard: {self.report}" if self.report else ""
        return f"{len(self.lines)} lines: {counts}{verdict}"

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists."""
        return {
            "lines": [one.to_json() for one in self.lines],
            "counts": {str(fate): count for fate, count in self.counts.items()},
            "succeeded": self.succeeded,
            "method": self.approach.label if self.approach else None,
            "search": [one.to_json() for one in self.trials],
            "retries": [one._asdict() for one in self.attempts],
            "shares": {
                str(role): self.assessment.share(role) if self.assessment else None for role in Role
            },
            "guard": self.report.to_json() if self.report else None,
            "seconds": {name: round(value, 1) for name, value in dict(self.seconds).items()},
        }


def fix(
    lm: LanguageModel,
    corrections: str | Path | FactLike | Sequence[FactLike],
    *,
    method: str | None = None,
    budget: float = BUDGET,
    below: Sequence[PatchValue] = (),
    earlier: Sequence[Fact] = (),
    limits: Mapping[str, Sequence[float]] | None = None,
    sample: int = SAMPLE,
    chat: bool | None = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
) -> FixResult:
    """Make corrections true, by the method that suits them, and account for every line.

    Understands the lines (subjects, duplicates, contradictions, what is true already, further
    prompts to ask), searches a method on a sample of the facts, edits all of them, retries those
    that did not take, and guards what must not change. The model is left as it was.

    Args:
        lm: The model, without patches.
        corrections: A file, see `corrigenda.fixing.lines.read_lines`; or facts.
        method: The method, without a search.
        budget: Minutes of the search; at least one method is tried.
        below: Patches on top of which the facts are corrected, such as that of a book.
        earlier: Corrections that were made before; a line may not contradict them.
        limits: Limits of the guard; see `corrigenda.guard`.
        sample: Known facts of each kind, and texts, that the guard asks.
        chat: Whether to ask in the chat form too; by default where there is a template.
        seed: Decides what the guard asks.
        progress: A callback with (stage, done, total), or False for no progress bar.

    Raises:
        MalformedFacts (CG101): the file cannot be read at all.
        BadConfig (CG502): no budget.
        UnknownMethod (CG501): no such method.

    Example:
        ```python
        result = cg.fix(lm, "facts.csv")
        if result.patch is not None:
            result.patch.save("facts.safetensors")
        ```
    """
    lm = require_lm(lm)
    if budget <= 0:
        raise BadConfig(f"a budget of {budget:g} minutes.", where="fix", hint="Give some minutes.")
    if isinstance(corrections, str | Path):
        lines = read_lines(corrections)
    else:
        facts = as_facts(corrections)
        lines = [FactLine(number, fact) for number, fact in enumerate(facts, start=1)]
    with show_progress(progress):
        begin = time.perf_counter()
        report_stage("understand", 0, 1)
        maker = EditMaker(lm, below, chat=chat)
        with maker.applied():
            understood = understand(lm, lines, earlier)
        report_stage("understand", 1, 1)
        seconds = {"understand": time.perf_counter() - begin}
        return correct_lines(
            maker,
            understood,
            method=method,
            budget=budget,
            limits=limits,
            sample=sample,
            seed=seed,
            seconds=seconds,
        )


def correct_lines(
    maker: EditMaker,
    understood: Sequence[UnderstoodLine],
    *,
    method: str | None = None,
    budget: float = BUDGET,
    limits: Mapping[str, Sequence[float]] | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
    seconds: Mapping[str, float] | None = None,
) -> FixResult:
    """Search, edit, retry and guard for lines that were understood; see `fix`.

    Where the guard refuses an edit, the next best method of the search is taken.
    """
    taken = dict(seconds or {})
    wanted = [one for one in understood if one.fate is None and one.fact is not None]
    facts = [one.fact for one in wanted if one.fact is not None]
    if not facts:
        lines = tuple(_settle(one) for one in understood)
        return FixResult(lines=lines, seconds=taken)
    begin = time.perf_counter()
    approaches = list_approaches(len(facts), method)
    trials = search(maker, facts, approaches, budget=budget, seed=seed)
    taken["search"] = time.perf_counter() - begin
    taken |= {"edit": 0.0, "guard": 0.0}
    for trial in trials:
        begin = time.perf_counter()
        editor = trial.approach.build(maker.lm)
        report_stage("edit: all facts", 0, 1)
        retried = retry(maker, editor, maker.make(editor, facts), facts)
        report_stage("edit: all facts", 1, 1)
        edited = time.perf_counter()
        total = add_up(retried.patches)
        with maker.applied():
            report = guard(
                maker.lm, total, facts, sample=sample, limits=limits, chat=maker.chat, seed=seed
            )
        taken["edit"] += edited - begin
        taken["guard"] += time.perf_counter() - edited
        refused = report.verdict is GuardVerdict.REFUSED
        last = trial is trials[-1] or trials[trials.index(trial) + 1].problem
        if not refused or last:
            break
    return FixResult(
        lines=tuple(_list_fates(understood, facts, retried, report)),
        patch=None if refused else total,
        parts=() if refused else retried.patches,
        owners=tuple(tuple(facts[place] for place in own) for own in retried.facts),
        below=maker.below,
        approach=trial.approach,
        trials=tuple(trials),
        attempts=retried.attempts,
        assessment=retried.assessment,
        report=report,
        seconds=taken,
    )


def _settle(one: UnderstoodLine) -> LineFate:
    assert one.fate is not None, "nothing is to be corrected"
    return LineFate(one.number, one.fate, one.fact, one.reason, one.before)


def _list_fates(
    understood: Sequence[UnderstoodLine],
    facts: Sequence[Fact],
    retried: Retried,
    report: GuardReport,
) -> list[LineFate]:
    found = retried.assessment
    plain = [one for one in list_outcomes(found) if not one.chat]
    after = {
        item.fact: item.after
        for item in found.answers
        if item.role is Role.PROMPT and not item.chat
    }
    places = iter(range(len(facts)))
    fates: list[LineFate] = []
    for one in understood:
        if one.fate is not None:
            fates.append(_settle(one))
            continue
        place = next(places)
        asked = plain[place].paraphrase
        fate = LineFate(
            number=one.number,
            fate=Fate.CORRECTED,
            fact=one.fact,
            reason=_explain(place, retried),
            before=one.before,
            after=after[place],
            paraphrases=(sum(asked), len(asked)),
        )
        if found.outcomes[place] is Outcome.FAILED:
            fate = replace(fate, fate=Fate.FAILED, reason="no retry made the model say it")
        elif report.verdict is GuardVerdict.REFUSED:
            fate = replace(fate, fate=Fate.REFUSED, reason=report.reason, after="")
        fates.append(fate)
    return fates


def _explain(place: int, retried: Retried) -> str:
    """Return by which edits a fact was made true."""
    kept = [one for one in retried.attempts if one.kept and place in one.facts]
    return ", then ".join(["edited", *(f"{one.name} ({one.method})" for one in kept)])
