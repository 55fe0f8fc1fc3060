"""The tokenizers that tests of every family stand on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from corrigenda.testing.tokenizers import VOCABULARY_SIZE, byte_level_bpe, sentencepiece_like


@pytest.mark.parametrize("make", [byte_level_bpe, sentencepiece_like])
@pytest.mark.parametrize("bos", [False, True])
def test_size_and_bos(make: type, bos: bool) -> None:
    tokenizer = make(bos)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert len(tokenizer) == VOCABULARY_SIZE
    assert sorted(tokenizer.get_vocab().values()) == list(range(VOCABULARY_SIZE))
    assert (tokenizer("Rome").input_ids[0] == tokenizer.bos_token_id) == bos
    assert make(bos) is tokenizer


def test_words_of_the_text_are_few_tokens() -> None:
    for tokenizer in (byte_level_bpe(), sentencepiece_like(bos=False)):
        assert len(tokenizer("The capital of France is").input_ids) <= 8


def decode(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@given(st.text(max_size=12))
def test_byte_level_round_trip(text: str) -> None:
    for bos in (False, True):
        tokenizer = byte_level_bpe(bos)
        assert decode(tokenizer, tokenizer(text).input_ids) == text


@given(st.text(max_size=12))
def test_sentencepiece_round_trip(text: str) -> None:
    text = "x" + text.replace("\u2581", " ")
    tokenizer = sentencepiece_like()
    assert decode(tokenizer, tokenizer(text).input_ids) == text
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids
