"""One search: trials of options, recorded in a file, so that a killed search is resumed."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from corrigenda.editor import Editor
from corrigenda.errors import CorrigendaError, MissingExtra
from corrigenda.files import make_folder
from corrigenda.lm.model import LanguageModel
from corrigenda.statistics.corpus import Corpus, Source
from corrigenda.tuning.evaluation import Evaluator, Outcomes, read_outcomes
from corrigenda.tuning.spaces import build_options, list_dimensions, present_parameters

if TYPE_CHECKING:
    from optuna import Study, Trial

_STUDY = "tune"
_OUTCOMES, _OPTIONS, _SECONDS, _ERROR = "outcomes", "options", "seconds", "error"
_HELD_OUT, _SPENT = "held out", "spent"
# Trials before the sampler learns, and before a trial is compared with others.
_STARTUP, _COMPARED = 6, 3
_FEWEST_FACTS = 4

Report = Callable[[float], object]


class Best(NamedTuple):
    """The best options of a search.

    Attributes:
        number: Number of the trial.
        options: Options of the method.
        outcomes: Outcomes on the facts of the search.
        present: Outcomes of the present options on them; None where they could not be tried.
        trials: Trials that were begun.
        completed: Trials that edited every fact.
        seconds: Time spent, of all runs of this search.
    """

    number: int
    options: Mapping[str, object]
    outcomes: Outcomes
    present: Outcomes | None
    trials: int
    completed: int
    seconds: float


class MethodSearch:
    """Search of the options of one method; trials are kept in a file."""

    def __init__(
        self,
        lm: LanguageModel,
        present: Editor,
        evaluator: Evaluator,
        file: Path,
        *,
        at_once: bool,
        corpus: Corpus | Source | None = None,
        seed: int = 0,
    ) -> None:
        """Open the file of trials, or begin one whose first trial is the present options.

        Args:
            lm: The model.
            present: The editor with its present options.
            evaluator: Edits the facts of the search.
            file: Where trials are kept.
            at_once: Whether facts are edited at once too.
            corpus: Text for statistics.
            seed: Decides the draws.

        Raises:
            MissingExtra (CG504): optuna is not installed.
        """
        self.lm, self.evaluator = lm, evaluator
        self.at_once, self.corpus = at_once, corpus
        chosen = present.chosen_options(lm, present.fit(lm, corpus))
        self.present = present.model_copy(update=chosen)
        self.dimensions = list_dimensions(lm, self.present)
        self.study = _open_study(file, seed)
        self._began = time.monotonic()
        self._spent: float = self.study.user_attrs.get(_SPENT, 0.0)
        self._recover()

    @property
    def seconds(self) -> float:
        """Return the time spent by this run and those before."""
        return self._spent + time.monotonic() - self._began

    def run(self, until: float, report: Report, *, trials: int | None = None) -> None:
        """Try options until the time is spent.

        Args:
            until: Seconds that this run and those before may spend, with room for one portion of
                facts.
            report: Called with the seconds spent.
            trials: Most trials, those before counted; as many as there is time for if None.
        """
        while trials is None or self._count_finished() < trials:
            if self._count_finished() and self.seconds >= until:
                break
            trial = self.study.ask()
            self._try(trial, until, report)
            self.study.set_user_attr(_SPENT, self.seconds)

    def best(self) -> Best | None:
        """Return the best of the trials that edited most facts; None if none edited any."""
        done = [trial for trial in self.study.trials if _OUTCOMES in trial.user_attrs]
        if not done:
            return None
        longest = max(len(one.intermediate_values) for one in done)
        usable = [one for one in done if len(one.intermediate_values) == longest]
        top = max(usable, key=lambda one: one.intermediate_values[longest - 1])
        first = done[0] if done[0].number == 0 else None
        return Best(
            number=top.number,
            options=top.user_attrs[_OPTIONS],
            outcomes=read_outcomes(top.user_attrs[_OUTCOMES]),
            present=read_outcomes(first.user_attrs[_OUTCOMES]) if first else None,
            trials=self._count_finished(),
            completed=sum(_is_complete(one.state.name) for one in done),
            seconds=self.seconds,
        )

    def check(
        self,
        evaluator: Evaluator,
        options: Mapping[str, object],
        until: float,
        report: Report,
    ) -> Outcomes:
        """Edit other facts with given options, as far as there is time; resumes where it stopped.

        Args:
            evaluator: Edits the facts.
            options: Options of the method.
            until: As for `run`; one portion is edited in any case.
            report: Called with the seconds spent.
        """
        name = f"{_HELD_OUT} {sorted(options.items())}"
        kept = self.study.user_attrs.get(name)
        done = read_outcomes(kept) if kept else Outcomes()
        editor = type(self.present)(**options)
        state = editor.fit(self.lm, self.corpus)
        for _ in evaluator.run(editor, state, at_once=self.at_once, done=done):
            self.study.set_user_attr(name, done.to_json())
            self.study.set_user_attr(_SPENT, self.seconds)
            report(self.seconds)
            if self.seconds >= until and len(done.single) >= _FEWEST_FACTS:
                break
        return done

    def _try(self, trial: Trial, until: float, report: Report) -> None:
        """Evaluate one point, portion by portion, as long as it is not hopeless."""
        from optuna.trial import TrialState

        drawn = {one.name: one.suggest(trial) for one in self.dimensions}
        options = build_options(self.lm, self.present, drawn)
        trial.set_user_attr(_OPTIONS, options)
        begin = time.monotonic()
        state = TrialState.PRUNED
        score = -math.inf
        try:
            editor = type(self.present)(**options)
            fitted = editor.fit(self.lm, self.corpus)
            runs = self.evaluator.run(editor, fitted, at_once=self.at_once)
            for step, found in enumerate(runs):
                score = found.score
                trial.set_user_attr(_OUTCOMES, found.to_json())
                trial.report(score, step)
                self.study.set_user_attr(_SPENT, self.seconds)
                report(self.seconds)
                spent = self.seconds >= until and self._count_finished() > 0
                if spent or trial.should_prune() or _is_hopeless(found):
                    break
            else:
                state = TrialState.COMPLETE
        except CorrigendaError as error:
            trial.set_user_attr(_ERROR, str(error))
            state = TrialState.FAIL
        trial.set_user_attr(_SECONDS, time.monotonic() - begin)
        self.study.tell(trial, score if state is TrialState.COMPLETE else None, state=state)

    def _count_finished(self) -> int:
        """Count the trials that edited some facts or failed; not those that were killed before."""
        return sum(
            trial.state.is_finished() and bool({_OUTCOMES, _ERROR} & set(trial.user_attrs))
            for trial in self.study.trials
        )

    def _recover(self) -> None:
        """Try again what a killed run had begun, and begin with the present options."""
        from optuna.trial import TrialState

        trials = self.study.trials
        if not trials:
            self.study.enqueue_trial(present_parameters(self.dimensions))
        for trial in trials:
            if trial.state is TrialState.RUNNING:
                self.study.tell(trial.number, state=TrialState.FAIL)
                if trial.params:
                    self.study.enqueue_trial(trial.params)


def _is_hopeless(found: Outcomes) -> bool:
    """Tell whether no fact was written, of as many as a portion has."""
    known = [*found.single, *found.batch]
    plain = [one for one in known if not one.chat]
    return len(plain) >= _FEWEST_FACTS and not any(one.efficacy for one in known)


def _is_complete(state: str) -> bool:
    return state == "COMPLETE"


def _open_study(file: Path, seed: int) -> Study:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise MissingExtra(
            "the search needs optuna.", where="tune", hint='pip install "corrigenda[tune]"'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    make_folder(file.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = JournalStorage(JournalFileBackend(str(file)))
        known = [one.study_name for one in optuna.get_all_study_summaries(storage)]
        begun = len(optuna.load_study(study_name=_STUDY, storage=storage).trials) if known else 0
        sampler = optuna.samplers.TPESampler(
            # A search that goes on draws other points than it has drawn.
            seed=seed + begun,
            multivariate=True,
            n_startup_trials=_STARTUP,
        )
        return optuna.create_study(
            study_name=_STUDY,
            storage=storage,
            sampler=sampler,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_COMPARED),
            direction="maximize",
            load_if_exists=True,
        )
