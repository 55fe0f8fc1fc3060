"""A subject is filled in only where there is one thing it can be."""

from __future__ import annotations

import pytest

from corrigenda.errors import AmbiguousSubject
from corrigenda.subjects import guess_subject


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux"),
        ("Paris is the capital of", "Paris"),
        ("In 1998 Windows 98 was made by", "Windows 98"),
        ("Who wrote The Lord of the Rings? Answer:", "The Lord of the Rings"),
        ("The birthplace of Ludwig van Beethoven is", "Ludwig van Beethoven"),
        ("Where was \u00c9mile Zola born? In", "\u00c9mile Zola"),
    ],
)
def test_the_only_capitalised_run_is_the_subject(prompt: str, subject: str) -> None:
    assert guess_subject(prompt) == subject


@pytest.mark.parametrize(
    "prompt",
    [
        "the sky is",
        "The river between Rome and Milan is",
        "Mother tongue of Danielle Darrieux is",
        "Paris, Texas and Paris are both called",
    ],
)
def test_none_or_several_candidates_are_asked_about(prompt: str) -> None:
    with pytest.raises(AmbiguousSubject, match=r"^CG104 .*\n.*--subject"):
        guess_subject(prompt)


def test_known_names_decide_before_capitals() -> None:
    known = ("iPhone", "iPhone 4", "Rome")
    assert guess_subject("The maker of the iPhone 4 in Europe is", known=known) == "iPhone 4"
    assert guess_subject("Romeo loves Rome and", known=known) == "Rome"
    with pytest.raises(AmbiguousSubject, match='"iPhone", "Rome"'):
        guess_subject("The iPhone sold in Rome is", known=known)


def test_a_subject_that_occurs_twice_is_not_certain() -> None:
    with pytest.raises(AmbiguousSubject, match="occurs 2 times"):
        guess_subject("Rome is old. But Rome is", known=("Rome",))
