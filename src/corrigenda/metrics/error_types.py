"""Four ways to fail: meaningless, missing, partial, irrelevant; by a rule, applied in order.

The types are those of KnowEdit's bad cases; the rule that decides is this library's.

0. success: the continuation begins with the target.
1. meaningless: no letter or digit; or a character five times in a row; or a unit of one to three
   characters three times in a row that covers 60 % of the text; or six words and more of which no
   more than 34 % are distinct.
2. missing: its first words hold a part of the target's words and nothing else.
3. partial: they hold words of the target, or of the original answer.
4. irrelevant: otherwise.

First words are as many as the target has, at least two. Words are those of `strings.normalise`,
without stop words, unless the target has no others.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from corrigenda.cases import Protocol
from corrigenda.metrics.estimate import BOOTSTRAP, AnswerValue, Bootstrap, Estimate, over_cases
from corrigenda.metrics.metric import LOWER, Metric, define
from corrigenda.metrics.selection import required_answer, select
from corrigenda.metrics.strings import begins_with, has_characters, normalise
from corrigenda.metrics.success import NO_WORDS, metric_name
from corrigenda.rows import Row

_FUNCTION_WORDS = """
a about after all also am an and any are as at be been being but by can did do does for from
had has have he her here hers him his how i if in into is it its just me more most my no nor
not of off on once only or other our out over own same she should so some such than that the
their them then there these they this those through to too under until up very was we were
what when where which while who whom why will with would you your
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Function words, after `normalise`."""

_RUN = re.compile(r"(\S)\1{4,}")
_UNIT = re.compile(r"(.{1,3}?)\1{2,}", re.DOTALL)
_COVERED = 0.6
_DISTINCT = 0.34
_FEWEST_WORDS = 6
_REPEATED = 0.5


class AnswerType(StrEnum):
    """Success, or one of four ways to fail."""

    SUCCESS = "success"
    MEANINGLESS = "meaningless"
    MISSING = "missing"
    PARTIAL = "partial"
    IRRELEVANT = "irrelevant"


FAILURES = tuple(outcome for outcome in AnswerType if outcome != AnswerType.SUCCESS)


class Verdict(NamedTuple):
    """Type of an answer, with two properties of its text.

    Attributes:
        outcome: The first type that applies.
        repeats_after: A success of whose rest at least half are repeated pairs of words.
        original_retained: A partial answer that begins with the original one.
    """

    outcome: AnswerType
    repeats_after: bool = False
    original_retained: bool = False


def classify(text: str, target: str, original: str = "") -> Verdict:
    """Return the type of a greedy continuation.

    Args:
        text: The continuation, of the target's length and some eight tokens more.
        target: The new answer.
        original: The unedited model's answer, or the old one.

    Example:
        >>> classify("Los York", "Los Angeles", "New York").outcome
        <AnswerType.PARTIAL: 'partial'>
    """
    text = first_line(text)
    if begins_with(text, target):
        rest = normalise(text).split()[len(normalise(target).split()) :]
        return Verdict(AnswerType.SUCCESS, repeats_after=_repeats_pairs(rest))
    if meaningless(text):
        return Verdict(AnswerType.MEANINGLESS)
    wanted, old = _content_words(target), _content_words(original)
    length = max(2, len(normalise(target).split()))
    first = {
        word
        for word in normalise(text).split()[:length]
        if word not in STOP_WORDS or word in wanted
    }
    if first and first < wanted:
        return Verdict(AnswerType.MISSING)
    if first & (wanted | old):
        retained = begins_with(text, original)
        return Verdict(AnswerType.PARTIAL, original_retained=retained)
    return Verdict(AnswerType.IRRELEVANT)


def first_line(text: str) -> str:
    """Return a text up to its first line break that follows a character other than a space."""
    start = len(text) - len(text.lstrip())
    return text[: start + len(text[start:].partition("\n")[0])]


def meaningless(text: str) -> bool:
    """Whether a text is without letters, or repetition.

    Example:
        >>> meaningless("ererererer"), meaningless("a kind of fish")
        (True, False)
    """
    stripped = text.strip()
    if not any(character.isalnum() for character in stripped) or _RUN.search(stripped):
        return True
    units = [len(match.group()) for match in _UNIT.finditer(stripped)]
    if max(units, default=0) >= _COVERED * len(stripped):
        return True
    found = stripped.lower().split()
    return len(found) >= _FEWEST_WORDS and len(set(found)) <= _DISTINCT * len(found)


def verdicts(
    rows: Sequence[Row], role: str = "reliability"
) -> tuple[list[tuple[Row, Verdict]], Counter[str]]:
    """Return every greedy answer with its verdict, and the number left out by reason.

    The original answer is that of the unedited model, else the first rival.
    """
    found, skipped = select(rows, role, protocol=Protocol.GREEDY)
    decided: list[tuple[Row, Verdict]] = []
    for row in found:
        target = row.expected[0][0] if row.expected and row.expected[0] else ""
        if not has_characters(target):
            skipped[NO_WORDS] += 1
            continue
        original = row.answer_before or (row.rivals[0] if row.rivals else "")
        decided.append((row, classify(required_answer(row), target, first_line(original))))
    return decided, skipped


def share_of_failures(
    rows: Sequence[Row],
    outcome: AnswerType,
    role: str = "reliability",
    *,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Share of one type among the answers that fail; the four shares sum to 1."""
    decided, skipped = verdicts(rows, role)
    items = [
        AnswerValue(row.case, float(verdict.outcome == outcome))
        for row, verdict in decided
        if verdict.outcome != AnswerType.SUCCESS
    ]
    name = metric_name(f"errors_{outcome}", Protocol.GREEDY)
    return over_cases(name, items, skipped=skipped, bootstrap=bootstrap)


def _content_words(text: str) -> set[str]:
    found = set(normalise(text).split())
    return found - STOP_WORDS or found


def _repeats_pairs(rest: Sequence[str]) -> bool:
    pairs = Counter(itertools.pairwise(rest))
    return bool(pairs) and 1 - len(pairs) / pairs.total() >= _REPEATED


METRICS: tuple[Metric, ...] = tuple(
    define(
        f"errors_{one}@greedy",
        "share of failures of this type",
        share_of_failures,
        one,
        reads="reliability",
        better=LOWER,
    )
    for one in FAILURES
)
