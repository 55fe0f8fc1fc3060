"""Interceptors of one model: edits that rewrite prompts, or answer instead of the model.

Every function of `corrigenda.lm.decoding` asks the active ones. A *rewriter* says what to ask
instead, and of which model; an *answerer* gives the answer. While one of them works, interception
is off, so that it may ask the model itself as often as it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from corrigenda.lm.model import LanguageModel

Result = TypeVar("Result")


class Asked(NamedTuple):
    """What is asked in place of a prompt.

    Attributes:
        prompt: The text that is asked.
        lm: The model that is asked; None for the one that was to be asked.
    """

    prompt: str
    lm: LanguageModel | None = None


@runtime_checkable
class Rewriter(Protocol):
    """Changes what goes into the model."""

    def rewrite(self, lm: LanguageModel, prompts: Sequence[str]) -> list[Asked]:
        """What to ask for each prompt; the prompt itself where it is out of scope."""
        ...


@runtime_checkable
class Answerer(Protocol):
    """Changes the procedure that answers."""

    def answers(self, lm: LanguageModel, prompts: Sequence[str]) -> list[str | None]:
        """The answer to each prompt; None where it is out of scope."""
        ...


class Asking:
    """The rewriters and answerers of one model, in the order in which they became active.

    Attributes:
        suspended: Whether the model is asked plainly at the moment.
    """

    def __init__(self) -> None:
        """Start with nobody."""
        self._active: list[Rewriter | Answerer] = []
        self.suspended = False

    def __deepcopy__(self, memo: object) -> Asking:
        """A copied model is asked plainly: what is active is active on the original."""
        return Asking()

    @property
    def rewriters(self) -> tuple[Rewriter, ...]:
        """Those that rewrite prompts, first to last; none while the model is asked plainly."""
        return () if self.suspended else tuple(_of(self._active, Rewriter))

    @property
    def answerers(self) -> tuple[Answerer, ...]:
        """Those that answer, last first; none while the model is asked plainly."""
        return () if self.suspended else tuple(_of(self._active, Answerer))[::-1]

    @contextmanager
    def joined(self, who: Rewriter | Answerer) -> Generator[None]:
        """Have `who` stand between questions and model, until left."""
        entry = who
        self._active.append(entry)
        try:
            yield
        finally:
            # By identity: equal patches may be active twice.
            place = next(i for i, one in enumerate(self._active) if one is entry)
            del self._active[place]

    @contextmanager
    def plainly(self) -> Generator[None]:
        """Ask the model itself, until left."""
        before, self.suspended = self.suspended, True
        try:
            yield
        finally:
            self.suspended = before

    def rewritten(self, lm: LanguageModel, prompts: Sequence[str]) -> list[Asked]:
        """What is really asked for each prompt, all rewriters applied in order.

        A prompt that one of them hands to another model is not rewritten further.
        """
        asked = [Asked(prompt) for prompt in prompts]
        for rewriter in self.rewriters:
            own = [index for index, one in enumerate(asked) if one.lm is None]
            with self.plainly():
                new = rewriter.rewrite(lm, [asked[index].prompt for index in own])
            for index, one in zip(own, new, strict=True):
                asked[index] = one
        return asked

    def answered(self, lm: LanguageModel, prompts: Sequence[str]) -> list[str | None]:
        """The answers that some answerer has; of several the one that came last decides."""
        found: list[str | None] = [None] * len(prompts)
        for answerer in self.answerers:
            open_ones = [index for index, one in enumerate(found) if one is None]
            if not open_ones:
                break
            with self.plainly():
                new = answerer.answers(lm, [prompts[index] for index in open_ones])
            for index, one in zip(open_ones, new, strict=True):
                found[index] = one
        return found


def through(
    lm: LanguageModel,
    prompts: Sequence[str],
    ask: Callable[[LanguageModel, list[int], list[str]], Sequence[Result]],
) -> list[Result]:
    """Ask each model what it is to be asked after rewriting, and put results back in order.

    Args:
        lm: The model that was to be asked.
        prompts: The prompts.
        ask: Gets a model, which of the prompts it is asked, and their rewritten texts.
    """
    asked = lm.asking.rewritten(lm, prompts)
    # What is asked as it stands is no batch with what was rewritten: it is out of scope, and its
    # answer must not depend, not even by rounding, on what is in scope.
    groups: dict[tuple[int, bool], list[int]] = {}
    for index, (one, prompt) in enumerate(zip(asked, prompts, strict=True)):
        model = 0 if one.lm is None else id(one.lm)
        groups.setdefault((model, one.prompt != prompt), []).append(index)
    results: dict[int, Result] = {}
    for places in groups.values():
        model = asked[places[0]].lm or lm
        texts = [asked[index].prompt for index in places]
        results |= dict(zip(places, ask(model, places, texts), strict=True))
    return [results[index] for index in range(len(prompts))]


Kind = TypeVar("Kind")


def _of(active: Sequence[object], kind: type[Kind]) -> list[Kind]:
    return [one for one in active if isinstance(one, kind)]
