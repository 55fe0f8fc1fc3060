"""Trials of edits of the pocket world: alone, as one batch, or in sequence.

Every answer is judged under strict greedy decoding, before and after, on paraphrases and neighbours
that the method did not get. Every edit is undone.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from corrigenda.almanac.exam import ExamEdit
from corrigenda.lm.decoding import answer, gives
from corrigenda.short_answers import keeps_answer

if TYPE_CHECKING:
    from corrigenda.editor import Editor, State
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch import Patch
    from corrigenda.progress import Progress


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
    trial = _Trial(lm, editor, cases)
    for number, case in enumerate(cases):
        patch, _ = trial.edit([case], state)
        with patch.apply(lm):
            trial.judge([case])
        if progress is not None:
            progress(f"{editor.name}: single edits", number + 1, len(cases))
    return trial.figures()


def try_batch_edit(
    lm: LanguageModel, editor: Editor, cases: Sequence[ExamEdit], *, state: State | None = None
) -> EditFigures:
    """Edit all facts at once, ask, undo."""
    trial = _Trial(lm, editor, cases)
    if cases:
        patch, _ = trial.edit(cases, state)
        with patch.apply(lm):
            trial.judge(cases)
    return trial.figures()


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
    trial = _Trial(lm, editor, cases)
    with ExitStack() as stack:
        for begin in range(0, len(cases), size):
            part = cases[begin : begin + size]
            patch, state = trial.edit(part, state)
            stack.enter_context(patch.apply(lm))
            if progress is not None:
                progress(f"{editor.name}: sequence", begin + len(part), len(cases))
        trial.judge(cases)
    return trial.figures()


class _Trial:
    """Answers of the unedited model, and results after edits."""

    def __init__(self, lm: LanguageModel, editor: Editor, cases: Sequence[ExamEdit]) -> None:
        self.lm, self.editor = lm, editor
        prompts = _list_locality_prompts(cases)
        self.before = dict(zip(prompts, answer(lm, prompts), strict=True))
        self.succeeded: list[bool] = []
        self.generalised: list[bool] = []
        self.neighbours: list[bool] = []
        self.same_subject: list[bool] = []
        self.seconds: list[float] = []
        self.num_bytes: list[float] = []

    def edit(self, cases: Sequence[ExamEdit], state: State | None) -> tuple[Patch, State | None]:
        with _measure_time(self.seconds, len(cases)):
            patch, state = self.editor.edit(self.lm, [case.training_fact for case in cases], state)
        with tempfile.TemporaryDirectory() as folder:
            size = patch.save(Path(folder) / "patch.safetensors").stat().st_size
        self.num_bytes.append(size / len(cases))
        return patch, state

    def judge(self, cases: Sequence[ExamEdit]) -> None:
        pairs = [
            (prompt, case.fact.target)
            for case in cases
            for prompt in (case.fact.prompt, *case.fact.paraphrases)
        ]
        kept = _list_locality_prompts(cases)
        said = iter(gives(self.lm, pairs))
        same = {
            text: keeps_answer(self.before[text], after)
            for text, after in zip(kept, answer(self.lm, kept), strict=True)
        }
        for case in cases:
            self.succeeded.append(next(said))
            self.generalised += [next(said) for _ in case.fact.paraphrases]
            self.neighbours += [same[text] for text in case.fact.neighbours]
            self.same_subject += [same[text] for text in case.fact.same_subject]

    def figures(self) -> EditFigures:
        return EditFigures(
            compute_share(self.succeeded),
            compute_share(self.generalised),
            compute_share(self.neighbours),
            compute_share(self.same_subject),
            statistics.median(self.seconds) if self.seconds else None,
            statistics.median(self.num_bytes) if self.num_bytes else None,
        )


@contextmanager
def _measure_time(seconds: list[float], facts: int) -> Generator[None]:
    begin = time.perf_counter()
    yield
    seconds.append((time.perf_counter() - begin) / facts)


def _list_locality_prompts(cases: Sequence[ExamEdit]) -> list[str]:
    prompts = [text for case in cases for text in (*case.fact.neighbours, *case.fact.same_subject)]
    return list(dict.fromkeys(prompts))
