"""Batches that others join, and caches that are widened and cut, change no answer."""

from __future__ import annotations

import pytest
import torch

from corrigenda.lm.decoding import greedy
from corrigenda.lm.kv_cache import RunningRows
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.spans import encode
from corrigenda.testing.tiny import tiny_model

# Learned positions, rotary, sliding window with capped logits, window beside full attention.
SOME = ["gpt2", "llama", "gemma2", "gemma3", "mistral", "opt"]
LONG = "The mother tongue of Danielle Darrieux, who was born in Bordeaux in the year 1917, is"
PROMPTS = ["Rome", "The capital of France is", LONG, LONG + " not " + LONG]


@pytest.fixture(params=SOME)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_model(request.param)


def logits_alone(lm: LanguageModel, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return lm.model(input_ids=torch.tensor([ids])).logits[0, -1].float()


def step(lm: LanguageModel, rows: RunningRows, texts: list[list[int]], places: range) -> None:
    """Check the logits of every row with a plain pass, and continue some of the rows."""
    logits = rows.logits()
    for row, ids in zip(logits, texts, strict=True):
        torch.testing.assert_close(row, logits_alone(lm, ids), atol=2e-4, rtol=1e-3)
    chosen = logits.argmax(1).tolist()
    rows.advance(chosen, places)
    texts[:] = [[*texts[place], chosen[place]] for place in places]


def test_rows_that_join_are_continued_as_alone(lm: LanguageModel) -> None:
    """A longer and a shorter batch join in both orders, and padding of all rows is dropped."""
    for first, second in ((PROMPTS[:2], PROMPTS[2:]), (PROMPTS[2:], PROMPTS[:2])):
        batches = [[encode(lm, prompt).ids for prompt in half] for half in (first, second)]
        rows = [RunningRows(lm, texts) for texts in batches]
        for one, texts, num_steps in zip(rows, batches, (3, 1), strict=True):
            for _ in range(num_steps):
                step(lm, one, texts, range(2))
        assert rows[0].join(rows[1])
        texts = batches[0] + batches[1]
        for _ in range(3):
            step(lm, rows[0], texts, range(4))
        # The longest rows leave; a new batch joins, and the width is that of the longest left.
        longest = max(texts, key=len)
        short = [place for place, ids in enumerate(texts) if len(ids) < len(longest) // 2]
        step(lm, rows[0], texts, short)
        newer = [encode(lm, PROMPTS[0]).ids]
        more = RunningRows(lm, newer)
        step(lm, more, newer, range(1))
        assert rows[0].join(more)
        texts += newer
        assert rows[0].width == max(map(len, texts))
        for _ in range(3):
            step(lm, rows[0], texts, range(len(texts)))
        rows[0].read_again()
        step(lm, rows[0], texts, range(len(texts)))


def test_rows_that_were_not_read_do_not_join(lm: LanguageModel) -> None:
    rows = [RunningRows(lm, [encode(lm, prompt).ids]) for prompt in PROMPTS[:2]]
    assert not rows[0].join(rows[1])
    rows[0].advance(rows[0].logits().argmax(1).tolist(), [0])
    assert not rows[0].join(rows[1])
    assert rows[1].logits().argmax(1).tolist()


def test_greedy_text_is_unchanged(lm: LanguageModel) -> None:
    together = greedy(lm, PROMPTS, max_new_tokens=6, stop=())
    assert together == [greedy(lm, [one], max_new_tokens=6, stop=())[0] for one in PROMPTS]
