"""Sampled text: a continuation of each prompt, or text of a fixed length for fluency."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.lm.decoding import continue_or_answer, encode_prompts
from corrigenda.lm.kv_cache import Continuation, continue_rows
from corrigenda.lm.model import LanguageModel


def sample(
    lm: LanguageModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    top_k: int,
    seed: int,
    batch_tokens: int | None = None,
) -> list[str]:
    """Continue each prompt at random among the `top_k` most likely tokens, by their probability.

    Every row draws from its own generator, seeded by `seed`, the prompt, and how often that prompt
    came before. So a row gives the same text in any batch and any order, and equal prompts give
    different texts.

    Args:
        lm: The model.
        prompts: Texts to continue; an empty one means the BOS token.
        max_new_tokens: Longest continuation; it ends earlier at an end-of-sequence token or a full
            context.
        top_k: Number of tokens to draw among; 1 is greedy.
        seed: Any integer.
        batch_tokens: Most tokens in one batch, padding and continuation included; None takes what
            suits the device.

    Returns:
        What is added to each prompt, decoded and otherwise untouched.

    Raises:
        PromptTooLong (CG105): a prompt exceeds the context.
    """

    def ask(lm: LanguageModel, _: list[int], prompts: list[str]) -> list[Continuation]:
        ids = encode_prompts(lm, prompts, chat=False)
        return sample_rows(lm, prompts, ids, [max_new_tokens] * len(ids), top_k, seed, batch_tokens)

    return [one.text for one in continue_or_answer(lm, prompts, ask)]


def sample_rows(
    lm: LanguageModel,
    prompts: Sequence[str],
    ids: Sequence[list[int]],
    max_new_tokens: Sequence[int],
    top_k: int,
    seed: int,
    batch_tokens: int | None,
    *,
    stops: bool = True,
) -> list[Continuation]:
    """Continue token rows at random; each prompt draws from a generator of its own.

    Args:
        lm: The model.
        prompts: Texts of the rows; equal ones draw differently.
        ids: Token ids of the rows.
        max_new_tokens: Longest continuation of each row.
        top_k: Each token is drawn among so many of the likeliest ones.
        seed: Seed of all draws.
        batch_tokens: Most tokens in one batch.
        stops: Whether a row ends with an end token.
    """
    seen: dict[str, int] = {}
    generators: list[random.Random] = []
    for prompt in prompts:
        seen[prompt] = seen.get(prompt, 0) + 1
        generators.append(row_generator(seed, seen[prompt], prompt))

    def choose(logits: Float[Tensor, "batch vocab"], rows: Sequence[int]) -> list[int]:
        top = logits.double().topk(min(top_k, logits.shape[1]), dim=1)
        share = top.values.softmax(1).cumsum(1)
        draws = [[generators[row].random()] for row in rows]
        drawn = torch.tensor(draws, dtype=torch.float64, device=logits.device)
        place = torch.searchsorted(share, drawn, right=True).clamp(max=share.shape[1] - 1)
        return top.indices.gather(1, place).squeeze(1).tolist()

    return continue_rows(
        lm,
        ids,
        max_new_tokens=max_new_tokens,
        choose=choose,
        finished=lambda _, __: False,
        batch_tokens=batch_tokens,
        stops=stops,
    )


def row_generator(seed: int, number: int, prompt: str) -> random.Random:
    """Return the generator that a row draws from, in any batch.

    Args:
        seed: Seed of all draws.
        number: Which of the rows with this prompt it is, from 1.
        prompt: Text of the row.
    """
    digest = hashlib.blake2b(f"{seed}\0{number}\0{prompt}".encode(), digest_size=16)
    return random.Random(digest.digest())


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

    def ask(lm: LanguageModel, _: list[int], prompts: list[str]) -> list[Continuation]:
        ids = encode_prompts(lm, prompts, chat=False)
        room = [max(0, length - len(one)) for one in ids]
        return sample_rows(lm, prompts, ids, room, top_k, seed, batch_tokens, stops=False)

    return continue_or_answer(lm, prompts, ask)
