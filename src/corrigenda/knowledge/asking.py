"""Questions with known answers: asked greedily, each only until its answer is certain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from corrigenda.lm.chat import word_turn
from corrigenda.lm.decoding import answer, continuations
from corrigenda.lm.model import LanguageModel
from corrigenda.short_answers import begins, states

_NEW_TOKENS = 12
_CHAT_TOKENS = 24


def ask_right(
    lm: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[Sequence[str]],
    *,
    chat: bool = False,
) -> list[bool]:
    """Ask prompts, and tell which are answered right.

    An answer is right where the greedy continuation begins with an accepted text, as whole words;
    in a chat template, where its first sentence states one.

    Args:
        lm: The model, with the patches that are active.
        prompts: Texts to continue.
        answers: Accepted texts of each.
        chat: Put each prompt into the model's chat template.
    """
    if chat:
        said = ask_in_chat(lm, prompts)
        return [states(text, names) for text, names in zip(said, answers, strict=True)]
    found = continuations(
        lm,
        prompts,
        max_new_tokens=_NEW_TOKENS,
        finished=lambda row, text: _is_decided(text.lstrip(), answers[row]),
    )
    return [
        any(begins(one.text.lstrip(), name) for name in accepted)
        for one, accepted in zip(found, answers, strict=True)
    ]


def ask_in_chat(lm: LanguageModel, prompts: Sequence[str]) -> list[str]:
    """Return the answers to prompts as turns of a user; a statement is a blank to fill in."""
    turns = [word_turn(prompt).write(prompt) for prompt in prompts]
    return answer(lm, turns, max_new_tokens=_CHAT_TOKENS, chat=True)


def _is_decided(text: str, answers: Iterable[str]) -> bool:
    """Tell whether it is certain that a text, however it goes on, is right or wrong."""
    return not any(one.startswith(text) for one in answers)
