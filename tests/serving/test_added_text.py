"""Pieces of text that stay, draws, and figures."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corrigenda.serving.added_text import AddedText
from corrigenda.serving.counters import Figure, format_figures
from corrigenda.serving.draws import draw, token_chances


def decode(tokens: object) -> str:
    """Text of bytes, as byte-level tokens have it."""
    return bytes(tokens).decode("utf-8", "replace")


CHARACTERS = st.sampled_from("ab\n\u00e9\u20ac\U0001f600 ")
STOPS = st.lists(st.sampled_from("ab\n\u00e9"), min_size=1, max_size=3).map("".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(CHARACTERS, max_size=12).map("".join), st.lists(STOPS, max_size=3))
def test_pieces_join_to_the_text_before_the_stop_that_ends_first(
    text: str, stop: list[str]
) -> None:
    """One byte a token: no piece holds half a character or anything of a stop string."""
    beginnings = [text[:length] for length in range(1, len(text) + 1)]
    read = next((one for one in beginnings if any(end in one for end in stop)), text)
    found = [read.find(one) for one in stop if one in read]
    wanted = read[: min(found)] if found else text
    grown = AddedText(decode, stop)
    tokens = list(text.encode())
    pieces = [grown.piece(tokens[:length]) for length in range(1, len(tokens) + 1)]
    pieces.append(grown.piece(tokens, last=True))
    assert "".join(pieces) == wanted
    assert grown.stopped == bool(found)
    assert not any("\ufffd" in piece for piece in pieces)


def test_nothing_is_held_back_without_need() -> None:
    grown = AddedText(decode, ["\n\n"])
    text = b"ab\nc"
    pieces = [grown.piece(text[:length]) for length in range(1, 5)]
    assert pieces == ["a", "b", "", "\nc"]


def test_half_a_character_at_the_end_is_given_as_it_is() -> None:
    grown = AddedText(decode)
    assert grown.piece(b"a\xe2\x82") == "a"
    assert grown.piece(b"a\xe2\x82", last=True) == "\ufffd"


def test_draws_follow_temperature_and_nucleus() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    generator = random.Random(1)

    def share(**options: float) -> list[float]:
        drawn = Counter(draw(logits, generator=generator, **options) for _ in range(4000))
        return [drawn[token] / 4000 for token in range(4)]

    assert share(temperature=0, top_p=1) == [1, 0, 0, 0]
    for temperature in (0.5, 1.0, 2.0):
        wanted = (logits / temperature).softmax(0).tolist()
        assert share(temperature=temperature, top_p=1) == pytest.approx(wanted, abs=0.03)
    # The two likeliest together have 0.88, the first alone 0.64.
    first, second = logits.softmax(0)[:2].tolist()
    wanted = [first / (first + second), second / (first + second), 0, 0]
    assert share(temperature=1, top_p=0.8) == pytest.approx(wanted, abs=0.03)
    assert share(temperature=1, top_p=1e-9) == [1, 0, 0, 0]
    assert share(temperature=1e-3, top_p=1) == [1, 0, 0, 0]


def test_log_probabilities_are_natural_and_before_temperature() -> None:
    chances = token_chances(torch.tensor([0.0, math.log(3.0)]), 0, 5)
    assert chances.chosen == pytest.approx(math.log(0.25))
    assert [token for token, _ in chances.top] == [1, 0]
    assert chances.top[0][1] == pytest.approx(math.log(0.75))


def test_labels_are_escaped() -> None:
    figure = Figure("a", "gauge", "Of a.", [({"m": 'x"\\\n'}, 2_000_001)])
    assert format_figures([figure]).splitlines()[-1] == 'a{m="x\\"\\\\\\n"} 2000001'
