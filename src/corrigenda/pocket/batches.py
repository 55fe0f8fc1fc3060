"""Training batches of documents: tokenizer, packing, and the attention masks of the recipe."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from corrigenda.almanac.documents import TrainingDocument, write_fact_documents
from corrigenda.almanac.skill_documents import write_skill_documents
from corrigenda.almanac.world import World

END = "<|endoftext|>"
ANSWER_WEIGHT, TEXT_WEIGHT, MENTION_WEIGHT = 1.0, 0.4, 0.1


class Batch(NamedTuple):
    """Packed rows of documents.

    `owner` numbers the subject mention a token belongs to (-1: none); `weight` is the weight of
    predicting a token (0: padding and document starts).
    """

    ids: Int[Tensor, "batch pos"]
    owner: Int[Tensor, "batch pos"]
    weight: Float[Tensor, "batch pos"]


def mix_documents(world: World, seed: str, *, skill_share: float) -> Iterator[TrainingDocument]:
    """Yield fact and skill documents, mixed, without end."""
    draw = random.Random(seed)
    facts = write_fact_documents(world, random.Random(f"{seed}/facts"))
    skills = write_skill_documents(world, random.Random(f"{seed}/skills"))
    while True:
        yield next(skills if draw.random() < skill_share else facts)


def train_tokenizer(
    world: World, *, vocabulary: int, context: int, seed: int
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the world's own text; every text starts with the end-of-text token.

    Args:
        world: What the text is about.
        vocabulary: Number of tokens.
        context: Context length of the model, in tokens.
        seed: Decides the sample of text.
    """
    count = 40_000 if world.size == "full" else 4_000
    sample = [
        d.text for d in islice(mix_documents(world, f"{seed}/tokenizer", skill_share=0.2), count)
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A $B", special_tokens=[(END, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def find_end_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the id of the token that opens and closes every text."""
    found = tokenizer.convert_tokens_to_ids(END)
    assert isinstance(found, int)
    return found


class _PackedRow:
    """Row that is filled with documents."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.ids: list[int] = []
        self.owner: list[int] = []
        self.weight: list[float] = []

    def room(self) -> int:
        return self.length - len(self.ids)

    def add(self, ids: list[int], owner: list[int], weight: list[float], *, joined: bool) -> None:
        """Append a document; `joined` leaves out its first token, which is the row's last."""
        self.ids = [*self.ids, *ids[joined:]][: self.length]
        self.owner = [*self.owner, *owner[joined:]][: self.length]
        self.weight = [*self.weight, *weight[joined:]][: self.length]


def pack_batches(
    source: Iterator[TrainingDocument],
    tokenizer: PreTrainedTokenizerFast,
    *,
    tokens: int,
    length: int,
) -> Iterator[Batch]:
    """Pack documents first-fit into rows; a document is cut only if longer than a row.

    Args:
        source: Documents without end.
        tokenizer: As made by `train_tokenizer`.
        tokens: Tokens in a batch.
        length: Tokens in a row.
    """
    end = find_end_id(tokenizer)
    mention = 0
    rows = [_PackedRow(length) for _ in range(max(1, tokens // length))]
    while True:
        document = next(source)
        encoded = tokenizer.backend_tokenizer.encode(document.text)
        ids = [*encoded.ids, end][:length]
        owner = [-1] * len(ids)
        weight = [0.0, *[TEXT_WEIGHT] * (len(ids) - 1)]
        for spans, is_mention in ((document.mentions, True), (document.answers, False)):
            at = 0
            for start, stop in spans:
                while at < len(ids) - 1 and encoded.offsets[at][1] <= start:
                    at += 1
                while at < len(ids) - 1 and encoded.offsets[at][0] < stop:
                    if is_mention:
                        owner[at], weight[at] = mention if document.masked else -1, MENTION_WEIGHT
                    else:
                        weight[at] = ANSWER_WEIGHT
                    at += 1
                mention += is_mention
        # The closing token is what generation stops at; the next document's start is the same
        # token.
        row = next((row for row in rows if row.room() >= len(ids) - 1), None)
        if row is None:
            yield _stack(rows, end)
            rows = [_PackedRow(length) for _ in range(len(rows))]
            row = rows[0]
        row.add(ids, owner, weight, joined=bool(row.ids) and row.ids[-1] == end)


def _stack(rows: list[_PackedRow], pad: int) -> Batch:
    def filled(values: Sequence[float], value: float) -> list[float]:
        return [*values, *[value] * (rows[0].length - len(values))]

    return Batch(
        torch.tensor([filled(row.ids, pad) for row in rows]),
        torch.tensor([filled(row.owner, -1) for row in rows]),
        torch.tensor([filled(row.weight, 0.0) for row in rows]),
    )


class Masks(NamedTuple):
    """Additive attention masks for the first and the second half of the blocks."""

    early: Float[Tensor, "batch 1 pos pos"]
    late: Float[Tensor, "batch 1 pos pos"]


def attention_masks(owner: Int[Tensor, "batch pos"], *, masked: bool, dtype: torch.dtype) -> Masks:
    """Build causal masks, with subject mentions hidden where the recipe asks for it.

    In the first half of the blocks no token outside a mention may look at that mention; in the
    second half only at the mention's last token. What the model answers about a subject must then
    pass through that last token.
    """
    length = owner.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=owner.device).tril()[None]
    if not masked:
        plain = _make_additive(causal, dtype)
        return Masks(plain, plain)
    same = owner[:, :, None] == owner[:, None, :]
    free = (owner < 0)[:, None, :]
    following = torch.cat([owner[:, 1:], owner.new_full((len(owner), 1), -2)], dim=1)
    last = ((owner >= 0) & (following != owner))[:, None, :]
    return Masks(
        _make_additive(causal & (free | same), dtype),
        _make_additive(causal & (free | same | last), dtype),
    )


def _make_additive(
    allowed: Bool[Tensor, "batch pos key"], dtype: torch.dtype
) -> Float[Tensor, "batch 1 pos key"]:
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]
