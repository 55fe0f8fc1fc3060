"""Several methods on one fact: what each did, as one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import corrigenda
from corrigenda.app.drawing import draw_table
from corrigenda.errors import CorrigendaError
from corrigenda.prompt_answers import Role

if TYPE_CHECKING:
    from corrigenda.assessment import Assessment
    from corrigenda.facts import Fact
    from corrigenda.lm.model import LanguageModel


class MethodTrial(NamedTuple):
    """One method on a fact: what was measured, or the error that it ended with."""

    method: str
    assessment: Assessment | None
    error: str = ""


_FIGURES: dict[str, Callable[[Assessment], str]] = {
    "outcome": lambda one: ", ".join(map(str, one.outcomes)),
    "paraphrases with the answer": lambda one: _format_share(one, Role.PARAPHRASE),
    "neighbours kept": lambda one: _format_share(one, Role.NEIGHBOUR),
    "same subject kept": lambda one: _format_share(one, Role.SAME_SUBJECT),
    "largest change of a weight": lambda one: (
        f"{max(change.relative_norm for change in one.changes):.2%}" if one.changes else "none"
    ),
    "seconds": lambda one: f"{sum(one.seconds.values()):.1f}",
}


def try_method(lm: LanguageModel, fact: Fact, method: str) -> MethodTrial:
    """Measure a method on a fact, with its preset for the model; the model is left as it was."""
    try:
        return MethodTrial(method, corrigenda.correct(lm, fact, method))
    except CorrigendaError as error:
        return MethodTrial(method, None, f"{error.code} {type(error).__name__}: {error.message}")


def draw_trials(trials: Sequence[MethodTrial]) -> str:
    """Return figures and answers, a column for each method; an error is in its column."""
    heads = ("measure", *(trial.method for trial in trials))
    figures = [
        (name, *(_format_cell(trial, figure) for trial in trials))
        for name, figure in _FIGURES.items()
    ]
    return draw_table(heads, figures, caption="Methods side by side") + _draw_answers(trials)


def _draw_answers(trials: Sequence[MethodTrial]) -> str:
    done = [(one.method, one.assessment) for one in trials if one.assessment is not None]
    if not done:
        return ""
    heads = ("prompt", "asked as", "unedited", *(name for name, _ in done))
    columns = [assessment.answers for _, assessment in done]
    rows = [
        (
            same[0].prompt,
            f"{same[0].role}, in chat" if same[0].chat else str(same[0].role),
            same[0].before,
            *(one.after for one in same),
        )
        for same in zip(*columns, strict=True)
    ]
    return draw_table(heads, rows, caption="Answers by method")


def _format_cell(trial: MethodTrial, figure: Callable[[Assessment], str]) -> str:
    return trial.error if trial.assessment is None else figure(trial.assessment)


def _format_share(assessment: Assessment, role: Role) -> str:
    share = assessment.share(role)
    return "-" if share is None else f"{share:.0%}"
