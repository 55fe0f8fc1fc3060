"""Sampled text of a fixed length, as published programs measure fluency on."""

from __future__ import annotations

from collections.abc import Sequence

from corrigenda.lm.decoding import _answered, _prompt_ids, _sample
from corrigenda.lm.kv_cache import Continuation
from corrigenda.lm.model import LanguageModel


def sample_to_length(
    lm: LanguageModel,
    prompts: Sequence[str],
    *,
    length: int,
    top_k: int,
    seed: int,
    batch_tokens: int | None = None,
) -> list[Continuation]:
    """Continue each prompt at random to a number of tokens, prompt included, beyond end tokens.

    Args:
        lm: The model.
        prompts: Texts to continue; one that is as long already is not continued.
        length: Tokens of prompt and continuation together.
        top_k: As for `sample`.
        seed: As for `sample`.
        batch_tokens: As for `sample`.

    Raises:
        PromptTooLong (CG105): a prompt exceeds the context.
    """

    def plainly(lm: LanguageModel, _: list[int], prompts: list[str]) -> list[Continuation]:
        ids = _prompt_ids(lm, prompts, chat=False)
        room = [max(0, length - len(one)) for one in ids]
        return _sample(lm, prompts, ids, room, top_k, seed, batch_tokens, stops=False)

    return _answered(lm, prompts, plainly)
