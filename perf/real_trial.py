"""One method on a real model, for `real_table.py`: facts, training sets, judges and regimes."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from real_judges import EditCourse, RecordJudge, TextJudge, estimate, to_list
from table_rows import REGIMES, SHARES, TableRow, hash_origin

import corrigenda as cg
from corrigenda import benchmarks
from corrigenda.almanac.exam import ExamEdit
from corrigenda.almanac.truth_pairs import truth_facts
from corrigenda.cases import Case
from corrigenda.editor import Edit, Editor, State
from corrigenda.engines.locate.target_cache import keep_targets
from corrigenda.errors import CorrigendaError
from corrigenda.facts import Fact
from corrigenda.knowledge.edit_trial import EditTrial, Unedited
from corrigenda.knowledge.exam import draw_cases
from corrigenda.lm.chat import has_chat_template
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods.registry import METHODS
from corrigenda.patch import WeightPatch, header_for
from corrigenda.patch.header import library_versions
from corrigenda.run.prober import describe_error

FORMAT = "1"
"""Of the way in which facts are drawn, edited and judged."""

SEED = 14
"""Of the facts that are edited."""

TUNED = ((24, 0), (30, 1), (8, 2))
"""Numbers and seeds of the facts with which presets were chosen: those of `corrigenda tune`."""

UNEDITED = "unedited"
"""Label of the rows in which nothing is edited."""

VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "memit": {"memit": {}, "memit sequential": {"sequential": True}},
}
"""Methods of which more than the preset is worth a row."""

TRAINING: Mapping[str, Mapping[str, object]] = {
    "mend": {"rank": 256, "learning_rate": 2e-5, "steps": 150, "validation": 24},
    "malmen": {"num_edits": 24, "rank": 256, "edit_rate": 2.5e-3, "steps": 40},
    "serac": {"steps": 600, "opening": "New fact: ", "between": ". ", "cached_text": "prompt"},
    "knowledge-editor": {"steps": 120, "batch_size": 4, "others": 2, "validation": 24},
    "truthx": {"hidden": 128, "code": 64, "steps": 1000, "max_pairs": 1000},
}
"""Options, under those of the preset, with which training ends within 20 minutes of a core."""

_SHARE_OF_LIMIT = {"single": 0.35, "batch": 0.15, "sequence": 0.25, "records": 0.25}
_FEWEST = 5
_TEXTS, _TEXT_WORDS = 6, 32
_TRAINING_FACTS = 300


class RunOptions(NamedTuple):
    """Options of the command that a worker gets too."""

    model: str
    facts: int
    records: int
    limit: float
    data: Path
    text: Path | None
    threads: int

    def to_arguments(self) -> list[str]:
        """Return them as arguments of the command."""
        given = ((name, value) for name, value in self._asdict().items() if value is not None)
        return [text for name, value in given for text in (f"--{name}", str(value))]

    def facts_by_regime(self) -> dict[str, int]:
        """Return how many facts each regime is to edit."""
        return {one: self.records if one == "records" else self.facts for one in REGIMES}


class NoEdit(Editor):
    """No edit at all: what the figures are without any."""

    name: ClassVar[str] = UNEDITED

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return no sites."""
        return ()

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Return the empty patch."""
        return Edit(WeightPatch({}, header_for(lm, method=self.name, facts=facts)), state)


def list_labels(methods: Sequence[str] | None) -> list[str]:
    """Return the labels of rows, variants apart; of all methods if None."""
    names = [UNEDITED, *METHODS.names()] if methods is None else methods
    return [label for name in names for label in VARIANTS.get(name, {name: {}})]


def make_editor(lm: LanguageModel, label: str) -> Editor:
    """Return the editor of a label with the model's preset."""
    if label == UNEDITED:
        return NoEdit()
    variants = {
        one: (name, options) for name in VARIANTS for one, options in VARIANTS[name].items()
    }
    name, options = variants.get(label, (label, {}))
    editor = cg.build_editor(lm, name, **options)
    given = TRAINING.get(METHODS.resolve(name), {})
    unset = {key: value for key, value in given.items() if key not in editor.model_fields_set}
    return type(editor)(**{**editor.model_dump(exclude_unset=True), **unset})


class Planned(NamedTuple):
    """What the figures of a method depend on, and the regimes that it has."""

    origin: dict[str, str]
    regimes: tuple[str, ...]


def plan_methods(settings: RunOptions, labels: Sequence[str]) -> dict[str, Planned]:
    """Return for each label what will be measured."""
    lm = load(settings)
    editors = {label: make_editor(lm, label) for label in labels}
    return {
        label: Planned(find_origin(lm, settings, editor), list_regimes(settings, editor))
        for label, editor in editors.items()
    }


def list_regimes(settings: RunOptions, editor: Editor) -> tuple[str, ...]:
    """Return the regimes that a method has, and that can be measured with the files there are."""
    supports = editor.supports
    able = {
        "single": supports.single,
        "batch": supports.batch,
        "sequence": supports.sequential,
        "records": supports.single and find_records(settings).is_file(),
    }
    return tuple(regime for regime in REGIMES if able[regime])


def find_records(settings: RunOptions) -> Path:
    """Return where records of CounterFact are."""
    return settings.data / "counterfact" / "counterfact.json"


def find_origin(lm: LanguageModel, settings: RunOptions, editor: Editor) -> dict[str, str]:
    """Return what the figures of an editor depend on."""
    versions = library_versions()
    text = None if settings.text is None else settings.text.name
    return {
        "format": FORMAT,
        "version": versions["corrigenda"],
        "weights": lm.digest()[:12],
        "options": hash_origin([editor.model_dump(mode="json"), text]),
    }


def load(settings: RunOptions) -> LanguageModel:
    """Load the model in float32."""
    return cg.load(settings.model, dtype="float32")


class MethodRun:
    """Measures one method, regime by regime."""

    def __init__(self, settings: RunOptions, label: str) -> None:
        """Load the model and make the editor."""
        self.settings, self.label = settings, label
        self.lm = load(settings)
        self.editor = make_editor(self.lm, label)
        self.origin = find_origin(self.lm, settings, self.editor)
        self._state: State | None = None
        self._fit_seconds = 0.0
        self._pace: tuple[float, float] | None = None
        self._ahead_seconds = 0.0

    def measure(self, regimes: Sequence[str]) -> Iterator[TableRow]:
        """Yield one row for each regime that the method has, and that can be measured here."""
        own = list_regimes(self.settings, self.editor)
        wanted = [regime for regime in own if regime in regimes]
        if not wanted:
            return
        try:
            begin = time.process_time()
            self._state = self.editor.fit(self.lm, self._training_set())
            self._fit_seconds = time.process_time() - begin
        except CorrigendaError as error:
            yield from (self._fail(regime, error) for regime in wanted)
            return
        with keep_targets():
            for regime in wanted:
                try:
                    yield self._measure(regime)
                except CorrigendaError as error:
                    yield self._fail(regime, error)

    @cached_property
    def cases(self) -> list[ExamEdit]:
        """Edits of facts that the model knows, about other subjects than a search edited."""
        tuned = [one for count, seed in TUNED for one in draw_cases(self.lm, count, seed=seed)]
        return draw_cases(self.lm, self.settings.facts, seed=SEED, exclude=tuned)

    @cached_property
    def _records(self) -> dict[str, Case]:
        """Records of CounterFact by the label of their fact."""
        file = find_records(self.settings)
        loaded = benchmarks.load("counterfact", file, limit=self.settings.records)
        return {case.facts[0].label: case for case in loaded}

    @cached_property
    def _texts(self) -> list[str]:
        """Passages of ordinary text; none where there is no file."""
        file = self.settings.data / "text" / "wikitext-2-raw-test.txt"
        if not file.is_file():
            return []
        lines = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
        long = (words for words in lines if len(words) > 2 * _TEXT_WORDS)
        spread = itertools.islice(long, 0, None, 50)
        return [" ".join(words[:_TEXT_WORDS]) for words in itertools.islice(spread, _TEXTS)]

    def _training_set(self) -> list[Fact] | list[str] | None:
        """Return facts to train on, about other subjects, or text for statistics."""
        if self.editor.name == "truthx":
            return list(itertools.islice(truth_facts(), _TRAINING_FACTS))
        if self.editor.requires.training_set:
            drawn = draw_cases(
                self.lm,
                _TRAINING_FACTS,
                seed=SEED + 1,
                exclude=self.cases,
            )
            return [
                replace(
                    case.fact,
                    paraphrases=(*case.fact.paraphrases, *case.shown),
                    neighbours=(*case.fact.neighbours, *case.fact.same_subject),
                    same_subject=(),
                )
                for case in drawn
            ]
        if self.settings.text is None:
            return None
        return self.settings.text.read_text(encoding="utf-8").splitlines()

    def _measure(self, regime: str) -> TableRow:
        if regime == "records":
            return self._measure_records()
        # Answers in the chat template are most of the cost, so they are asked for once.
        chat = regime == "single" and has_chat_template(self.lm.tokenizer)
        trial = EditTrial(self.lm, self.editor, Unedited(self.lm, self.cases, chat=chat))
        texts = TextJudge(self.lm, self._texts) if self._texts else None
        judges = [trial.judge, *([texts] if texts else [])]
        course = EditCourse(trial, judges, ahead_seconds=self._ahead_seconds)
        cases, asked = self._fit_in_time(regime)
        begin = time.process_time()
        course.run(regime, cases, asked, self._state, self._budget(regime))
        self._ahead_seconds = trial.ahead_seconds or self._ahead_seconds
        if regime == "single":
            edit = statistics.fmean(course.cpu_seconds) if course.cpu_seconds else 0.0
            self._pace = edit, (time.process_time() - begin) / course.asked - edit
        row = self._begin_row(regime, course)
        row["edited"] = course.asked if regime == "single" else len(cases)
        shares = {role: estimate(trial.outcomes, role, chat=False) for role in SHARES}
        shares |= {f"chat {role}": estimate(trial.outcomes, role, chat=True) for role in SHARES}
        row["shares"] = {name: to_list(one) for name, one in shares.items() if one is not None}
        if texts is not None and texts.ratios:
            row["perplexity"] = [statistics.fmean(texts.ratios), max(texts.ratios)]
        return row

    def _measure_records(self) -> TableRow:
        judge = RecordJudge(self.lm, self._records)
        course = EditCourse(EditTrial(self.lm, self.editor, Unedited(self.lm, [])), [judge])
        cases = [ExamEdit(case.facts[0]) for case in self._records.values()]
        course.run("single", cases, cases, self._state, self._budget("records"))
        row = self._begin_row("records", course)
        row["edited"] = course.asked
        row["shares"] = {name: to_list(one) for name, one in judge.score().items()}
        return row

    def _budget(self, regime: str) -> float:
        """Return seconds of the processor that a regime may take."""
        return 60 * self.settings.limit * _SHARE_OF_LIMIT[regime]

    def _fit_in_time(self, regime: str) -> tuple[list[ExamEdit], list[ExamEdit]]:
        """Return the cases to edit and those to ask about, as many as there is time for."""
        if regime == "single" or self._pace is None:
            return self.cases, self.cases
        budget = self._budget(regime) / 2
        edit, asking = self._pace
        cases = self.cases[: max(_FEWEST, int(budget / max(edit, 1e-3)))]
        return cases, cases[: max(_FEWEST, int(budget / max(asking, 1e-3)))]

    def _begin_row(self, regime: str, course: EditCourse) -> TableRow:
        sizes = course.trial.num_bytes
        if course.errors and not sizes:
            raise course.errors[0]
        row = self._name_row(regime)
        row["asked"] = course.asked
        row["fit_seconds"] = round(self._fit_seconds, 2)
        row["threads"] = torch.get_num_threads()
        if sizes:
            row["bytes"] = statistics.median(sizes)
        if course.cpu_seconds:
            row["seconds"] = round(statistics.median(course.cpu_seconds), 3)
        if course.refused:
            row["refused"] = dict(course.refused)
        return row

    def _name_row(self, regime: str) -> TableRow:
        return TableRow(
            model=self.settings.model,
            label=self.label,
            regime=regime,
            facts=self.settings.facts_by_regime()[regime],
            origin=self.origin,
        )

    def _fail(self, regime: str, error: CorrigendaError) -> TableRow:
        row = self._name_row(regime)
        row["error"] = f"{describe_error(error)}: {error.message}"
        return row
