"""Trials of edits of known facts: alone, as one batch, or in sequence.

Every answer is judged under greedy decoding, before and after, on paraphrases, neighbours and other
facts of the subject that the method did not get. Every edit is undone.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from corrigenda.almanac.exam import ExamEdit
from corrigenda.engines.chat_forms import add_chat_forms, set_chat_contexts
from corrigenda.engines.locate.target_cache import current_targets, keep_targets
from corrigenda.errors import CorrigendaError
from corrigenda.knowledge.asking import ask_in_chat, ask_right
from corrigenda.lm.decoding import answer, gives
from corrigenda.short_answers import keeps_answer, states
from corrigenda.statistics.cache import hash_settings, read_texts, write_texts

if TYPE_CHECKING:
    from corrigenda.editor import Editor, State
    from corrigenda.facts import Fact
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch import Patch
    from corrigenda.progress import Progress


TIMED = 3
"""Edits that search their target themselves, where others find theirs."""

_VERSION = 1
"""Of the rule by which the unedited model is asked."""


class FactOutcome(NamedTuple):
    """Outcome of one fact under one form of asking: whether each prompt has the wanted answer.

    Attributes:
        fact: Name of the fact.
        chat: Whether it was asked in the chat template.
        efficacy: The new object is the answer to the fact's own prompt.
        paraphrase: The new object is the answer to a paraphrase, one by one.
        locality: A neighbour keeps its answer, one by one.
        same_subject: Another fact of the subject keeps its answer, one by one.
    """

    fact: str
    chat: bool
    efficacy: bool
    paraphrase: tuple[bool, ...]
    locality: tuple[bool, ...]
    same_subject: tuple[bool, ...]


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


def compute_figures(outcomes: Iterable[FactOutcome], *, chat: bool = False) -> EditFigures:
    """Return the shares over all prompts of a kind, of one form of asking."""
    asked = [one for one in outcomes if one.chat is chat]
    return EditFigures(
        compute_share([one.efficacy for one in asked]),
        compute_share([right for one in asked for right in one.paraphrase]),
        compute_share([right for one in asked for right in one.locality]),
        compute_share([right for one in asked for right in one.same_subject]),
    )


def try_single_edits(
    lm: LanguageModel,
    editor: Editor,
    cases: Sequence[ExamEdit],
    *,
    state: State | None = None,
    progress: Progress | None = None,
) -> EditFigures:
    """Edit each fact alone, ask, undo; the figures are over all prompts of a kind."""
    trial = EditTrial(lm, editor, Unedited(lm, cases))
    with keep_targets():
        trial.search_ahead(cases, state)
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
    trial = EditTrial(lm, editor, Unedited(lm, cases))
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
    trial = EditTrial(lm, editor, Unedited(lm, cases))
    with ExitStack() as stack:
        for begin in range(0, len(cases), size):
            part = cases[begin : begin + size]
            patch, state = trial.edit(part, state)
            stack.enter_context(patch.apply(lm))
            if progress is not None:
                progress(f"{editor.name}: sequence", begin + len(part), len(cases))
        trial.judge(cases)
    return trial.figures()


class Unedited:
    """Answers of the unedited model to the prompts that should keep theirs; asked once.

    Where the right answer of a prompt is known and the model gives it, that answer must stay; else
    the short answer that it gives.
    """

    def __init__(
        self,
        lm: LanguageModel,
        cases: Sequence[ExamEdit] | Mapping[str, tuple[str, ...]],
        *,
        chat: bool = False,
    ) -> None:
        """Ask the model, which carries no edit of these facts.

        Args:
            lm: The model.
            cases: Edits with the prompts that should keep their answers; or such prompts, each with
                its right answers, none where they are not known.
            chat: Whether to ask in the chat template too.
        """
        self.chat = chat
        self._right: dict[str, tuple[str, ...]] = {}
        if isinstance(cases, Mapping):
            self._right |= cases
        else:
            for case in cases:
                self._right |= {text: case.right.get(text, ()) for text in list_kept_prompts(case)}
        prompts = list(self._right)
        judged = f"right {hash_settings(self._right)}"
        asked = _ask_cached(lm, judged, prompts, self._ask_right)
        self._known = {text for text, true in asked.items() if true}
        others = [text for text in prompts if text not in self._known]
        self._before = _ask_cached(lm, "answer", others, answer)
        self._in_chat = _ask_cached(lm, "chat", prompts, ask_in_chat) if chat else {}

    @property
    def known(self) -> frozenset[str]:
        """The prompts whose right answer is known, and given."""
        return frozenset(self._known)

    def _ask_right(self, lm: LanguageModel, prompts: Sequence[str]) -> list[str]:
        """Return for each prompt "right", or nothing."""
        right = ask_right(lm, prompts, [self._right[text] for text in prompts])
        return ["right" if one else "" for one in right]

    def compare(self, lm: LanguageModel, prompts: Sequence[str]) -> dict[str, bool]:
        """Ask again, and return for each prompt whether its answer is kept."""
        known = [text for text in prompts if text in self._known]
        others = [text for text in prompts if text not in self._known]
        right = ask_right(lm, known, [self._right[text] for text in known])
        kept = dict(zip(known, right, strict=True))
        for text, after in zip(others, answer(lm, others), strict=True):
            kept[text] = keeps_answer(self._before[text], after)
        return kept

    def compare_in_chat(self, said: Mapping[str, str]) -> dict[str, bool]:
        """Return for each prompt whether what is said now, in the chat template, is the same."""
        return {
            text: keeps_answer(self._in_chat[text], after, self._right[text], sentence=True)
            for text, after in said.items()
        }


class EditTrial:
    """Edits of one editor, and their outcomes.

    Attributes:
        outcomes: One for each fact and form that was judged.
        seconds: Time of each edit that did all its work itself, per fact.
        num_bytes: Size of each patch, per fact.
        ahead_seconds: Seconds of the processor for a fact that was searched ahead, with others.
    """

    def __init__(self, lm: LanguageModel, editor: Editor, unedited: Unedited) -> None:
        """Bind a model, an editor, and what the unedited model answers.

        Where answers in the chat template count, the editor is given the facts in that form too.
        """
        self.lm, self.unedited = lm, unedited
        self.editor = set_chat_contexts(editor, unedited.chat)
        self.outcomes: list[FactOutcome] = []
        self.seconds: list[float] = []
        self.num_bytes: list[float] = []
        self.ahead_seconds = 0.0

    def search_ahead(
        self, cases: Sequence[ExamEdit], state: State | None, *, timed: int = TIMED
    ) -> None:
        """Search together what edits of single facts need, inside `target_cache.keep_targets`.

        Args:
            cases: The facts.
            state: State of the method.
            timed: How many of the first are left out: the time of an edit is measured on them.
        """
        ahead = cases[timed:]
        before, begin = _count_searched(), time.process_time()
        with suppress(CorrigendaError):  # the edit of that fact says it
            self.editor.search_ahead(self.lm, self._list_facts(ahead), state)
        searched = _count_searched() - before
        if searched:
            self.ahead_seconds = (time.process_time() - begin) / searched

    def _list_facts(self, cases: Sequence[ExamEdit]) -> list[Fact]:
        facts = [case.training_fact for case in cases]
        return add_chat_forms(self.lm, self.editor, facts, self.unedited.chat)

    def edit(self, cases: Sequence[ExamEdit], state: State | None) -> tuple[Patch, State | None]:
        """Make the patch of some facts, and measure its time and size."""
        facts = self._list_facts(cases)
        before = count_hits()
        begin = time.perf_counter()
        patch, state = self.editor.edit(self.lm, facts, state)
        if count_hits() == before:
            self.seconds.append((time.perf_counter() - begin) / len(cases))
        with tempfile.TemporaryDirectory() as folder:
            size = patch.save(Path(folder) / "patch.safetensors").stat().st_size
        self.num_bytes.append(size / len(cases))
        return patch, state

    def judge(self, cases: Sequence[ExamEdit]) -> None:
        """Ask the model as it is now, in both forms where wanted."""
        texts = list(dict.fromkeys(text for case in cases for text in list_kept_prompts(case)))
        pairs = [(text, case.fact.target) for case in cases for text in _list_wanted_prompts(case)]
        self._note(cases, gives(self.lm, pairs), self.unedited.compare(self.lm, texts), chat=False)
        if self.unedited.chat:
            asked = [*(text for text, _ in pairs), *texts]
            all_said = ask_in_chat(self.lm, asked)
            said, kept = all_said[: len(pairs)], all_said[len(pairs) :]
            olds = [case.fact.before for case in cases for _ in _list_wanted_prompts(case)]
            gave = [
                states(text, [target], [old] if old else [])
                for text, (_, target), old in zip(said, pairs, olds, strict=True)
            ]
            same = self.unedited.compare_in_chat(dict(zip(texts, kept, strict=True)))
            self._note(cases, gave, same, chat=True)

    def _note(
        self, cases: Sequence[ExamEdit], gave: Sequence[bool], kept: dict[str, bool], *, chat: bool
    ) -> None:
        said = iter(gave)
        for case in cases:
            fact = case.fact
            outcome = FactOutcome(
                fact=fact.name,
                chat=chat,
                efficacy=next(said),
                paraphrase=tuple(next(said) for _ in fact.paraphrases),
                locality=tuple(kept[text] for text in fact.neighbours),
                same_subject=tuple(kept[text] for text in fact.same_subject),
            )
            self.outcomes.append(outcome)

    def figures(self, *, chat: bool = False) -> EditFigures:
        """Return shares, and medians of time and size."""
        return compute_figures(self.outcomes, chat=chat)._replace(
            seconds=statistics.median(self.seconds) if self.seconds else None,
            num_bytes=statistics.median(self.num_bytes) if self.num_bytes else None,
        )


def _ask_cached(
    lm: LanguageModel,
    form: str,
    prompts: Sequence[str],
    ask: Callable[[LanguageModel, Sequence[str]], list[str]],
) -> dict[str, str]:
    """Ask the unedited model, or read what it answered to these prompts from the cache."""
    settings = {"kind": "unedited", "version": _VERSION, "form": form, "prompts": list(prompts)}
    name = hash_settings({**settings, "model": lm.digest(), "dtype": str(lm.dtype)})
    found = None if lm.patches or not prompts else read_texts(name)
    if found is None:
        found = ask(lm, prompts)
        if prompts and not lm.patches:
            write_texts(name, found)
    return dict(zip(prompts, found, strict=True))


def count_hits() -> int:
    """Count the targets that edits did not search themselves; their times are those of no edit."""
    cache = current_targets()
    return 0 if cache is None else cache.hits


def _count_searched() -> int:
    cache = current_targets()
    return 0 if cache is None else len(cache)


def list_kept_prompts(case: ExamEdit) -> tuple[str, ...]:
    """Return the prompts that should keep their answers: neighbours, other facts of the subject."""
    return (*case.fact.neighbours, *case.fact.same_subject)


def _list_wanted_prompts(case: ExamEdit) -> tuple[str, ...]:
    """Return the prompts that should get the new object: the fact's own and its paraphrases."""
    return (case.fact.prompt, *case.fact.paraphrases)
