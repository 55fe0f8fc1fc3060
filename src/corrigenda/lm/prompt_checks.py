"""Checks of prompts and seeds before a model is asked."""

from __future__ import annotations

from collections.abc import Sequence

from corrigenda.errors import BadConfig
from corrigenda.lm.model import LanguageModel
from corrigenda.text_files import UnreadableText, check_text


def check_prompts(prompts: Sequence[object]) -> list[str]:
    """Return prompts as a list of texts.

    Raises:
        BadConfig (CG502): one is no text, or holds what is no character.
    """
    texts: list[str] = []
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise BadConfig(
                f"a prompt is text, not {prompt!r}.", hint="Give one text, or a list of texts."
            )
        try:
            texts.append(check_text(prompt))
        except UnreadableText as error:
            raise BadConfig(f"a prompt: {error}.", hint="Give the text in UTF-8.") from error
    return texts


def check_seed(seed: int) -> None:
    """Refuse a seed that a generator of torch cannot take.

    Raises:
        BadConfig (CG502): it is negative, or needs more than 63 bits.
    """
    if not 0 <= seed < 1 << 63:
        raise BadConfig("the seed is out of range.", hint="Give 0 to 2^63 - 1.")


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
