"""Positions of subject, prompt and target, over tokenizers of both kinds."""

from __future__ import annotations

import copy
import unicodedata
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from corrigenda.errors import EmptyTarget, PromptTooLong, SlowTokenizer, SubjectNotFound
from corrigenda.facts import Fact, Span, find_subject
from corrigenda.lm.spans import encode, encode_fact
from corrigenda.testing.tokenizers import byte_level_bpe, sentencepiece_like

GRINNING = "\U0001f600"
SCIENTIST = "\U0001f469\u200d\U0001f52c"
ACCENT = "\u0301"
TOKYO = "\u6771\u4eac"


@cache
def llama_2_file() -> PreTrainedTokenizerFast:
    """The older form of Llama-2 files: the blank in front comes from the normaliser."""
    backend = Tokenizer.from_str(sentencepiece_like().backend_tokenizer.to_str())
    blank = "\u2581"
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(blank), normalizers.Replace(" ", blank)]
    )
    backend.pre_tokenizer = None
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@cache
def composing() -> PreTrainedTokenizerFast:
    """Byte-level BPE behind NFC, as Qwen: characters are merged before they are tokens."""
    backend = Tokenizer.from_str(byte_level_bpe().backend_tokenizer.to_str())
    backend.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


TOKENIZERS = {
    "bpe": byte_level_bpe,
    "bpe-bos": lambda: byte_level_bpe(bos=True),
    "sentencepiece": sentencepiece_like,
    "sentencepiece-no-bos": lambda: sentencepiece_like(bos=False),
    "llama-2-file": llama_2_file,
    "composing": composing,
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return TOKENIZERS[request.param]()


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text).input_ids


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def covered(tokenizer: PreTrainedTokenizerBase, text: str, position: int) -> str:
    """Characters that a token covers, read independently of the code under test."""
    start, end = tokenizer(text, return_offsets_mapping=True).offset_mapping[position]
    return text[start:end]


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The Space Needle is in", "Space Needle"),
        ("Space Needle is in", "Space Needle"),
        ("In the city of Seattle", "Seattle"),
        ("{} {0} is {name} in", "{name}"),
        (f"The {SCIENTIST} works in", SCIENTIST),
        (f"The {GRINNING}{GRINNING} tower is in", f"{GRINNING}{GRINNING}"),
        (f"Rene{ACCENT} was born in", f"Rene{ACCENT}"),
        (f"{TOKYO} is in", TOKYO),
        ("The Space Needle's tower is in", "Space Needle"),
        ("He said (Rome), the capital of", "Rome"),
        ("100% of <|x|> \\n in", "<|x|>"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "Because of {this}. ", f"{SCIENTIST} says. "])
def test_subject_is_found_by_its_characters(
    tokenizer: PreTrainedTokenizerBase, prompt: str, subject: str, prefix: str
) -> None:
    encoded = encode(
        tokenizer, prompt, target="Seattle", subject=find_subject(prompt, subject), prefix=prefix
    )
    text = f"{prefix}{prompt} Seattle"
    assert encoded.text == text
    assert encoded.ids == plain_ids(tokenizer, text)
    assert encoded.subject_first is not None
    assert encoded.subject_last is not None
    start = len(prefix) + prompt.index(subject)
    end = start + len(subject)
    before, until = composed(text[:start]), composed(text[:end])
    first, last = encoded.subject_first, encoded.subject_last
    if start == 0:
        assert first == (encoded.ids[0] == tokenizer.bos_token_id)
    else:
        assert before.startswith(composed(decode(tokenizer, encoded.ids[:first])))
        assert not before.startswith(composed(decode(tokenizer, encoded.ids[: first + 1])))
    assert composed(decode(tokenizer, encoded.ids[: last + 1])).startswith(until)
    assert not composed(decode(tokenizer, encoded.ids[:last])).startswith(until)
    assert encoded.glued == (composed(decode(tokenizer, encoded.ids[: last + 1])) != until)


def test_every_token_of_a_character_counts(tokenizer: PreTrainedTokenizerBase) -> None:
    """An emoji is several byte tokens with equal offsets, of which the last is the last."""
    encoded = encode(tokenizer, f"a{GRINNING} is", subject=Span(1, 2))
    assert encoded.subject_first is not None
    assert encoded.subject_last == encoded.subject_first + 3
    assert not encoded.glued


def test_second_occurrence() -> None:
    tokenizer = byte_level_bpe()
    prompt = "Rome is Rome in"
    first = encode_fact(
        tokenizer, Fact(prompt=prompt, target="Italy", subject="Rome", subject_start=0)
    )
    second = encode_fact(
        tokenizer, Fact(prompt=prompt, target="Italy", subject="Rome", subject_start=8)
    )
    assert tokenizer.convert_ids_to_tokens([first.ids[first.subject_last or 0]]) == ["Rome"]
    assert first.subject_last == 0
    assert second.subject_last is not None
    assert covered(tokenizer, prompt, second.subject_last).endswith("e")
    assert second.subject_last >= 2
    assert first.ids == second.ids


def test_glued_subject_is_reported() -> None:
    tokenizer = byte_level_bpe()
    encoded = encode(tokenizer, "The capital is", subject=Span(4, 7))
    assert tokenizer.convert_ids_to_tokens([encoded.ids[encoded.subject_last or 0]]) == [
        "\u0120capital"
    ]
    assert encoded.glued
    assert not encode(tokenizer, "The capital is", subject=Span(4, 11)).glued


@pytest.mark.parametrize(
    ("name", "at_start"),
    [("bpe", True), ("bpe-bos", False), ("sentencepiece", False), ("sentencepiece-no-bos", True)],
)
def test_one_token_subject_at_the_start(name: str, at_start: bool) -> None:
    tokenizer = TOKENIZERS[name]()
    fact = Fact(prompt="Rome is in", target="Italy", subject="Rome")
    assert encode_fact(tokenizer, fact).subject_at_start == at_start
    assert not encode_fact(tokenizer, fact, prefix="The city. ").subject_at_start
    longer = Fact(prompt="Space Needle is in", target="Seattle", subject="Space Needle")
    assert not encode_fact(tokenizer, longer).subject_at_start
    assert not encode(tokenizer, "Rome is in").subject_at_start


@pytest.mark.parametrize("target", ["Seattle", "{}", f"{SCIENTIST} x", TOKYO, "new York", "1926."])
@pytest.mark.parametrize("prompt", ["The Space Needle is in", f"{TOKYO}", "In the year 19", "a {}"])
def test_target_is_what_follows_the_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str
) -> None:
    encoded = encode(tokenizer, prompt, target=target)
    assert list(encoded.labels) == list(range(encoded.prompt_last + 1, len(encoded.ids)))
    assert encoded.target_ids == tuple(encoded.ids[at] for at in encoded.labels)
    assert encoded.ids[: encoded.prompt_last + 1] == plain_ids(tokenizer, prompt)
    assert decode(tokenizer, encoded.ids) == f"{prompt} {target}"
    assert list(encoded.reads) == [at - 1 for at in encoded.labels]


def test_no_lone_blank_before_a_sentencepiece_target() -> None:
    """Tokenising " Seattle" alone would begin with BOS; the label window must not."""
    tokenizer = sentencepiece_like()
    encoded = encode(tokenizer, "The tower is in", target="Seattle")
    assert tokenizer.convert_ids_to_tokens(list(encoded.target_ids))[0] == "\u2581Se"


@pytest.mark.parametrize(("prompt", "target"), [("a is ", "b"), ("a is", " b"), ("a is ", " b")])
def test_separator_is_never_doubled(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str
) -> None:
    assert encode(tokenizer, prompt, target=target) == encode(tokenizer, "a is", target="b")
    assert encode(tokenizer, prompt) == encode(tokenizer, "a is")


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ("Every man comes from the Sea", "ttle"),
        ("It is the capi", "tal of France"),
        ("In 19", "25 and"),
        (TOKYO, TOKYO),
        ("Cafe", f"{ACCENT} is"),
        ("two ", " blanks"),
        ("line", "\n\nbreak"),
    ],
)
def test_token_across_the_end_of_the_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str
) -> None:
    """The prompt keeps the tokens it has when asked alone; the target is all of the labels."""
    encoded = encode(tokenizer, prompt, target=target, separator="", subject=Span(0, len(prompt)))
    alone = plain_ids(tokenizer, prompt)
    assert encoded.ids[: len(alone)] == alone
    assert encoded.prompt_last == len(alone) - 1
    assert encoded.subject_last == encoded.prompt_last
    assert not encoded.glued
    letter = tokenizer("a", add_special_tokens=False).input_ids
    assert decode(tokenizer, [*letter, *encoded.target_ids]) == f"a{target}"


def test_the_straddling_cases_straddle() -> None:
    """Guards the test above: without care, a token would cover both sides."""
    tokenizer = byte_level_bpe()
    joint = plain_ids(tokenizer, "It is the capital of France")
    assert joint[: len(plain_ids(tokenizer, "It is the capi"))] != plain_ids(
        tokenizer, "It is the capi"
    )


def test_empty_prompt_stands_for_bos() -> None:
    encoded = encode(byte_level_bpe(), "", target="Rome")
    assert encoded.ids[0] == byte_level_bpe().bos_token_id
    assert (encoded.prompt_last, encoded.labels.start) == (0, 1)
    with_bos = encode(sentencepiece_like(), "", target="Rome")
    assert with_bos.ids[0] == sentencepiece_like().bos_token_id
    assert with_bos.labels.start == 1
    with pytest.raises(EmptyTarget, match="CG102"):
        encode(composing(), "")


def test_an_appended_eos_is_left_out() -> None:
    backend = Tokenizer.from_str(byte_level_bpe().backend_tokenizer.to_str())
    end = "<|endoftext|>"
    backend.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, backend.token_to_id(end))]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end)
    assert plain_ids(tokenizer, "Rome")[-1] == tokenizer.eos_token_id
    ours = encode(tokenizer, "Rome is in", target="Italy")
    assert ours == encode(byte_level_bpe(), "Rome is in", target="Italy")


def test_dropping_the_last_target_token(tokenizer: PreTrainedTokenizerBase) -> None:
    fact = Fact(prompt="The tower is in", target="Seattle, Washington", subject="tower")
    full = encode_fact(tokenizer, fact)
    short = encode_fact(tokenizer, fact, drop_last_target=True)
    assert short.ids == full.ids[:-1]
    assert short.target_ids == full.target_ids
    assert short.reads == full.reads
    assert short.reads[-1] == len(short.ids) - 1


def test_separator_of_a_fact() -> None:
    fact = Fact(prompt=TOKYO, target=TOKYO, separator="")
    assert encode_fact(byte_level_bpe(), fact).text == TOKYO * 2


def test_left_padding_shift() -> None:
    encoded = encode(byte_level_bpe(), "Rome is in", subject=Span(0, 4), prefix="The. ")
    row = [0] * encoded.shift(40) + encoded.ids
    assert len(row) == 40
    assert row[encoded.shift(40) + encoded.prompt_last] == encoded.ids[-1]


@pytest.mark.parametrize("span", [Span(0, 99), Span(3, 3), Span(-1, 2), Span(5, 3), Span(9, 11)])
def test_subject_outside_the_prompt(span: Span) -> None:
    with pytest.raises(SubjectNotFound, match="CG103"):
        encode(byte_level_bpe(), "Rome is in ", subject=span)


def test_too_long_names_the_text_and_the_limit() -> None:
    tokenizer = byte_level_bpe()
    size = len(plain_ids(tokenizer, "Rome is in Italy"))
    assert encode(tokenizer, "Rome is in", target="Italy", max_length=size).labels
    with pytest.raises(
        PromptTooLong, match=rf'CG105.*"Rome is in Italy" has {size} tokens.*{size - 1}'
    ):
        encode(tokenizer, "Rome is in", target="Italy", max_length=size - 1)
    fact = Fact(prompt="Rome is in", target="Italy", name="facts.jsonl:3")
    with pytest.raises(PromptTooLong, match=r"facts\.jsonl:3"):
        encode_fact(tokenizer, fact, max_length=2)


def test_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(SlowTokenizer, match="CG305"):
        encode(Slow(), "Rome")  # type: ignore[arg-type]  # what is refused


def test_settings_of_the_tokenizer_do_not_matter() -> None:
    tokenizer = copy.deepcopy(byte_level_bpe())
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    tokenizer.truncation_side = "left"
    tokenizer(["a", "Rome is in Italy"], padding=True, truncation=True, max_length=3)
    assert encode(tokenizer, "Rome is in", target="Italy") == encode(
        byte_level_bpe(), "Rome is in", target="Italy"
    )


text = st.text(alphabet=f"ab {{}}.'19\n{GRINNING}\u200d{ACCENT}{TOKYO}eR", min_size=1, max_size=8)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["bpe", "bpe-bos", "sentencepiece", "llama-2-file"]),
    parts=st.tuples(text, text, text, text),
    separator=st.sampled_from([" ", ""]),
)
def test_any_text(name: str, parts: tuple[str, str, str, str], separator: str) -> None:
    """The prompt's ids are those of the prompt alone, and the labels decode to what was added."""
    tokenizer = TOKENIZERS[name]()
    prefix, subject, rest, target = parts
    prompt = f"{subject}{rest}."
    encoded = encode(
        tokenizer,
        prompt,
        target=target,
        subject=Span(0, len(subject)),
        prefix=f"x{prefix}",
        separator=separator,
    )
    alone = encode(
        tokenizer, prompt, subject=Span(0, len(subject)), prefix=f"x{prefix}", separator=separator
    )
    assert encoded.ids[: encoded.prompt_last + 1] == plain_ids(tokenizer, f"x{prefix}{prompt}")
    assert encoded.ids[: encoded.prompt_last + 1] == alone.ids
    assert (encoded.subject_first, encoded.subject_last) == (
        alone.subject_first,
        alone.subject_last,
    )
    letter = tokenizer("a", add_special_tokens=False).input_ids
    added = separator + target.removeprefix(separator)
    assert decode(tokenizer, [*letter, *encoded.target_ids]) == f"a{added}"


def test_a_tokenizer_with_a_model_of_its_own_is_no_language_model() -> None:
    tokenizer = byte_level_bpe()
    expected = encode(tokenizer, "Rome is in", target="Italy")
    tokenizer.model = type("Splitting", (), {})
    try:
        assert encode(tokenizer, "Rome is in", target="Italy") == expected
    finally:
        del tokenizer.model
