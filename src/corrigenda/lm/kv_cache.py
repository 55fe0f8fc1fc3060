"""Continuation of many token rows at once, with a cache of keys and values and left padding."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Tokens

# Padding may cost this share of a batch, or as much as one more pass over the weights would.
_PADDING_SHARE = 0.25
_PADDING_TOKENS = 64
# Larger batches fall out of a CPU's caches; on a GPU the cache of keys and values sets the bound.
_CPU_TOKENS = 1024
_GPU_TOKENS = 8192

# Next token of each row, from its logits and its index among all rows.
Choose = Callable[[Float[Tensor, "batch vocab"], Sequence[int]], list[int]]
# Whether a row, by its index, has ended with the text added so far.
Finished = Callable[[int, str], bool]


class Continuation(NamedTuple):
    """Text that was added to a prompt.

    Attributes:
        text: The text, usually with a leading space.
        ids: Its tokens; None where an edit answered in the model's place.
    """

    text: str
    ids: tuple[int, ...] | None


def batches(
    lm: LanguageModel, lengths: Sequence[int], batch_tokens: int | None
) -> Iterator[list[int]]:
    """Yield indices in batches of nearly equal length, longest rows first.

    Args:
        lm: The model, for its device.
        lengths: Tokens in each row.
        batch_tokens: Most tokens in a batch, padding included; a longer row is a batch of its own.
            None takes what suits the device.
    """
    budget = token_budget(lm, batch_tokens)
    batch: list[int] = []
    width = tokens = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        padding = width * (len(batch) + 1) - tokens - lengths[index]
        allowed = max(_PADDING_TOKENS, _PADDING_SHARE * (tokens + lengths[index]))
        if batch and (width * (len(batch) + 1) > budget or padding > allowed):
            yield batch
            batch, tokens = [], 0
        if not batch:
            width = lengths[index]
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch


def token_budget(lm: LanguageModel, batch_tokens: int | None = None) -> int:
    """Return the most tokens in a batch: as asked for, else what suits the device."""
    return batch_tokens or (_CPU_TOKENS if lm.device.type == "cpu" else _GPU_TOKENS)


def widen(logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
    """Return logits as float32, or as they are when they have more digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def pad_id(lm: LanguageModel) -> int:
    """Return the id to pad with; padding is always masked, so any id will do."""
    padding: int | None = getattr(lm.tokenizer, "pad_token_id", None)
    return padding or 0


def _end_ids(lm: LanguageModel) -> set[int]:
    config = getattr(lm.model, "generation_config", None)
    ends: int | list[int] | None = getattr(config, "eos_token_id", None)
    own: int | None = getattr(lm.tokenizer, "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [ends]
    return {end for end in [*listed, own] if end is not None}


class Decoder:
    """Decodes the text that new tokens add after a prompt.

    SentencePiece-style decoders drop the space in front of a text, so a letter is put before a
    continuation.
    """

    def __init__(self, lm: LanguageModel) -> None:
        """Decode for one model."""
        self.tokenizer = lm.tokenizer
        self.letter: list[int] = lm.tokenizer("a", add_special_tokens=False).input_ids
        self.special = frozenset(lm.tokenizer.all_special_ids)

    def __call__(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """Return the text of `new`; special tokens have none."""
        before = [] if self.special.issuperset(prompt) else self.letter
        text = str(
            self.tokenizer.decode(
                [*before, *new], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
        return text[1:] if before else text


def continue_rows(
    lm: LanguageModel,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int | Sequence[int],
    choose: Choose,
    finished: Finished,
    batch_tokens: int | None,
    stops: bool = True,
) -> list[Continuation]:
    """Continue token rows until each has ended, and return what was added.

    A row ends before an end-of-sequence token of the model or tokenizer, and after
    `max_new_tokens`, a full context, or a text that is `finished`. It then leaves its batch.

    Args:
        lm: The model; runs in inference mode.
        prompts: Token ids, at least one per row.
        max_new_tokens: Most tokens added to a row; for all, or one number for each.
        choose: Picks the next tokens from the logits of the rows that still run, and their indices.
        finished: Whether a row, by its index, has ended with this added text.
        batch_tokens: Most tokens in one batch, padding and continuation included; None takes what
            suits the device.
        stops: Whether an end-of-sequence token ends a row; else it is a token as any other.
    """
    ends = _end_ids(lm) if stops else frozenset[int]()
    new: list[list[int]] = [[] for _ in prompts]
    decode = Decoder(lm)
    several = isinstance(max_new_tokens, Sequence)
    longest = list(max_new_tokens) if several else [max_new_tokens] * len(prompts)

    def ended(row: int) -> bool:
        full = len(prompts[row]) + len(new[row]) > lm.context_length
        if full or len(new[row]) >= longest[row]:
            return True
        return finished(row, decode(prompts[row], new[row]))

    running = [row for row in range(len(prompts)) if longest[row] > 0]
    for batch in batches(lm, [len(prompts[i]) + longest[i] for i in running], batch_tokens):
        _continue(lm, prompts, [running[i] for i in batch], choose, ended, ends, new)
    return [
        Continuation(decode(prompt, added), tuple(added))
        for prompt, added in zip(prompts, new, strict=True)
    ]


@torch.inference_mode()
def _continue(
    lm: LanguageModel,
    prompts: Sequence[list[int]],
    batch: list[int],
    choose: Choose,
    ended: Callable[[int], bool],
    ends: Collection[int],
    new: list[list[int]],
) -> None:
    """Run one batch to its end, all rows ending at the same column; writes into `new`."""
    tokens = Tokens.pad([prompts[i] for i in batch], pad_id(lm), side="left").to(lm.device)
    ids, mask, positions = tokens.ids, tokens.mask.long(), tokens.position_ids
    cache = None
    while batch:
        output = lm.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        chosen = choose(widen(output.logits[:, -1]), batch)
        running: list[int] = []
        for place, (index, token) in enumerate(zip(batch, chosen, strict=True)):
            if token in ends:
                continue
            new[index].append(token)
            if not ended(index):
                running.append(place)
        if len(running) < len(batch):
            keep = torch.tensor(running, dtype=torch.long, device=mask.device)
            if running:
                cache.batch_select_indices(keep)
                lm.prompt_ends.select(keep)
            mask, positions = mask[keep], positions[keep]
            batch = [batch[place] for place in running]
            chosen = [chosen[place] for place in running]
        ids = torch.tensor(chosen, dtype=torch.long, device=mask.device)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions[:, -1:] + 1
