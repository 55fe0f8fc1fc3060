"""Whoever routes on the prompt is told where it ends, once, and keeps to that row by row."""

from __future__ import annotations

import copy

import pytest
import torch

from corrigenda.errors import LostPrompts
from corrigenda.lm.decoding import greedy, score
from corrigenda.lm.sites import Site, Tokens, state, value
from corrigenda.lm.spans import encode
from corrigenda.testing.tiny import tiny_model

PROMPTS = ["Rome", "The capital of France is", "The mother tongue of Danielle Darrieux is", "A"]


class Recorder:
    """Remembers where it was told that prompts end, and what it had decided."""

    def __init__(self, lm):
        self.lm, self.ends, self.seen = lm, [], []

    def __call__(self, tensor):
        def decide(ends):
            self.ends.append(ends.tolist())
            rows = torch.arange(len(ends))
            return tensor[rows, ends].sum(1)

        self.seen.append(self.lm.prompt_ends.decide_once(self, decide).tolist())
        return tensor


def followed(lm, recorder):
    return lm.swap({state(0): recorder})


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_token_that_is_not_padding_ends_the_prompt(side):
    lm = tiny_model("llama")
    rows = [encode(lm, prompt).ids for prompt in PROMPTS]
    recorder = Recorder(lm)
    with lm.prompt_ends.follow(), followed(lm, recorder):
        lm.logits(Tokens.pad(rows, 0, side))
    width = max(map(len, rows))
    wanted = [width - 1] * 4 if side == "left" else [len(row) - 1 for row in rows]
    assert recorder.ends == [wanted]


@pytest.mark.parametrize("side", ["left", "right"])
def test_columns_of_padding_are_told_in_every_pass(side):
    lm = tiny_model("llama")
    tokens = Tokens.pad([encode(lm, prompt).ids for prompt in PROMPTS], 0, side)
    masks, continued = [], []

    def look(tensor):
        masks.append(lm.prompt_ends.mask)
        continued.append(lm.prompt_ends.continued)
        return tensor

    with lm.prompt_ends.follow(), lm.swap({state(0): look}):
        lm.logits(tokens)
        lm.model(tokens.ids)
        greedy(lm, PROMPTS[1:2], max_new_tokens=3, stop=())
    assert torch.equal(masks[0], tokens.mask.bool())
    assert masks[1].all()
    assert continued[2:] == [False, True, True]
    assert masks[-1].tolist() == [[True]]
    with pytest.raises(LostPrompts, match="by itself"):
        lm.prompt_ends.mask  # noqa: B018 - raises


def test_a_target_that_is_fed_does_not_belong_to_the_prompt():
    lm = tiny_model("llama")
    recorder = Recorder(lm)
    with lm.prompt_ends.follow(), followed(lm, recorder):
        score(lm, [(prompt, "Berlin, Germany and others") for prompt in PROMPTS[:2]])
    told = sorted(end for ends in recorder.ends for end in ends)
    assert told == sorted(encode(lm, prompt).prompt_last for prompt in PROMPTS[:2])


def test_decisions_stay_with_their_rows_while_others_leave_the_batch():
    lm = tiny_model("llama")
    recorder = Recorder(lm)
    with lm.prompt_ends.follow(), followed(lm, recorder):
        greedy(lm, PROMPTS, max_new_tokens=3, stop=(), batch_tokens=10_000)
        first = recorder.seen[0]
        assert len(recorder.ends) == 1
        assert all(decided == first for decided in recorder.seen)
        recorder.seen.clear()
        greedy(lm, PROMPTS, max_new_tokens=6, stop=("\n",), batch_tokens=10_000)
    for decided in recorder.seen:
        assert set(decided) <= set(recorder.seen[0])


def test_rows_that_leave_take_their_decision_along():
    lm = tiny_model("llama")
    recorder = Recorder(lm)
    with lm.prompt_ends.follow(), followed(lm, recorder):
        lm.logits(Tokens.pad([encode(lm, prompt).ids for prompt in PROMPTS], 0))
        lm.prompt_ends.select(torch.tensor([2, 0]))
        lm.prompt_ends.continued, lm.prompt_ends._batch, lm.prompt_ends._running = True, 2, True
        kept = lm.prompt_ends.decide_once(recorder, lambda ends: ends).tolist()
    assert kept == [recorder.seen[0][2], recorder.seen[0][0]]


def test_the_library_of_the_model_generates_with_one_decision():
    lm = tiny_model("llama")
    recorder = Recorder(lm)
    rows = Tokens.pad([encode(lm, prompt).ids for prompt in PROMPTS], 0, "left")
    with lm.prompt_ends.follow(), followed(lm, recorder):
        lm.model.generate(
            rows.ids, attention_mask=rows.mask, max_new_tokens=3, do_sample=False, pad_token_id=0
        )
    assert len(recorder.ends) == 1
    assert len(recorder.seen) == 3
    assert all(decided == recorder.seen[0] for decided in recorder.seen)


def test_prompts_read_before_are_not_guessed():
    lm = tiny_model("llama")
    ids = torch.tensor([encode(lm, PROMPTS[1]).ids])
    cache = lm.model(ids, use_cache=True).past_key_values
    recorder = Recorder(lm)
    with (
        lm.prompt_ends.follow(),
        followed(lm, recorder),
        pytest.raises(LostPrompts, match="not read"),
    ):
        lm.model(ids[:, :1], past_key_values=cache)


def test_nobody_is_followed_afterwards_and_copies_are_their_own():
    lm = tiny_model("llama")
    hooks = len(lm.model._forward_pre_hooks)
    with lm.prompt_ends.follow(), lm.prompt_ends.follow():
        assert len(lm.model._forward_pre_hooks) == hooks + 1
        other = copy.deepcopy(lm)
    assert len(lm.model._forward_pre_hooks) == hooks
    assert other.prompt_ends is not lm.prompt_ends
    with pytest.raises(LostPrompts):
        lm.prompt_ends.ends  # noqa: B018 - raises


def test_a_part_of_the_model_by_itself_is_not_guessed_either():
    lm = tiny_model("llama")
    recorder = Recorder(lm)
    tokens = Tokens.pad([encode(lm, prompt).ids for prompt in PROMPTS], 0)
    with lm.prompt_ends.follow(), lm.swap({value(Site(0)): recorder}):
        lm.tap(tokens, [state(1)])
        with pytest.raises(LostPrompts, match="by itself"):
            lm.module(Site(0))(torch.zeros(4, 3, lm.d_inner))
