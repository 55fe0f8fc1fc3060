"""Judging an answer that a model wrote to an item of another task: as it should be, as published.

| kind | score | published score (`legacy_task_score`) |
|---|---|---|
| `gsm8k` | the first number of the answer is the right one | its digits occur in the answer |
| `nq` | the first line is a right answer, word by word | a span of words is one; see below |
| `rte`, `sst2`, `boolq` | the first word is the right one | answers not read are left out |
| `mutual` | the first word is the right letter | the letter occurs in any word |
| `mmlu` | the same | a letter stands before the end of a line |
| `nli`, `cola`, `mrpc` | the first word is the right one | it occurs in any word |
| `samsum` | mean F1 of ROUGE-1, -2 and -L | the same without the last 13 characters |
| `conll` | F1 of entities over all texts and types | share of entities found, mean over types |

Published scores read an answer beyond its first line. Of `nq`, a text in which single words are
right answers counts once for each of them, and after the first right answer of several words all
later texts are searched from their first word only. `conll` pays nothing for what is not there.

Reference: Gu et al. 2024 and unified-model-editing (Gupta et al. 2024). What their programs do
besides is left alone: spans of `nq` are sought in the prompt as well, ROUGE is that of another
package, entities that end a sentence lose their last word, and a text without miscellaneous
entities counts as one that was missed.
"""

from __future__ import annotations

# rouge-score has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from corrigenda.errors import MalformedRows, MissingExtra
from corrigenda.metrics.error_types import first_line
from corrigenda.metrics.estimate import mean
from corrigenda.metrics.strings import equals, normalise
from corrigenda.metrics.tasks import right_place, tag_of
from corrigenda.rows import Row

_TRIMMED = 13
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_WORD = re.compile(r"\w+")
_BETWEEN = re.compile(r"[,;]")
_ROUGE = ("rouge1", "rouge2", "rougeL")


class Share(NamedTuple):
    """What an answer adds to a score, which is a ratio of sums.

    Attributes:
        counted: Added above.
        possible: Added below.
    """

    counted: float
    possible: float = 1.0


Judge = Callable[[str, Row], Share]
"""What a text is worth as the answer that a row expects."""


def judge(row: Row, *, legacy: bool = False) -> Judge:
    """Who judges the answers to all items of a task, of one model, in their order.

    Args:
        row: One of them; its tag `kind` decides.
        legacy: Whether as published; such a judge may remember what it saw.

    Raises:
        MalformedRows (CG507): the row is of no known kind.
    """
    return _LEGACY[_kind(row)]() if legacy else _JUDGES[_kind(row)]


def place(text: str, row: Row, *, legacy: bool = False) -> int:
    """Place of the choice that an answer names; -1 for none.

    Raises:
        MalformedRows (CG507): the row is of no known kind, or says of no right choice.
    """
    choices = _choices(row)
    return _READINGS[_kind(row)].place(text, choices) if legacy else said_choice(text, choices)


def has_choices(row: Row) -> bool:
    """Whether its answer is one of several choices.

    Raises:
        MalformedRows (CG507): the row is of no known kind.
    """
    return _kind(row) in _READINGS


def said_choice(text: str, choices: Sequence[str]) -> int:
    """Place of the choice that is the first word of an answer; -1 for none.

    Letters are compared as they are, words in any case.

    Example:
        >>> said_choice(" (B) because", "ABCD"), said_choice(" a boy", "ABCD")
        (1, -1)
        >>> said_choice(" Yes.", ["no", "yes"]), said_choice(" yesterday", ["no", "yes"])
        (1, -1)
    """
    word = _WORD.search(first_line(text))
    if word is None:
        return -1
    said = word.group()
    same = [said == one or (len(one) > 1 and said.lower() == one.lower()) for one in choices]
    return same.index(True) if any(same) else -1


def said_number(text: str) -> Decimal | None:
    """The first number of an answer, whole: digits, with commas between and decimals behind.

    Example:
        >>> said_number(" $1,200 in all"), said_number(" 120.")
        (Decimal('1200'), Decimal('120'))
    """
    found = _NUMBER.search(first_line(text))
    return Decimal(found.group().replace(",", "")) if found else None


def said_entities(text: str) -> Counter[str]:
    """Entities that an answer lists with commas between, after `normalise`.

    Example:
        >>> sorted(said_entities(" Ann Lee, the UN."))
        ['ann lee', 'un']
    """
    listed = map(normalise, _BETWEEN.split(first_line(text)))
    return Counter(one for one in listed if one not in ("", "none"))


@lru_cache(maxsize=1 << 14)
def rouge(text: str, reference: str) -> float:
    """Mean of the F1 of ROUGE-1, ROUGE-2 and ROUGE-L, in lower case, words as they are.

    Raises:
        MissingExtra (CG504): rouge-score is not installed.

    Example:
        >>> rouge("the cat sat", "The cat sat."), rouge("a dog", "The cat sat.")
        (1.0, 0.0)
    """
    if importlib.util.find_spec("rouge_score") is None:
        raise MissingExtra(
            "summaries are judged by rouge-score.", hint='pip install "corrigenda[metrics]"'
        )
    from rouge_score.rouge_scorer import RougeScorer

    found = RougeScorer(list(_ROUGE), use_stemmer=False).score(reference, text)
    return mean(found[one].fmeasure for one in _ROUGE)


def _choice(text: str, row: Row) -> Share:
    return Share(float(said_choice(text, _choices(row)) == right_place(row)))


def _number(text: str, row: Row) -> Share:
    right = said_number(_gold(row)[0])
    return Share(float(right is not None and said_number(text) == right))


def _exact(text: str, row: Row) -> Share:
    return Share(float(any(equals(first_line(text), one) for one in _gold(row))))


def _summary(text: str, row: Row) -> Share:
    return Share(rouge(first_line(text), _gold(row)[0]))


def _entities(text: str, row: Row) -> Share:
    """2 TP over (entities said + entities there), of which the ratio of sums is F1."""
    said = said_entities(text)
    there = Counter(normalise(group[0]) for group in row.expected)
    return Share(2.0 * (said & there).total(), float(said.total() + there.total()))


class _Reading(NamedTuple):
    """How a published program finds a choice in an answer.

    Attributes:
        order: Choices in the order in which they are sought; as listed if empty.
        folded: Whether in any case.
        whole: Whether the answer must be nothing else.
        behind: What must stand behind it.
        left_out: Whether answers without one count for nothing.
    """

    order: tuple[str, ...] = ()
    folded: bool = False
    whole: bool = False
    behind: str = ""
    left_out: bool = False

    def place(self, text: str, choices: Sequence[str]) -> int:
        """Place of the choice; -1 for none."""
        text = text.lower() if self.folded else text
        for one in self.order or choices:
            wanted = (one.lower() if self.folded else one) + self.behind
            if (text.strip() == wanted) if self.whole else (wanted in text):
                return choices.index(one)
        return -1

    def __call__(self, text: str, row: Row) -> Share:
        place = self.place(text, _choices(row))
        possible = 0.0 if self.left_out and place < 0 else 1.0
        return Share(float(place == right_place(row)), possible)


_READINGS: Mapping[str, _Reading] = {
    "boolq": _Reading(folded=True, whole=True, left_out=True),
    "cola": _Reading(("Yes", "No")),
    "mmlu": _Reading(behind="\n"),
    "mrpc": _Reading(("Yes", "No")),
    "mutual": _Reading(),
    "nli": _Reading(("True", "False")),
    "rte": _Reading(("True", "False"), folded=True, left_out=True),
    "sst2": _Reading(("positive", "negative"), folded=True, left_out=True),
}


class _Spans:
    """The published search for right answers in a text, which remembers how it once ended."""

    def __init__(self) -> None:
        self.stopped = False

    def __call__(self, text: str, row: Row) -> Share:
        right = set(map(normalise, _gold(row)))
        words = normalise(text).split(" ")
        if words[0] in right or words[-1] in right:
            return Share(1.0)
        count = 0
        for first in range(len(words) - 1):
            if words[first] in right:
                count += 1
                continue
            ends = range(first + 2, len(words) + 1)
            if any(" ".join(words[first:end]) in right for end in ends):
                count += 1
                self.stopped = True
            if self.stopped:
                break
        return Share(float(count))


def _inside(text: str, row: Row) -> Share:
    return Share(float(_gold(row)[0] in text))


def _trimmed(text: str, row: Row) -> Share:
    kept = text[:-_TRIMMED]
    return Share(rouge(kept, _gold(row)[0]) if len(kept) > 1 else 0.0)


def _found(text: str, row: Row) -> Share:
    """Entities of a type that occur in the answer; what is said besides costs nothing."""
    there = [group[0] for group in row.expected]
    return Share(float(sum(one in text for one in there)), float(len(there)))


_JUDGES: Mapping[str, Judge] = {
    **dict.fromkeys(_READINGS, _choice),
    "conll": _entities,
    "gsm8k": _number,
    "nq": _exact,
    "samsum": _summary,
}
_LEGACY: Mapping[str, Callable[[], Judge]] = {
    **{kind: lambda own=own: own for kind, own in _READINGS.items()},
    "conll": lambda: _found,
    "gsm8k": lambda: _inside,
    "mutual": lambda: _inside,
    "nq": _Spans,
    "samsum": lambda: _trimmed,
}
"""Judges of one evaluation, to be made anew for each."""


def _kind(row: Row) -> str:
    kind = tag_of(row, "kind")
    if kind is None or kind not in _JUDGES:
        raise MalformedRows(
            "a generated answer of a task does not say of which kind its item is.",
            where=row.label,
            hint=f'Give it the tag "kind=<kind>", one of {", ".join(sorted(_JUDGES))}.',
        )
    return kind


def _choices(row: Row) -> list[str]:
    place = right_place(row)
    return [*row.rivals[:place], _gold(row)[0], *row.rivals[place:]]


def _gold(row: Row) -> list[str]:
    if not row.expected or not row.expected[0]:
        raise MalformedRows(
            "a generated answer of a task is expected to be nothing.",
            where=row.label,
            hint="Give its accepted spellings.",
        )
    return row.expected[0]
