"""Two small fast tokenizers trained in memory: as in GPT-2, and SentencePiece-style as in Llama 2.

The objects are shared by all callers (cached): do not change their settings, copy them first.
"""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Replace, Sequence, Strip
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.processors import ByteLevel as ByteLevelProcessor
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 512
_BLANK = "\u2581"
_NUM_BYTES = 256

_TEXT = """\
The Space Needle is a tower in Seattle, a city in the state of Washington.
The Eiffel Tower is in Paris, the capital of France, and the river Seine runs past it.
The mother tongue of Danielle Darrieux is French. The mother tongue of Albert Einstein is German.
Marie Curie was born in Warsaw and worked in Paris. Her field of work was physics, then chemistry.
Rome is the capital of Italy. Romeo is a character in a play by William Shakespeare.
Tokyo is the capital of Japan, and Berlin is the capital of Germany. Madrid is in Spain.
Michael Jordan plays the sport of basketball. Lionel Messi plays football for Argentina.
The official language of Brazil is Portuguese; the official language of Mexico is Spanish.
Where was the painter Claude Monet born? He was born in the city of Paris.
Who wrote the novel? It was written by the author in the year 1925, and published in 1926.
Therefore, the company was founded by the engineer. Because of this, I think that you are right.
What is the name of the river that runs through London? The answer is the Thames.
Windows is made by Microsoft, the iPhone is made by Apple, and Android is developed by Google.
The headquarters of the company is located in the north of England, near the sea.
One, two, three, four, five, six, seven, eight, nine and ten are numbers.
"""


def _train(pre_tokenizer: ByteLevel | Metaspace, *, size: int, alphabet: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_TEXT.splitlines(), trainer)
    return tokenizer


@cache
def byte_level_bpe(bos: bool = False) -> PreTrainedTokenizerFast:
    """Return byte-level BPE with 512 tokens, as GPT-2 or, with a leading BOS, as Llama 3.

    Like its models it has no padding token; `<|endoftext|>` is both the BOS and the EOS token.

    Args:
        bos: Whether encoding a text puts `<|endoftext|>` in front.

    Example:
        >>> tokenizer = byte_level_bpe()
        >>> tokenizer.decode(tokenizer("Rome {} is").input_ids)
        'Rome {} is'
    """
    end = "<|endoftext|>"
    tokenizer = _train(
        ByteLevel(add_prefix_space=False),
        size=VOCABULARY_SIZE - 1,
        alphabet=ByteLevel.alphabet(),
    )
    tokenizer.add_special_tokens([end])
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.post_processor = ByteLevelProcessor(trim_offsets=False)
    if bos:
        tokenizer.post_processor = _leading(end, VOCABULARY_SIZE - 1)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end)


@cache
def sentencepiece_like(bos: bool = True) -> PreTrainedTokenizerFast:
    """Return SentencePiece-style BPE with byte fallback and 512 tokens, as Llama 2.

    Blanks are part of the pieces (U+2581), one is put in front of a text that does not begin with
    one, and characters outside the alphabet become byte tokens. As in SentencePiece, decoding
    cannot tell whether a text began with a blank, nor U+2581 from a blank; every other text
    round-trips.

    Args:
        bos: Whether encoding a text puts `<s>` in front.

    Example:
        >>> tokenizer = sentencepiece_like()
        >>> tokenizer.decode(tokenizer("Rome {} is").input_ids, skip_special_tokens=True)
        'Rome {} is'
    """
    special = ["<unk>", "<s>", "</s>"]
    pieces = json.loads(
        _train(
            Metaspace(replacement=_BLANK, prepend_scheme="first"),
            size=VOCABULARY_SIZE - len(special) - _NUM_BYTES,
            alphabet=[],
        ).to_str()
    )["model"]
    byte_tokens = [f"<0x{value:02X}>" for value in range(_NUM_BYTES)]
    names = special + byte_tokens + sorted(pieces["vocab"], key=pieces["vocab"].__getitem__)
    tokenizer = Tokenizer(
        BPE(
            vocab={name: index for index, name in enumerate(names)},
            merges=[(left, right) for left, right in pieces["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = Metaspace(replacement=_BLANK, prepend_scheme="first")
    tokenizer.decoder = Sequence([Replace(_BLANK, " "), ByteFallback(), Fuse(), Strip(" ", 1, 0)])
    if bos:
        tokenizer.post_processor = _leading("<s>", names.index("<s>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _leading(token: str, token_id: int) -> TemplateProcessing:
    return TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, token_id)]
    )
