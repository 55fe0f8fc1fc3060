"""Search of a method for a set of facts: candidates on a sample, success against damage."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from corrigenda.assessment import Assessment, measure
from corrigenda.books.patches import require_value
from corrigenda.catalogue import build_editor
from corrigenda.engines.chat_forms import add_chat_forms, set_chat_contexts
from corrigenda.errors import CorrigendaError
from corrigenda.facts import Fact
from corrigenda.knowledge.edit_trial import FactOutcome
from corrigenda.patch.compare import add_up
from corrigenda.progress import report_stage
from corrigenda.prompt_answers import Role, asks_in_chat
from corrigenda.tuning.scores import DriftMeter, score_outcomes

if TYPE_CHECKING:
    from corrigenda.editor import Editor
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch import PatchValue

SAMPLE = 8
"""Facts of the search."""

ONE, SEVERAL = ("rome", "memit"), ("memit", "emmet", "alphaedit")
"""Methods that are tried for one fact, and for several: closed-form changes of weights, which leave
no copy of a prompt behind and can be exported in every form."""

_MINUTE = 60.0

_STRONGER = {"clamp": 2.0, "steps": 1.5, "weight_decay": 0.2, "weight": 0.1}


@dataclass(frozen=True)
class Approach:
    """A method with options.

    Attributes:
        method: Its name.
        options: Options on top of the preset of the model.
        stronger: Whether it is then strengthened; see `strengthen`.
    """

    method: str
    options: Mapping[str, object] = field(default_factory=dict)
    stronger: bool = False

    @property
    def label(self) -> str:
        """The method, and options where there are any."""
        given = ", ".join(f"{name}={value}" for name, value in self.options.items())
        name = f"{self.method}, stronger" if self.stronger else self.method
        return f"{name} ({given})" if given else name

    def build(self, lm: LanguageModel) -> Editor:
        """Return the editor."""
        options: dict[str, Any] = dict(self.options)
        editor = build_editor(lm, self.method, **options)
        return strengthen(editor) if self.stronger else editor


@dataclass(frozen=True)
class SearchTrial:
    """Outcome of one approach on the sample.

    Attributes:
        approach: The approach.
        success: Mean of the shares of prompts and of paraphrases with the new answer, over both
            forms of asking; NaN where it raised an error.
        damage: Share of neighbours that lost their answer, plus the drift on ordinary text in nats.
        score: Score of `corrigenda.tuning.scores`.
        seconds: Time of the trial.
        problem: Why there are no figures; empty where there are.
        on_front: Whether no other trial is better in one and as good in the other.
    """

    approach: Approach
    success: float
    damage: float
    score: float
    seconds: float
    problem: str = ""
    on_front: bool = False

    def to_json(self) -> dict[str, object]:
        """Return plain values; null where there is no number."""
        return {
            "method": self.approach.method,
            "options": dict(self.approach.options),
            "stronger": self.approach.stronger,
            **{
                name: round(value, 4) if math.isfinite(value) else None
                for name, value in (
                    *(("success", self.success), ("damage", self.damage)),
                    *(("score", self.score), ("seconds", self.seconds)),
                )
            },
            "problem": self.problem,
            "on_front": self.on_front,
        }


def list_approaches(count: int, method: str | None = None) -> list[Approach]:
    """Return the approaches for a number of facts: one where a method is named."""
    if method is not None:
        return [Approach(method)]
    first, *others = ONE if count == 1 else SEVERAL
    return [Approach(first), Approach(first, stronger=True), *map(Approach, others)]


def strengthen(editor: Editor) -> Editor:
    """Return an editor with longer vectors, more steps and less weight on what was before."""
    changed: dict[str, object] = {}
    for name, factor in _STRONGER.items():
        value = getattr(editor, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            scaled = value * factor
            changed[name] = round(scaled) if isinstance(value, int) else scaled
    return editor.model_copy(update=changed)


class EditMaker:
    """Makes and measures patches of one model, on top of others that lie below.

    States are fitted on the model without any patch, as methods expect them.
    """

    def __init__(
        self, lm: LanguageModel, below: Sequence[PatchValue] = (), *, chat: bool | None = None
    ) -> None:
        """Bind a model.

        Args:
            lm: The model, without patches; every method leaves it so.
            below: Patches on top of which all others are made, such as those of a book.
            chat: Whether to edit and ask in the chat form too; by default where there is a
                template.
        """
        self.lm, self.below, self.chat = lm, tuple(below), chat

    def make(
        self, editor: Editor, facts: Sequence[Fact], on: Sequence[PatchValue] = ()
    ) -> PatchValue:
        """Return the patch of facts, all at once where the method can, else one after the other.

        The method gets no prompt by which the edit is judged.

        Args:
            editor: The method.
            facts: What should become true.
            on: Further patches on top of which it is made.

        Raises:
            NotExportable (CG405): a patch of a plug-in that cannot be part of a sum.
            CorrigendaError: as `Editor.fit` and `Editor.edit`.
        """
        lm, editor = self.lm, set_chat_contexts(editor, asks_in_chat(self.lm, self.chat))
        state = editor.fit(lm, progress=report_stage)
        plain = [replace(one, paraphrases=(), neighbours=(), same_subject=()) for one in facts]
        with self.applied(on):
            if editor.supports.batch or len(plain) == 1:
                wanted = add_chat_forms(lm, editor, plain, self.chat)
                return require_value(editor.edit(lm, wanted, state).patch)
            patches: list[PatchValue] = []
            with ExitStack() as active:
                for fact in plain:
                    patch, state = editor.edit(lm, [fact], state)
                    active.enter_context(patch.apply(lm))
                    patches.append(require_value(patch))
        return add_up(patches)

    def measure(self, patches: Sequence[PatchValue], facts: Sequence[Fact]) -> Assessment:
        """Return the assessment of patches together, of facts that are not true without them."""
        with self.applied():
            return measure(self.lm, add_up(patches), facts, [False] * len(facts), chat=self.chat)

    @contextmanager
    def applied(self, on: Sequence[PatchValue] = ()) -> Generator[None]:
        """Keep the patches below, and further ones, active."""
        with ExitStack() as active:
            for one in (*self.below, *on):
                active.enter_context(one.apply(self.lm))
            yield


def search(
    maker: EditMaker,
    facts: Sequence[Fact],
    approaches: Sequence[Approach],
    *,
    budget: float,
    seed: int = 0,
) -> list[SearchTrial]:
    """Try approaches on a sample of the facts, and return the trials, best score first.

    Args:
        maker: Makes the patches.
        facts: Facts that are not true yet.
        approaches: What to try; a single one is taken without a trial.
        budget: Minutes; no trial begins after them, and the first is always made.
        seed: Decides the texts on which drift is measured.
    """
    if len(approaches) == 1:
        return [SearchTrial(approaches[0], math.nan, math.nan, 0.0, 0.0, on_front=True)]
    step = max(1, len(facts) // SAMPLE)
    sample = list(facts[::step][:SAMPLE])
    with maker.applied():
        meter = DriftMeter(maker.lm, seed=seed)
    begin = time.monotonic()
    trials: list[SearchTrial] = []
    for number, approach in enumerate(approaches):
        report_stage("search: methods tried", number, len(approaches))
        took = max((one.seconds for one in trials), default=0.0)
        if trials and time.monotonic() - begin + took > budget * _MINUTE:
            continue
        trials.append(_try(maker, approach, sample, meter))
    report_stage("search: methods tried", len(approaches), len(approaches))
    trials.sort(key=lambda one: (bool(one.problem), -one.score))
    return mark_front(trials)


def _try(
    maker: EditMaker, approach: Approach, sample: Sequence[Fact], meter: DriftMeter
) -> SearchTrial:
    begin = time.monotonic()
    try:
        patch = maker.make(approach.build(maker.lm), sample)
        found = maker.measure([patch], sample)
        with maker.applied([patch]):
            drift = meter.measure(maker.lm)
    except CorrigendaError as error:
        problem = f"{error.code} {error.message}"
        seconds = time.monotonic() - begin
        return SearchTrial(approach, math.nan, math.nan, -math.inf, seconds, problem)
    kept = found.share(Role.NEIGHBOUR)
    return SearchTrial(
        approach,
        success=compute_success(found),
        damage=(0.0 if kept is None else 1 - kept) + drift,
        score=score_outcomes(list_outcomes(found), drift),
        seconds=time.monotonic() - begin,
    )


def mark_front(trials: Sequence[SearchTrial]) -> list[SearchTrial]:
    """Return trials with those on the Pareto front marked: no other is better and no worse.

    Example:
        >>> a, b, c = (SearchTrial(Approach(n), s, d, s, 0) for n, s, d in
        ...            [("a", 0.9, 0.2), ("b", 0.8, 0.1), ("c", 0.7, 0.3)])
        >>> [one.on_front for one in mark_front([a, b, c])]
        [True, True, False]
    """

    def is_beaten(one: SearchTrial) -> bool:
        return bool(one.problem) or any(
            other.success >= one.success
            and other.damage <= one.damage
            and (other.success, other.damage) != (one.success, one.damage)
            for other in trials
        )

    return [replace(one, on_front=not is_beaten(one)) for one in trials]


def compute_success(found: Assessment) -> float:
    """Return the mean share of prompts and paraphrases with the new answer, in both forms."""
    shares = [
        found.share(role, chat=chat)
        for role in (Role.PROMPT, Role.PARAPHRASE)
        for chat in (False, True)
    ]
    return fmean([one for one in shares if one is not None])


def list_outcomes(found: Assessment) -> list[FactOutcome]:
    """Return the outcome of each fact in each form, as the score takes it."""
    outcomes: list[FactOutcome] = []
    for chat in (False, True) if found.has_chat else (False,):
        for place, fact in enumerate(found.facts):
            wanted: dict[Role, list[bool]] = {role: [] for role in Role}
            for item in found.answers:
                if item.fact == place and item.chat is chat:
                    wanted[item.role].append(item.is_wanted(fact))
            outcomes.append(
                FactOutcome(
                    fact=fact.label,
                    chat=chat,
                    efficacy=all(wanted[Role.PROMPT]),
                    paraphrase=tuple(wanted[Role.PARAPHRASE]),
                    locality=tuple(wanted[Role.NEIGHBOUR]),
                    same_subject=tuple(wanted[Role.SAME_SUBJECT]),
                )
            )
    return outcomes
