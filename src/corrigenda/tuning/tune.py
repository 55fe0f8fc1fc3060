"""Tuning: options of methods for one model, found on facts that the model knows."""

from __future__ import annotations

import datetime
import math
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from corrigenda.almanac.exam import ExamEdit
from corrigenda.almanac.known_facts import hash_questions
from corrigenda.catalogue import build_editor, shape_of
from corrigenda.editor import Editor
from corrigenda.engines.locate.target_cache import keep_targets
from corrigenda.errors import BadConfig, NoCases
from corrigenda.files import cache_folder
from corrigenda.knowledge.exam import draw_cases
from corrigenda.lm.chat import has_chat_template
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.wrapping import require_lm
from corrigenda.methods.registry import METHODS
from corrigenda.progress import Progress, show_progress
from corrigenda.statistics.cache import hash_settings
from corrigenda.statistics.corpus import Corpus, Source
from corrigenda.tuning.evaluation import Evaluator, Outcomes
from corrigenda.tuning.scores import DriftMeter
from corrigenda.tuning.study import Best, MethodSearch
from corrigenda.tuning.tuned_preset import TunedPreset, summarise

_VERSION = 1
"""Of spaces and scores: a search of another version does not go on."""

_FOLDER = "tuning"
_CHECK_SHARE = 0.4
"""Most of the time that is kept for the facts that the search does not use."""
_FEWEST_FACTS = 4
_MINUTE = 60.0


def tune(
    lm: LanguageModel,
    methods: str | Sequence[str] = "rome",
    *,
    budget: float = 15.0,
    facts: int = 24,
    held_out: int | None = None,
    trials: int | None = None,
    chat: bool | None = None,
    seed: int = 0,
    corpus: Corpus | Source | None = None,
    progress: Progress | bool | None = None,
) -> list[TunedPreset]:
    """Search the options of methods for a model, and measure the best on other facts.

    Blocks, strength and length (see `tuning.spaces`) are drawn by Optuna's TPE sampler; the first
    trial is what is used today, the preset or the defaults. A trial edits facts that the model
    knows a few at a time, and ends where it falls behind the median of the others. Methods that are
    used for many facts at once are also tried with 16 in one edit; both scores count alike. The
    score is in `tuning.scores`. Then the best options, and those of today, edit facts about other
    subjects: those figures, with their intervals, are the evidence of the preset.

    Trials are kept in the cache: a search that was killed, or is given more time, goes on.

    Args:
        lm: The model; left as it was.
        methods: Names of methods, which share the time equally.
        budget: Minutes, the exam of the model included; only the last portion of facts, a few
            edits, may take longer.
        facts: Facts of the search.
        held_out: Facts of the evidence; as many if None. Fewer where the time is up.
        trials: Most trials of a method; as many as there is time for if None.
        chat: Whether facts are asked in the chat template too, and both forms count alike; by
            default where the model has one.
        seed: Decides facts and draws.
        corpus: Text for statistics; see `corrigenda.fit`.
        progress: A callback with (stage, done, total), or False for no progress bar.

    Returns:
        One preset for each method, to be saved, or used by `load(presets=...)`.

    Raises:
        MissingExtra (CG504): optuna is not installed.
        BadConfig (CG502): a method that is trained first, no budget, or too few facts.
        NoCases (CG607): the model knows too few facts.

    Example:
        ```python
        (preset,) = cg.tune(lm, "rome", budget=15)
        preset.save("rome.toml")
        ```
    """
    lm = require_lm(lm)
    names = [methods] if isinstance(methods, str) else list(methods)
    names = [_check_method(name) for name in names]
    if budget <= 0 or facts < _FEWEST_FACTS or (trials is not None and trials < 1):
        raise BadConfig(
            f"a budget of {budget:g} minutes, {facts} facts and {trials} trials.",
            where="tune",
            hint=f"Give some minutes, {_FEWEST_FACTS} facts or more, and a trial or more.",
        )
    chat = has_chat_template(lm.tokenizer) if chat is None else chat
    begin = time.monotonic()
    with show_progress(progress) as report, keep_targets():
        cases = _draw(lm, facts, seed, (), report)
        others = _draw(lm, held_out or facts, seed + 1, cases, report)
        meter = DriftMeter(lm, corpus, seed=seed)
        found: list[TunedPreset] = []
        for number, name in enumerate(names):
            left = budget * _MINUTE - (time.monotonic() - begin)
            one = _MethodTuning(lm, name, cases, others, meter, chat, seed, corpus)
            found.append(one.run(left / (len(names) - number), trials, report))
    return found


class _MethodTuning:
    """Search and evidence of one method."""

    def __init__(
        self,
        lm: LanguageModel,
        method: str,
        cases: Sequence[ExamEdit],
        others: Sequence[ExamEdit],
        meter: DriftMeter,
        chat: bool,
        seed: int,
        corpus: Corpus | Source | None,
    ) -> None:
        self.lm, self.method, self.meter = lm, method, meter
        self.cases, self.others, self.chat, self.seed = cases, others, chat, seed
        self.corpus = corpus
        self.present: Editor = build_editor(lm, method)
        self.digest = lm.digest()

    def run(self, budget: float, trials: int | None, report: Progress | None) -> TunedPreset:
        """Search, then measure, within some seconds for this run."""
        at_once = bool(METHODS.card(self.method).get("at_once", False))
        search = MethodSearch(
            self.lm,
            self.present,
            Evaluator(self.lm, self.cases, self.meter, chat=self.chat),
            self._find_file(),
            at_once=at_once,
            corpus=self.corpus,
            seed=self.seed,
        )
        end = max(search.seconds, budget)
        tell = partial(_report, report, f"tune {self.method}", end)
        tell(search.seconds)
        search.run(end - _CHECK_SHARE * end, tell, trials=trials)
        best = search.best()
        if best is None:
            raise BadConfig(
                "no trial could edit a fact.",
                where=f"tune {self.method}",
                hint="Try `corrigenda edit` with this method, which says why.",
            )
        evaluator = Evaluator(self.lm, self.others, self.meter, chat=self.chat)
        half = search.seconds + (end - search.seconds) * (1.0 if best.number == 0 else 0.6)
        checked = search.check(evaluator, best.options, half, tell)
        before = checked
        if best.number != 0:
            options = self.present.model_dump(mode="json", exclude_defaults=True)
            before = search.check(evaluator, options, end, tell)
        return self._summarise(best, checked, before, search)

    def _find_file(self) -> Path:
        """Return the file of trials: named by all that a trial depends on."""
        settings = {
            "version": _VERSION,
            "questions": hash_questions(),
            "model": self.digest,
            "method": self.method,
            "present": self.present.model_dump(mode="json"),
            "facts": [case.fact.name for case in self.cases],
            "chat": self.chat,
            "corpus": repr(self.corpus),
            "seed": self.seed,
        }
        return cache_folder() / _FOLDER / f"{hash_settings(settings)}.journal"

    def _summarise(
        self, best: Best, checked: Outcomes, before: Outcomes, search: MethodSearch
    ) -> TunedPreset:
        from corrigenda.version import VERSION

        kept = best.number == 0
        return TunedPreset(
            method=self.method,
            options=dict(best.options),
            model={
                "name": self.lm.name,
                "digest": self.digest,
                "dtype": str(self.lm.dtype).removeprefix("torch."),
                **shape_of(self.lm)._asdict(),
            },
            evidence={
                "version": VERSION,
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "trials": best.trials,
                "completed": best.completed,
                "minutes": round(search.seconds / _MINUTE, 1),
                "facts": len(self.cases),
                "chat": self.chat,
                "seed": self.seed,
                "score": round(best.outcomes.score, 4),
                "score_of_present": round(best.present.score, 4) if best.present else math.nan,
                "is_present": kept,
                **summarise(checked),
                "present": summarise(before),
            },
        )


def _report(report: Progress | None, stage: str, total: float, seconds: float) -> None:
    if report is not None:
        report(f"{stage}, seconds", int(min(seconds, total)), max(1, int(total)))


def _draw(
    lm: LanguageModel,
    count: int,
    seed: int,
    exclude: Sequence[ExamEdit],
    report: Progress | None,
) -> list[ExamEdit]:
    """Draw known facts.

    Raises:
        NoCases (CG607): the model knows too few.
    """
    cases = draw_cases(lm, count, seed=seed, exclude=exclude, progress=report or False)
    if len(cases) < _FEWEST_FACTS:
        raise NoCases(
            f"{lm.name} knows {len(cases) + len(exclude)} facts of the almanac that can be edited.",
            where="tune",
            hint="corrigenda exam MODEL shows what it knows; without known facts nothing can be "
            "tuned.",
        )
    if len(cases) < count:
        warnings.warn(
            f"tune: {lm.name} knows {len(cases)} facts that can be edited, not {count}.",
            stacklevel=4,
        )
    return cases


def _check_method(name: str) -> str:
    """Return the full name of a method.

    Raises:
        UnknownMethod (CG501): no method by that name.
        BadConfig (CG502): it is trained first, so that a trial would take hours.
    """
    name = METHODS.resolve(name)
    if METHODS.card(name)["training"]:
        raise BadConfig(
            f"{name} is trained before its first edit, and is not tuned.",
            where="tune",
            hint="Train it with other options by `corrigenda fit`.",
        )
    return name
