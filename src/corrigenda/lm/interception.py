"""Edits that rewrite prompts, or answer instead of the model, applied to questions.

Every function of `corrigenda.lm.decoding` asks the active ones. A *prompt rewriter* returns what to
ask instead, and of which model; an *answerer* returns the answer. While one of them works,
interception is off, so that it may ask the model itself as often as it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from corrigenda.lm.model import LanguageModel

Result = TypeVar("Result")


class RewrittenPrompt(NamedTuple):
    """Text that is asked in place of a prompt.

    Attributes:
        prompt: The text.
        lm: The model that is asked; None for the one that was to be asked.
    """

    prompt: str
    lm: LanguageModel | None = None


@runtime_checkable
class PromptRewriter(Protocol):
    """Changes what goes into the model."""

    def rewrite(self, lm: LanguageModel, prompts: Sequence[str]) -> list[RewrittenPrompt]:
        """Return what to ask for each prompt; the prompt itself where it is out of scope."""
        ...


@runtime_checkable
class Answerer(Protocol):
    """Changes the procedure that answers."""

    def answers(self, lm: LanguageModel, prompts: Sequence[str]) -> list[str | None]:
        """Return the answer to each prompt; None where it is out of scope."""
        ...


def rewrite_prompts(lm: LanguageModel, prompts: Sequence[str]) -> list[RewrittenPrompt]:
    """Return what is asked for each prompt after all active rewriters, in order.

    A prompt that one of them hands to another model is not rewritten further.
    """
    rewritten = [RewrittenPrompt(prompt) for prompt in prompts]
    for rewriter in lm.interceptors.of_kind(PromptRewriter):
        own = [index for index, one in enumerate(rewritten) if one.lm is None]
        if not own:
            break
        with lm.interceptors.suspend():
            new = rewriter.rewrite(lm, [rewritten[index].prompt for index in own])
        for index, one in zip(own, new, strict=True):
            rewritten[index] = one
    return rewritten


def answer_directly(lm: LanguageModel, prompts: Sequence[str]) -> list[str | None]:
    """Return the answers of active answerers; of several the one applied last decides."""
    found: list[str | None] = [None] * len(prompts)
    for answerer in reversed(lm.interceptors.of_kind(Answerer)):
        left = [index for index, one in enumerate(found) if one is None]
        if not left:
            break
        with lm.interceptors.suspend():
            new = answerer.answers(lm, [prompts[index] for index in left])
        for index, one in zip(left, new, strict=True):
            found[index] = one
    return found


def ask_rewritten(
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
    rewritten = rewrite_prompts(lm, prompts)
    # What is asked unchanged is no batch with what was rewritten: it is out of scope, and its
    # answer must not depend, not even by rounding, on what is in scope.
    groups: dict[tuple[int, bool], list[int]] = {}
    for index, (one, prompt) in enumerate(zip(rewritten, prompts, strict=True)):
        model = 0 if one.lm is None else id(one.lm)
        groups.setdefault((model, one.prompt != prompt), []).append(index)
    results: dict[int, Result] = {}
    for places in groups.values():
        model = rewritten[places[0]].lm or lm
        texts = [rewritten[index].prompt for index in places]
        results |= dict(zip(places, ask(model, places, texts), strict=True))
    return [results[index] for index in range(len(prompts))]
