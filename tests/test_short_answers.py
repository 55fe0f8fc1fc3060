"""Short answers at the beginning of continuations, and whether an edit kept them."""

from __future__ import annotations

import pytest

from corrigenda.short_answers import begins, keeps_answer, shorten


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (" Paris. The city of Paris is", "paris"),
        (" Paris, the capital", "paris"),
        (" the Louvre, which is", "louvre"),
        (" Paris and the population is 67 million", "paris"),
        (" Democratic Republic of the Congo (DRC)", "democratic republic of the congo"),
        (' "Rome" (Italy)', "rome"),
        (" J. K. Rowling. She", "j. k. rowling"),
        (" St. Petersburg; it", "st. petersburg"),
        (" 3.5 million people", "3.5 million people"),
        (" Paris - a city", "paris"),
        (" Jean-Luc Picard", "jean-luc picard"),
        (" Berlin\nThe capital", "berlin"),
        (" known for its art and its culture", "known for its art"),
        (" one two three four five six seven", "one two three four five six"),
        (" \u6771\u4eac\u3002\u65e5\u672c", "\u6771\u4eac"),
        (" and", "and"),
        ("the", "the"),
        ("", ""),
    ],
)
def test_a_short_answer_is_the_first_clause(text: str, short: str) -> None:
    assert shorten(text) == short


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        # A changed second clause is no damage.
        ("Berlin, which is a city in Germany", "Berlin. It is the home of", True),
        ("Berlin and the population is", "Berlin", True),
        ("the English language", "English, and", True),
        ("English", "English language", True),
        ("Berlin", "Rome", False),
        ("Berlin, Germany", "Bern, Germany", False),
        ("Rom", "Rome", False),
        ("the heart of Paris", "the heart of Rome", False),
        ("", "", True),
        ("", "Rome", False),
        ("Rome", "", False),
    ],
)
def test_an_answer_is_kept_where_its_first_clause_is(before: str, after: str, kept: bool) -> None:
    assert keeps_answer(before, after) is kept
    assert keeps_answer(after, before) is kept


def test_a_known_object_decides_where_it_was_the_answer() -> None:
    known = ("Washington, D.C.", "Washington")
    assert keeps_answer("Washington, D.C. It", "Washington State and", known)
    assert not keeps_answer("Washington, D.C. It", "Washingtonia", known)
    assert not keeps_answer("Paris Texas", "Parisian", ("Paris",))
    # Not known to the unedited model: the short answers decide.
    assert keeps_answer("Rome, Italy", "Rome. The", ("Paris",))
    assert not keeps_answer("Rome, Italy", "Paris", ("Paris",))


def test_begins_reads_whole_words() -> None:
    assert begins("Rome, Italy", "Rome")
    assert not begins("Romeo", "Rome")
