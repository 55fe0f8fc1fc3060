"""Checks of prompts and seeds before a model is asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from corrigenda.errors import BadConfig, EmptyTarget
from corrigenda.lm.model import LanguageModel
from corrigenda.text_files import UnreadableText, check_text


def check_prompts(prompts: object) -> list[str]:
    """Return prompts as a list of texts; one text is one prompt.

    Raises:
        BadConfig (CG502): one is no text, or holds what is no character.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        prompts = (prompts,)
    texts: list[str] = []
    for prompt in cast("Iterable[object]", prompts):
        if not isinstance(prompt, str):
            raise BadConfig(
                f"a prompt is text, not an object of type {type(prompt).__name__}.",
                hint="Give one text, or a list of texts.",
            )
        try:
            texts.append(check_text(prompt))
        except UnreadableText as error:
            raise BadConfig(f"a prompt: {error}.", hint="Give the text in UTF-8.") from error
    return texts


def check_answer(answer: str | None) -> None:
    """Refuse an empty answer; None is the model's own.

    Raises:
        EmptyTarget (CG102): it is empty.
    """
    if answer is not None and not answer.strip():
        raise EmptyTarget("the answer is empty.", hint="Leave it out for the model's own answer.")


def check_seed(seed: int) -> None:
    """Refuse a seed that a generator of torch cannot take.

    Raises:
        BadConfig (CG502): it is below -2^63, or above 2^64 - 1.
    """
    if not -(1 << 63) <= seed < 1 << 64:
        raise BadConfig("the seed is out of range.", hint="Give a number from -2^63 to 2^64 - 1.")


def find_typed_bos(lm: LanguageModel, prompts: Sequence[str]) -> list[str]:
    """Return a notice for each prompt that begins with the BOS that its tokenizer adds as well."""
    bos = getattr(lm.tokenizer, "bos_token", None)
    if not isinstance(bos, str) or not bos:
        return []
    return [
        f'the prompt "{prompt[:60]}" begins with {bos}, which the tokenizer of {lm.name} adds'
        " itself, so that the model reads it twice; leave it out."
        for prompt in prompts
        if prompt.startswith(bos) and _is_doubled(lm, prompt)
    ]


def _is_doubled(lm: LanguageModel, prompt: str) -> bool:
    ids: list[int] = lm.tokenizer(prompt, verbose=False).input_ids[:2]
    return ids == [lm.tokenizer.bos_token_id] * 2
