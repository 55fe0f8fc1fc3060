"""Trials of edits: of each fact alone, of all as one batch, or in sequence.

Answers are greedy, taken before and after, on paraphrases and neighbours that the method did not
get. Every edit is undone. What is asked while an edit is active is up to judges, so that other
questions, or the perplexity of texts, are measured in the same way.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from corrigenda.almanac.exam import ExamEdit
from corrigenda.errors import CorrigendaError
from corrigenda.knowledge.exam import names
from corrigenda.lm.decoding import answer, gives
from corrigenda.short_answers import keeps_answer

if TYPE_CHECKING:
    from corrigenda.editor import Editor, State
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch import Patch
    from corrigenda.progress import Progress

EFFICACY, PARAPHRASE = "efficacy", "paraphrase"
LOCALITY, SAME_SUBJECT = "locality", "same_subject"
ROLES = (EFFICACY, PARAPHRASE, LOCALITY, SAME_SUBJECT)
"""What an answer says of an edit; see `EditFigures`."""
SUBJECT_NAMED = "subject_named"
"""In a chat, whether an answer about the fact names its subject, where it did before."""

_NEW_TOKENS, _CHAT_TOKENS = 12, 24

Judge = Callable[[Sequence[ExamEdit]], None]
"""Called with the cases to ask about, while their edit is active."""


class JudgedAnswer(NamedTuple):
    """Label of a fact, and whether one answer that was asked about it is as wanted."""

    fact: str
    right: bool


class EditFigures(NamedTuple):
    """Figures of a trial: shares in [0, 1]; None where nothing was asked.

    Attributes:
        efficacy: Facts whose new object is the greedy answer.
        paraphrase: Paraphrases that get the new object.
        locality: Neighbours that keep their answer.
        same_subject: Prompts for other facts of the subject that keep their answer.
        seconds: Time of `edit`, per fact, the median over edits.
        num_bytes: Size of the saved patch, per fact, the median over edits.
    """

    efficacy: float | None
    paraphrase: float | None
    locality: float | None
    same_subject: float | None
    seconds: float | None = None
    num_bytes: float | None = None


def compute_share(right: Sequence[bool]) -> float | None:
    """Return the share of true values; None for none."""
    return sum(right) / len(right) if right else None


def try_single_edits(
    lm: LanguageModel,
    editor: Editor,
    cases: Sequence[ExamEdit],
    *,
    state: State | None = None,
    progress: Progress | None = None,
) -> EditFigures:
    """Edit each fact alone, ask, undo; the figures are over all prompts of a kind."""
    judge = AnswerJudge(lm, cases)
    trial = EditTrial(lm, editor, [judge], state=state, progress=progress)
    trial.edit_alone(cases)
    return _summarise(trial, judge)


def try_batch_edit(
    lm: LanguageModel, editor: Editor, cases: Sequence[ExamEdit], *, state: State | None = None
) -> EditFigures:
    """Edit all facts at once, ask, undo."""
    judge = AnswerJudge(lm, cases)
    trial = EditTrial(lm, editor, [judge], state=state)
    trial.edit_together(cases)
    return _summarise(trial, judge)


def try_sequence(
    lm: LanguageModel,
    editor: Editor,
    cases: Sequence[ExamEdit],
    *,
    size: int = 1,
    state: State | None = None,
    progress: Progress | None = None,
) -> EditFigures:
    """Edit `size` facts at a time, each edit on top of those before, and ask for all at the end."""
    judge = AnswerJudge(lm, cases)
    trial = EditTrial(lm, editor, [judge], state=state, progress=progress)
    trial.edit_in_sequence(cases, size=size)
    return _summarise(trial, judge)


class EditTrial:
    """Edits cases, calls judges while the edits are active, and undoes them.

    Attributes:
        seconds: Time of each `edit`, per fact.
        cpu_seconds: Time of the processor for each `edit`, per fact.
        num_bytes: Size of each saved patch, per fact.
        errors: Errors of edits that were refused; only where `lenient`.
        refused: Code of the error of each fact that was not edited for it.
        asked: Number of cases that judges were asked about.
    """

    def __init__(
        self,
        lm: LanguageModel,
        editor: Editor,
        judges: Sequence[Judge],
        *,
        state: State | None = None,
        progress: Progress | None = None,
        lenient: bool = False,
        budget: float | None = None,
    ) -> None:
        """Bind the trial to a model and an editor.

        Args:
            lm: The model.
            editor: The method.
            judges: Called in order after an edit.
            state: Result of `fit`.
            progress: A callback with (stage, done, total).
            lenient: Go on where a fact is refused with an error of this library, and ask about it
                as the model then is.
            budget: Seconds of the processor after which no further fact is edited alone.
        """
        self.lm, self.editor, self.judges = lm, editor, judges
        self.state, self.progress = state, progress
        self.lenient, self.budget = lenient, budget
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.num_bytes: list[float] = []
        self.errors: list[CorrigendaError] = []
        self.refused: list[str] = []
        self.asked = 0

    def edit_alone(self, cases: Sequence[ExamEdit]) -> None:
        """Edit each fact alone and ask about it."""
        begin = time.process_time()
        for number, case in enumerate(cases):
            spent = time.process_time() - begin
            if self.budget is not None and number and spent > self.budget:
                break
            with ExitStack() as stack:
                self._edit([case], self.state, stack)
                self._ask([case])
            self._report("single edits", number + 1, len(cases))

    def edit_together(
        self, cases: Sequence[ExamEdit], *, asked: Sequence[ExamEdit] | None = None
    ) -> None:
        """Edit all facts at once, and ask about them, or about those of `asked`."""
        if not cases:
            return
        with ExitStack() as stack:
            self._edit(cases, self.state, stack)
            self._ask(cases if asked is None else asked)

    def edit_in_sequence(
        self, cases: Sequence[ExamEdit], *, size: int = 1, asked: Sequence[ExamEdit] | None = None
    ) -> None:
        """Edit `size` facts at a time on top of those before, and ask about all at the end."""
        state = self.state
        with ExitStack() as stack:
            for begin in range(0, len(cases), size):
                part = cases[begin : begin + size]
                state = self._edit(part, state, stack)
                self._report("sequence", begin + len(part), len(cases))
            self._ask(cases if asked is None else asked)

    def _edit(
        self, cases: Sequence[ExamEdit], state: State | None, stack: ExitStack
    ) -> State | None:
        """Edit, note the cost, and leave the edit active on `stack`."""
        try:
            with self._measure_time(len(cases)):
                patch, after = self.editor.edit(
                    self.lm, [case.training_fact for case in cases], state
                )
            stack.enter_context(patch.apply(self.lm))
        except CorrigendaError as error:
            if not self.lenient:
                raise
            self.errors.append(error)
            self.refused += [error.code] * len(cases)
            return state
        self.num_bytes.append(_measure_size(patch) / len(cases))
        return after

    def _ask(self, cases: Sequence[ExamEdit]) -> None:
        for judge in self.judges:
            judge(cases)
        self.asked += len(cases)

    @contextmanager
    def _measure_time(self, facts: int) -> Generator[None]:
        begin, cpu = time.perf_counter(), time.process_time()
        yield
        self.cpu_seconds.append((time.process_time() - cpu) / facts)
        self.seconds.append((time.perf_counter() - begin) / facts)

    def _report(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(f"{self.editor.name}: {stage}", done, total)


class AnswerJudge:
    """Greedy answers to the prompts of a case, before and after.

    In the chat template an answer is a sentence: it gives an object where it names it.

    Attributes:
        before: Answer of the unedited model to each of `list_asked`.
        values: For each role, its answers.
    """

    def __init__(
        self,
        lm: LanguageModel,
        cases: Sequence[ExamEdit],
        *,
        chat: bool = False,
        before: Mapping[str, str] | None = None,
    ) -> None:
        """Ask the unedited model, unless its answers are given."""
        self.lm, self.chat = lm, chat
        self.before = self.ask(list_asked(cases, chat=chat)) if before is None else before
        self.values: dict[str, list[JudgedAnswer]] = {role: [] for role in (*ROLES, SUBJECT_NAMED)}

    def __call__(self, cases: Sequence[ExamEdit]) -> None:
        """Ask the model as it is now."""
        after = self.ask(list_asked(cases, chat=self.chat))
        given = self._find_given(cases, after)
        for case in cases:
            fact = case.fact
            self._add(EFFICACY, case, [given[fact.prompt, fact.target]])
            self._add(PARAPHRASE, case, [given[text, fact.target] for text in fact.paraphrases])
            self._add(LOCALITY, case, [self._keeps(case, one, after) for one in fact.neighbours])
            own = [self._keeps(case, one, after) for one in fact.same_subject]
            self._add(SAME_SUBJECT, case, own)
            if self.chat and fact.subject is not None:
                own = [
                    names(after[text], fact.subject)
                    for text in (fact.prompt, *fact.paraphrases)
                    if names(self.before[text], fact.subject)
                ]
                self._add(SUBJECT_NAMED, case, own)

    def ask(self, prompts: Sequence[str]) -> dict[str, str]:
        """Return the short answer to each prompt."""
        longest = _CHAT_TOKENS if self.chat else _NEW_TOKENS
        texts = answer(self.lm, prompts, max_new_tokens=longest, chat=self.chat)
        return dict(zip(prompts, texts, strict=True))

    def share(self, role: str) -> float | None:
        """Return the share of right answers; None where nothing was asked."""
        return compute_share([one.right for one in self.values[role]])

    def _find_given(
        self, cases: Sequence[ExamEdit], after: Mapping[str, str]
    ) -> dict[tuple[str, str], bool]:
        """Return for each prompt of a fact and its target whether the model says it."""
        pairs = [
            (prompt, case.fact.target)
            for case in cases
            for prompt in (case.fact.prompt, *case.fact.paraphrases)
        ]
        if self.chat:
            return {(prompt, target): names(after[prompt], target) for prompt, target in pairs}
        return dict(zip(pairs, gives(self.lm, pairs), strict=True))

    def _keeps(self, case: ExamEdit, prompt: str, after: Mapping[str, str]) -> bool:
        known, before = case.right.get(prompt, ()), self.before[prompt]
        if self.chat and any(names(before, one) for one in known):
            return any(names(after[prompt], one) for one in known)
        return keeps_answer(before, after[prompt], known)

    def _add(self, role: str, case: ExamEdit, right: Sequence[bool]) -> None:
        self.values[role] += [JudgedAnswer(case.fact.label, one) for one in right]


def list_asked(cases: Sequence[ExamEdit], *, chat: bool = False) -> list[str]:
    """Return the prompts that are asked before and after, each once.

    These are neighbours and other facts of the subject; in a chat also those of the fact.
    """
    prompts = [
        text
        for case in cases
        for text in (
            *case.fact.neighbours,
            *case.fact.same_subject,
            *((case.fact.prompt, *case.fact.paraphrases) if chat else ()),
        )
    ]
    return list(dict.fromkeys(prompts))


def _summarise(trial: EditTrial, judge: AnswerJudge) -> EditFigures:
    return EditFigures(
        *(judge.share(role) for role in ROLES),
        seconds=statistics.median(trial.seconds) if trial.seconds else None,
        num_bytes=statistics.median(trial.num_bytes) if trial.num_bytes else None,
    )


def _measure_size(patch: Patch) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return patch.save(Path(folder) / "patch.safetensors").stat().st_size
