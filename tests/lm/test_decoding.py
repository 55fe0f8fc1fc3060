"""Answers agree with the plain forward pass, whatever the batch, its order and its padding."""

from __future__ import annotations

import copy
import math
import random
from functools import cache

import pytest
import torch

from corrigenda.errors import BadConfig, EmptyTarget, PromptTooLong
from corrigenda.lm import decoding, kv_cache
from corrigenda.lm.decoding import answer, greedy, next_token_top, says, score
from corrigenda.lm.kv_cache import Continuation, batches
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sampling import sample, sample_to_length
from corrigenda.lm.sites import Tokens
from corrigenda.lm.spans import encode
from corrigenda.testing.tiny import FAMILIES, tiny_model

# Learned positions, learned positions with an offset, rotary, sliding window with capped logits.
SOME = ["gpt2", "opt", "llama", "gemma2"]
PROMPTS = [
    "Rome",
    "The capital of France is",
    "The mother tongue of Danielle Darrieux, who was born in Bordeaux, is",
    "A {} \U0001f600 in",
    "Who wrote the novel? It was written by the author in the year 1925, and published in",
    "The capital of France is",
    "Rome is",
]
TARGETS = ["Italy", "Paris", "French", "{x}", "1926 by Microsoft", "Berlin, Germany", "a city"]


@cache
def model(family: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    return tiny_model(family, dtype=dtype, seed=1)


@pytest.fixture(params=SOME)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return model(request.param)


def plain_logits(lm: LanguageModel, ids: list[int]) -> torch.Tensor:
    """Logits of one unpadded sequence, by the model's own forward pass."""
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids])).logits[0]


def plain_greedy(lm: LanguageModel, prompt: str | list[int], count: int) -> list[int]:
    """One token at a time, one prompt, no cache, no padding; stops at EOS."""
    ids = encode(lm, prompt).ids if isinstance(prompt, str) else prompt
    size = len(ids)
    while len(ids) < size + count:
        token = int(plain_logits(lm, ids)[-1].argmax())
        if token in {lm.tokenizer.eos_token_id, lm.model.config.eos_token_id}:
            break
        ids = [*ids, token]
    return ids[size:]


def decode(lm: LanguageModel, ids: list[int]) -> str:
    letter = lm.tokenizer("a", add_special_tokens=False).input_ids
    return lm.tokenizer.decode([*letter, *ids], skip_special_tokens=True)[1:]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_the_plain_forward_pass(family: str) -> None:
    lm = model(family)
    pairs = list(zip(PROMPTS, TARGETS, strict=True))
    for (prompt, target), one in zip(pairs, score(lm, pairs), strict=True):
        encoded = encode(lm, prompt, target=target)
        logits = plain_logits(lm, encoded.ids)[encoded.prompt_last : -1]
        log_probs = logits.log_softmax(-1)
        assert one.ids == encoded.target_ids
        wanted = [float(row[token]) for row, token in zip(log_probs, one.ids, strict=True)]
        assert one.log_probs == pytest.approx(wanted, abs=1e-4)
        assert one.argmax_ids == tuple(logits.argmax(-1).tolist())
        assert one.correct == [a == b for a, b in zip(one.ids, one.argmax_ids, strict=True)]
        assert one.total == pytest.approx(sum(wanted), abs=1e-4)
        assert one.mean == pytest.approx(sum(wanted) / len(wanted), abs=1e-4)


def test_scores_do_not_depend_on_batch_or_order(lm: LanguageModel) -> None:
    pairs = list(zip(PROMPTS, TARGETS, strict=True))
    alone = [score(lm, [pair])[0] for pair in pairs]
    order = random.Random(3).sample(range(len(pairs)), len(pairs))
    for batch_tokens in (1, 40, None):
        mixed = score(lm, [pairs[i] for i in order], batch_tokens=batch_tokens)
        for i, one in zip(order, mixed, strict=True):
            assert one.ids == alone[i].ids
            assert one.argmax_ids == alone[i].argmax_ids
            assert one.log_probs == pytest.approx(alone[i].log_probs, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_the_plain_loop(family: str) -> None:
    lm = model(family)
    texts = greedy(lm, PROMPTS, max_new_tokens=8, stop=())
    wanted = [plain_greedy(lm, prompt, 8) for prompt in PROMPTS]
    assert texts == [decode(lm, ids) for ids in wanted]
    assert len({tuple(ids) for ids in wanted}) > 3


def test_greedy_does_not_depend_on_batch_or_order(lm: LanguageModel) -> None:
    alone = [greedy(lm, [prompt], max_new_tokens=12)[0] for prompt in PROMPTS]
    order = random.Random(4).sample(range(len(PROMPTS)), len(PROMPTS))
    for batch_tokens in (60, None):
        mixed = greedy(
            lm, [PROMPTS[i] for i in order], max_new_tokens=12, batch_tokens=batch_tokens
        )
        assert mixed == [alone[i] for i in order]


def test_generation_pads_on_the_left_and_drops_finished_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards the tests above: rows of different length share a batch and end at different steps."""
    lm = model("llama")
    seen: list[tuple[int, int]] = []

    def spy(_: object, __: object, kwargs: dict[str, torch.Tensor]) -> None:
        seen.append((len(kwargs["input_ids"]), int((kwargs["attention_mask"] == 0).sum())))

    plain = {prompt: decode(lm, plain_greedy(lm, prompt, 8)) for prompt in PROMPTS[:3]}
    stop = plain[PROMPTS[0]][2]
    hook = lm.model.register_forward_pre_hook(spy, with_kwargs=True)
    try:
        texts = greedy(lm, PROMPTS[:3], max_new_tokens=8, stop=(stop,))
    finally:
        hook.remove()
    assert texts == [text.split(stop)[0] for text in plain.values()]
    assert seen[0][0] == 3
    assert seen[0][1] > 0
    assert seen[-1][0] < 3


def test_what_greedy_says_is_what_it_is_rated_to_say(lm: LanguageModel) -> None:
    """Continuations that tokenise back to themselves are said, and all their tokens are correct."""
    prompts = [f"{prompt} {number}" for prompt in PROMPTS for number in range(12)]
    held = 0
    for prompt, text in zip(prompts, greedy(lm, prompts, max_new_tokens=1), strict=True):
        pair = encode(lm, prompt, target=text)
        if text.startswith(" ") and list(pair.target_ids) == plain_greedy(lm, prompt, 1):
            held += 1
            assert says(lm, prompt, ["not this", text])
            assert score(lm, [(prompt, text)])[0].correct == [True]
            assert not says(lm, prompt, ["not this"])
    assert held
    assert not says(lm, "Rome", [])


def test_next_tokens(lm: LanguageModel) -> None:
    for prompt, best in zip(PROMPTS, next_token_top(lm, PROMPTS, 4), strict=True):
        shares = plain_logits(lm, encode(lm, prompt).ids)[-1].float().softmax(-1)
        top = shares.topk(4)
        assert [one.id for one in best] == top.indices.tolist()
        assert [one.probability for one in best] == pytest.approx(top.values.tolist(), abs=1e-4)
        assert [one.text for one in best] == [decode(lm, [one.id]) for one in best]
    assert len(next_token_top(lm, ["Rome"], 10_000)[0]) == shares.numel()


def test_samples_are_seeded_row_by_row(lm: LanguageModel) -> None:
    arguments = {"max_new_tokens": 6, "top_k": 5, "seed": 7}
    first = sample(lm, PROMPTS, **arguments)
    assert first == sample(lm, PROMPTS, **arguments, batch_tokens=1)
    assert first != sample(lm, PROMPTS, **{**arguments, "seed": 8})
    assert first[1] != first[5], "equal prompts draw apart"
    alone = [sample(lm, [prompt], **arguments)[0] for prompt in PROMPTS]
    assert [a for i, a in enumerate(alone) if i != 5] == [a for i, a in enumerate(first) if i != 5]
    assert sample(lm, PROMPTS, **{**arguments, "top_k": 1}) == greedy(
        lm, PROMPTS, max_new_tokens=6, stop=()
    )


def test_samples_follow_the_probabilities() -> None:
    lm = model("gpt2")
    prompts = ["Rome is"] * 400
    texts = sample(lm, prompts, max_new_tokens=1, top_k=3, seed=0)
    best = next_token_top(lm, prompts[:1], 3)[0]
    mass = sum(one.probability for one in best)
    assert set(texts) <= {one.text for one in best}
    for one in best:
        share = one.probability / mass
        spread = math.sqrt(share * (1 - share) / len(prompts))
        assert texts.count(one.text) / len(prompts) == pytest.approx(share, abs=4 * spread)


def test_samples_of_a_length_go_beyond_the_end(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the published programs sample: so many tokens with the prompt, whatever comes."""
    arguments = {"top_k": 5, "seed": 7}
    lengths = [len(encode(lm, prompt).ids) for prompt in PROMPTS]
    wanted = sorted(lengths)[len(lengths) // 2] + 1
    every = frozenset(range(lm.model.config.get_text_config().vocab_size))
    monkeypatch.setattr(kv_cache, "end_ids", lambda _: every)
    assert set(sample(lm, PROMPTS, max_new_tokens=6, **arguments)) == {""}
    found = sample_to_length(lm, PROMPTS, length=wanted, **arguments)
    assert [len(one.ids or ()) for one in found] == [max(0, wanted - one) for one in lengths]
    assert found == sample_to_length(lm, PROMPTS, length=wanted, **arguments, batch_tokens=1)
    assert min(lengths) < wanted < max(lengths)


def test_an_empty_prompt_starts_a_text() -> None:
    lm = model("llama")
    texts = sample(lm, [""] * 20, max_new_tokens=4, top_k=20, seed=0)
    assert len(set(texts)) > 10
    logits = plain_logits(lm, [lm.tokenizer.bos_token_id])
    assert next_token_top(lm, [""], 1)[0][0].id == int(logits[-1].argmax())


@pytest.mark.parametrize("family", SOME)
def test_half_precision_rates_in_float32(family: str) -> None:
    lm = model(family, torch.bfloat16)
    pairs = list(zip(PROMPTS, TARGETS, strict=True))
    for (prompt, target), one in zip(pairs, score(lm, pairs), strict=True):
        encoded = encode(lm, prompt, target=target)
        assert one.ids == encoded.target_ids
        assert all(value <= 0 and math.isfinite(value) for value in one.log_probs)
    lone = score(lm, [(PROMPTS[0], TARGETS[0])])[0]
    encoded = encode(lm, PROMPTS[0], target=TARGETS[0])
    logits = plain_logits(lm, encoded.ids)[encoded.prompt_last : -1]
    wanted = logits.float().log_softmax(-1).gather(1, torch.tensor(encoded.target_ids)[:, None])
    assert lone.log_probs == pytest.approx(wanted.flatten().tolist(), abs=0.1)
    assert any(value != float(torch.tensor(value).bfloat16()) for value in lone.log_probs)


def test_double_precision_stays() -> None:
    lm = model("gpt2", torch.float64)
    encoded = encode(lm, "Rome is in", target="Italy")
    log_probs = plain_logits(lm, encoded.ids)[encoded.prompt_last : -1].log_softmax(-1)
    wanted = [float(row[token]) for row, token in zip(log_probs, encoded.target_ids, strict=True)]
    pairs = [("Rome is in", "Italy"), ("The capital of France is", "Paris")]
    assert score(lm, pairs)[0].log_probs == pytest.approx(wanted, abs=1e-12)


def test_nothing_asked_is_nothing_answered(lm: LanguageModel) -> None:
    assert score(lm, []) == []
    assert greedy(lm, []) == []
    assert answer(lm, []) == []
    assert next_token_top(lm, [], 3) == []
    assert sample(lm, [], max_new_tokens=3, top_k=2, seed=0) == []
    assert greedy(lm, ["Rome"], max_new_tokens=0) == [""]


def test_the_context_is_a_limit(lm: LanguageModel) -> None:
    size = lm.context_length
    unit = len(encode(lm, "Rome").ids)
    words = ["Rome"]
    while len(encode(lm.tokenizer, " ".join(words)).ids) < size:
        words.append("is")
    full = " ".join(words)
    assert unit < len(encode(lm, full).ids) == size
    texts = greedy(lm, ["Rome", full], max_new_tokens=5, stop=())
    assert texts[0] == greedy(lm, ["Rome"], max_new_tokens=5, stop=())[0]
    assert texts[1] == decode(lm, plain_greedy(lm, full, 1))
    nearly = full.removesuffix(" is")
    room = size - len(encode(lm, nearly).ids) + 1
    assert greedy(lm, [nearly], max_new_tokens=9, stop=()) == [
        decode(lm, plain_greedy(lm, nearly, room))
    ]
    for ask_it in (
        lambda: greedy(lm, ["Rome", full + " is"]),
        lambda: next_token_top(lm, [full + " is"], 1),
        lambda: score(lm, [("Rome", "Italy"), (full, "Italy")]),
    ):
        with pytest.raises(PromptTooLong, match=r'CG105 .*"Rome is is .*at most'):
            ask_it()


def test_an_empty_target_cannot_be_rated() -> None:
    with pytest.raises(EmptyTarget, match=r'CG102 .*"Rome is in"'):
        score(model("gpt2"), [("Rome is in", "")])


def test_chat_needs_a_template() -> None:
    lm = model("llama")
    with pytest.raises(BadConfig, match=r"CG502 .*no chat template"):
        greedy(lm, ["Rome"], chat=True)
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    chatty = LanguageModel(lm.model, tokenizer, name="chatty")
    texts = greedy(chatty, ["{{ Rome }}", "The capital"], max_new_tokens=6, stop=(), chat=True)
    ids = tokenizer("<s>[user] {{ Rome }}\n[assistant]", add_special_tokens=False).input_ids
    assert ids.count(tokenizer.bos_token_id) == 1
    assert texts[0] == decode(lm, plain_greedy(lm, ids, 6))
    assert texts[0] != greedy(chatty, ["{{ Rome }}"], max_new_tokens=6, stop=())[0]
    with pytest.raises(PromptTooLong, match=r'CG105 .*"long long'):
        answer(chatty, ["long " * 500], chat=True)


def test_the_generation_configuration_has_no_effect() -> None:
    lm = model("gpt2")
    before = greedy(lm, PROMPTS, stop=())
    changed = copy.deepcopy(lm.model)
    changed.generation_config.repetition_penalty = 5.0
    changed.generation_config.do_sample = True
    changed.generation_config.temperature = 9.0
    assert greedy(LanguageModel(changed, lm.tokenizer), PROMPTS, stop=()) == before


def test_every_end_token_of_the_model_ends_a_row() -> None:
    lm = model("gpt2")
    ids = plain_greedy(lm, "Rome is", 8)
    changed = copy.deepcopy(lm.model)
    changed.generation_config.eos_token_id = [511, ids[3]]
    ended = LanguageModel(changed, lm.tokenizer)
    wanted = ids[: ids.index(ids[3])]
    assert greedy(ended, ["Rome is"], max_new_tokens=8, stop=()) == [decode(lm, wanted)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (" Paris. The city is", "Paris"),
        (" Paris", "Paris"),
        (" Paris.", "Paris"),
        (" Paris.\nThe", "Paris"),
        ("\n\n Paris \nThe", "Paris"),
        (" J. K. Rowling. She", "J. K. Rowling"),
        (" St. Louis, Missouri. It", "St. Louis, Missouri"),
        (" Washington, D.C.", "Washington, D.C."),
        (" Apple Inc. in 2001! And", "Apple Inc. in 2001"),
        (" 3.5 million. ", "3.5 million"),
        (" .NET", ".NET"),
        (". Paris", ". Paris"),
        ("", ""),
    ],
)
def test_first_sentence(text: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "continue_rows", lambda *_, **__: [Continuation(text, ())])
    assert answer(model("gpt2"), ["The"]) == [wanted]


def test_answer_is_the_start_of_the_continuation(lm: LanguageModel) -> None:
    continuations = greedy(lm, PROMPTS, max_new_tokens=16, stop=())
    answers = answer(lm, PROMPTS, max_new_tokens=16)
    for text, short in zip(continuations, answers, strict=True):
        assert text.strip().startswith(short)
        assert "\n" not in short
        assert short == short.strip()


def test_batches_hold_every_row_once_with_little_padding() -> None:
    lengths = random.Random(0).choices(range(1, 400), k=500)
    lm = model("gpt2")
    found = list(batches(lm, lengths, 2048))
    assert sorted(i for batch in found for i in batch) == list(range(500))
    for batch in found:
        width = max(lengths[i] for i in batch)
        used = sum(lengths[i] for i in batch)
        assert width * len(batch) <= max(2048, width)
        assert width * len(batch) - used <= max(64, used / 4)
    assert len(found) < 80
    assert [len(batch) for batch in batches(lm, [5] * 10, 1)] == [1] * 10


def test_the_head_runs_only_where_a_label_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model("llama")
    rows: list[int] = []
    head = LanguageModel.head
    monkeypatch.setattr(
        LanguageModel, "head", lambda self, hidden: rows.append(len(hidden)) or head(self, hidden)
    )
    pairs = list(zip(PROMPTS, TARGETS, strict=True))
    results = score(lm, pairs)
    labels = {
        (prompt, one.ids[: place + 1])
        for (prompt, _), one in zip(pairs, results, strict=True)
        for place in range(len(one.ids))
    }
    reads = {(prompt, ids[:-1]) for prompt, ids in labels}
    assert sum(rows) == len(reads)


def test_left_and_right_padding_give_equal_logits(lm: LanguageModel) -> None:
    """The ground all of this stands on: masks and positions are right on either side."""
    rows = [encode(lm, prompt).ids for prompt in PROMPTS]
    right = lm.logits(Tokens.pad(rows, 0))
    left = lm.logits(Tokens.pad(rows, 0, side="left"))
    for i, row in enumerate(rows):
        plain = plain_logits(lm, row)
        torch.testing.assert_close(right[i, : len(row)], plain, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(left[i, -len(row) :], plain, atol=1e-4, rtol=1e-4)
