"""Matching of generated text in every script, and the published rule under its own name."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrigenda.metrics import strings
from corrigenda.metrics.folding import fold
from corrigenda.metrics.published_strings import (
    published_begins_with,
    published_contains,
    published_equals,
    published_normalise,
)
from corrigenda.metrics.strings import begins_with, contains, equals, is_answer, normalise
from corrigenda.metrics.success import NO_WORDS, success
from tests.support.rows import GREEDY, said

# Kind, functions, text, spelling, and whether they match.
SPELLINGS: list[tuple[str, list[str], str, str, bool]] = json.loads(
    Path(__file__).with_name("spellings.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(
    ("kind", "functions", "text", "spelling", "matches"),
    SPELLINGS,
    ids=[f"{one[0]}-{number}" for number, one in enumerate(SPELLINGS)],
)
def test_texts_match_by_words_of_any_script(
    kind: str, functions: list[str], text: str, spelling: str, matches: bool
) -> None:
    for name in functions:
        assert getattr(strings, name)(text, spelling) is matches, (kind, name, fold(text))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(TEXTS)
def test_a_text_is_itself_in_every_normal_form(text: str) -> None:
    for form in ("NFC", "NFD"):
        assert fold(unicodedata.normalize(form, text)).characters == fold(text).characters
    if fold(text).characters:
        for decide in (equals, begins_with, contains, is_answer):
            assert decide(text, text)


@given(TEXTS, TEXTS)
def test_measures_are_ordered(text: str, spelling: str) -> None:
    """The whole text, its first sentence, its beginning, anywhere: each implies the next."""
    found = [decide(text, spelling) for decide in (equals, is_answer, begins_with, contains)]
    assert found == sorted(found)


@given(st.text("ab 1.,-'", max_size=8), st.text("ab 1.,-'", max_size=4))
def test_what_surrounds_an_answer_does_not_matter(text: str, spelling: str) -> None:
    if fold(spelling).characters:
        assert contains(f"{text} ({spelling}); {text}", spelling)


def test_words_are_those_of_the_text() -> None:
    assert normalise(" The O\u2019Brien e-mail, U.S. 3.5") == "obrien e mail us 3.5"
    assert normalise("Serie A") == "serie a"
    assert normalise("Alexander the Great") == "alexander the great"


def test_the_published_rule_has_its_own_name() -> None:
    """It takes one series for another and a number for ten times itself."""
    assert published_normalise("The 3.5 of a Series A!") == "35 of series"
    for published in (published_equals, published_begins_with, published_contains):
        assert published("Serie B", "Serie B")
        assert published("3.5", "35")
        assert published("the Louvre", "Louvre")
        assert not published("A", "A")
    rows = [said("1", "Serie B", "Serie A"), said("2", "3.5", "35"), said("3", "A", "A")]
    rows += [said("4", "Serie A", "Serie A")]
    for measure in ("exact", "prefix", "contains", "whole"):
        found = success(rows, "reliability", protocol=GREEDY, measure=measure)
        assert (found.value, found.skipped) == (0.5, {})
    for measure in ("prefix_legacy", "contains_legacy"):
        found = success(rows, "reliability", protocol=GREEDY, measure=measure)
        assert (found.value, found.skipped) == (1, {NO_WORDS: 1})
        assert found.metric == f"reliability@greedy:{measure}"


def test_the_answer_is_the_first_sentence_or_the_whole_continuation() -> None:
    rows = [said("1", " Paris. The city is", "Paris"), said("2", " Paris", "Paris")]

    def value(measure: str) -> float:
        return success(rows, "reliability", protocol=GREEDY, measure=measure).value

    assert (value("exact"), value("whole"), value("exact_legacy")) == (1, 0.5, 0.5)
