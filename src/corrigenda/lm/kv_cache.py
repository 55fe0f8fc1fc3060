"""Continuation of many token rows at once, with a cache of keys and values and left padding."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from corrigenda.lm.cache_columns import append_rows, is_resizable, resize, select_rows
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.prompt_ends import PromptDecisions
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


def end_ids(lm: LanguageModel) -> set[int]:
    """Return the end-of-sequence tokens of a model and its tokenizer."""
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
    ends = end_ids(lm) if stops else frozenset[int]()
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


def _continue(
    lm: LanguageModel,
    prompts: Sequence[list[int]],
    batch: list[int],
    choose: Choose,
    ended: Callable[[int], bool],
    ends: Collection[int],
    new: list[list[int]],
) -> None:
    """Run one batch to its end; writes into `new`."""
    running = RunningRows(lm, [prompts[i] for i in batch])
    while batch:
        chosen = choose(running.logits(), batch)
        left: list[int] = []
        for place, (index, token) in enumerate(zip(batch, chosen, strict=True)):
            if token in ends:
                continue
            new[index].append(token)
            if not ended(index):
                left.append(place)
        running.advance(chosen, left)
        batch = [batch[place] for place in left]


class RunningRows:
    """Rows of one batch that are continued together, a token each in every pass.

    They are padded on the left, so that all end at the same column. Other batches may run between
    two passes: what patches have decided about the prompts of this one is kept with it.
    """

    def __init__(self, lm: LanguageModel, prompts: Sequence[list[int]]) -> None:
        """Begin with the token ids of the prompts, at least one row."""
        tokens = Tokens.pad(prompts, pad_id(lm), side="left").to(lm.device)
        self._lm = lm
        self._ids, self._mask = tokens.ids, tokens.mask.long()
        self._ends = self._ids.new_full((len(prompts),), self._ids.shape[1] - 1)
        self._num_read = 0
        self._cache: Any = None
        self._decisions: PromptDecisions | None = None

    @torch.inference_mode()
    def logits(self) -> Float[Tensor, "batch vocab"]:
        """Read what was not read yet; return the logits of the next token of each row."""
        lm = self._lm
        positions = (self._mask.cumsum(1) - 1).clamp_min(0)
        marked = nullcontext()
        if self._decisions is not None:
            lm.prompt_ends.resume(self._decisions)
        elif self._num_read == 0:
            marked = lm.prompt_ends.mark(self._ends)
        with marked:
            output = lm.model(
                input_ids=self._ids[:, self._num_read :],
                attention_mask=self._mask,
                position_ids=positions[:, self._num_read :],
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._cache, self._num_read = output.past_key_values, self._ids.shape[1]
        return widen(output.logits[:, -1])

    @torch.inference_mode()
    def advance(self, tokens: Sequence[int], places: Sequence[int]) -> None:
        """Continue the rows at some places; the others leave the batch.

        Args:
            tokens: Next token of each row that `logits` returned.
            places: Which of these rows continue, in order.
        """
        if not places:
            return
        if len(places) < len(self._ids):
            keep = torch.tensor(places, dtype=torch.long, device=self._ids.device)
            select_rows(self._cache, keep)
            self._lm.prompt_ends.select(keep)
            self._ids, self._mask, self._ends = (
                rows[keep] for rows in (self._ids, self._mask, self._ends)
            )
        added = self._ids.new_tensor([tokens[place] for place in places])[:, None]
        self._ids = torch.cat([self._ids, added], dim=1)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(added), 1)], dim=1)
        self._decisions = self._lm.prompt_ends.hold()

    def read_again(self) -> None:
        """Let the next pass read prompts and what was added anew, as patches were applied anew."""
        self._cache = self._decisions = None
        self._num_read = 0

    @property
    def width(self) -> int:
        """Number of columns, padding included."""
        return self._ids.shape[1]

    @torch.inference_mode()
    def join(self, other: RunningRows) -> bool:
        """Append the rows of another batch of the same model, if their caches allow it.

        Both have read all but the tokens that were added last. Columns that are padding in every
        row are dropped.

        Returns:
            Whether it was done; if not, nothing has changed.
        """
        owners = [set(one._decisions.decided) if one._decisions else None for one in (self, other)]
        if owners[0] is None or owners[0] != owners[1]:
            return False
        if not (is_resizable(self._cache) and is_resizable(other._cache)):
            return False
        width = max(one._num_tokens() for one in (self, other))
        for one in (self, other):
            one._resize(width)
        append_rows(self._cache, other._cache)
        self._ids, self._mask, self._ends = (
            torch.cat(pair)
            for pair in (
                (self._ids, other._ids),
                (self._mask, other._mask),
                (self._ends, other._ends),
            )
        )
        assert self._decisions is not None, "compared above"
        assert other._decisions is not None, "compared above"
        self._decisions = self._decisions.join(other._decisions)
        return True

    def _num_tokens(self) -> int:
        """Return the number of tokens in the longest row, without padding."""
        return int(self._mask.sum(1).max())

    def _resize(self, width: int) -> None:
        """Have a number of columns, which the longest row allows."""
        change = width - self.width
        self._ids, self._mask = (pad(rows, (change, 0)) for rows in (self._ids, self._mask))
        self._ends = self._ends + change
        self._num_read += change
        resize(self._cache, self._num_read)
