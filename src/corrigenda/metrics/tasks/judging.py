"""How a generated answer to an item of another task is judged: by our rule, and as published.

| kind | score | published score (`legacy_task_score`) |
|---|---|---|
| `gsm8k` | the first number of the answer is the right one | its digits occur in the answer |
| `nq` | the first line is a right answer, word by word | a span of words is one; see below |
| `rte`, `sst2`, `boolq` | the first word is the right one | answers not read are left out |
| `mutual` | the first word is the right letter | the letter occurs in any word |
| `mmlu` | the same | a letter is the last of a line |
| `nli`, `cola`, `mrpc` | the first word is the right one | it occurs in any word |
| `samsum` | mean F1 of ROUGE-1, -2 and -L | the same without the last 13 characters |
| `conll` | F1 of entities over all texts and types | share of entities found, mean over types |

Published scores read an answer beyond its first line. Of `nq`, a text in which single words are
right answers counts once for each of them, and after the first right answer of several words all
later texts are searched from their first word only. `conll` does not count wrong entities.

Reference: Gu et al. 2024 and unified-model-editing (Gupta et al. 2024). Not followed: their
programs search spans of `nq` in the prompt as well, take ROUGE from another package, cut the last
word of entities that end a sentence, and count a text without miscellaneous entities as missed.
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
from corrigenda.metrics.published_strings import published_normalise
from corrigenda.metrics.selection import tag_of
from corrigenda.metrics.strings import equals, normalise
from corrigenda.metrics.tasks.scores import right_place
from corrigenda.rows import Row

_TRIMMED = 13
_NUMBER = re.compile(r"[-\u2212]?\d[\d,]*(?:\.\d+)?")
_WORD = re.compile(r"\w+")
_BETWEEN = re.compile("[,;\u3001\uff0c\uff1b\u060c\u061b]")
_ROUGE = ("rouge1", "rouge2", "rougeL")


class Credit(NamedTuple):
    """What an answer adds to a score, which is a ratio of sums.

    Attributes:
        counted: Added to the numerator.
        possible: Added to the denominator.
    """

    counted: float
    possible: float = 1.0


Judge = Callable[[str, Row], Credit]
"""Returns the credit of a text as the answer that a row expects."""


def judge_for(row: Row, *, legacy: bool = False) -> Judge:
    """Return the judge of the answers of one model to all items of a task, in their order.

    Args:
        row: One of the items; its tag `kind` decides.
        legacy: Whether as published; such a judge may depend on earlier answers.

    Raises:
        MalformedRows (CG507): the row is of no known kind.
    """
    return _LEGACY[_kind_of(row)]() if legacy else _JUDGES[_kind_of(row)]


def read_place(text: str, row: Row, *, legacy: bool = False) -> int:
    """Return the place of the choice that an answer names; -1 for none.

    Raises:
        MalformedRows (CG507): the row is of no known kind, or has no right choice.
    """
    choices = _choices_of(row)
    return _READERS[_kind_of(row)].place(text, choices) if legacy else read_choice(text, choices)


def has_choices(row: Row) -> bool:
    """Whether the answer to an item is one of several choices.

    Raises:
        MalformedRows (CG507): the row is of no known kind.
    """
    return _kind_of(row) in _READERS


def read_choice(text: str, choices: Sequence[str]) -> int:
    """Return the place of the choice that is the first word of an answer; -1 for none.

    Letters are compared as they are, words in any case.

    Example:
        >>> read_choice(" (B) because", "ABCD"), read_choice(" a boy", "ABCD")
        (1, -1)
        >>> read_choice(" Yes.", ["no", "yes"]), read_choice(" yesterday", ["no", "yes"])
        (1, -1)
    """
    word = _WORD.search(first_line(text))
    if word is None:
        return -1
    first = word.group()
    same = [first == one or (len(one) > 1 and first.lower() == one.lower()) for one in choices]
    return same.index(True) if any(same) else -1


def read_number(text: str) -> Decimal | None:
    """Return the first number of an answer: digits with commas between, and decimals.

    Example:
        >>> read_number(" $1,200 in all"), read_number(" 120.")
        (Decimal('1200'), Decimal('120'))
    """
    found = _NUMBER.search(first_line(text))
    return Decimal(found.group().replace(",", "").replace("\u2212", "-")) if found else None


def read_entities(text: str) -> Counter[str]:
    """Count the entities that an answer lists with commas between, after `normalise`.

    Example:
        >>> sorted(read_entities(" Ann Lee, the UN."))
        ['ann lee', 'un']
    """
    listed = map(normalise, _BETWEEN.split(first_line(text)))
    return Counter(one for one in listed if one not in ("", "none"))


@lru_cache(maxsize=1 << 14)
def mean_rouge(text: str, reference: str) -> float:
    """Return the mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L, in lower case, without stemming.

    Raises:
        MissingExtra (CG504): rouge-score is not installed.

    Example:
        >>> mean_rouge("the cat sat", "The cat sat."), mean_rouge("a dog", "The cat sat.")
        (1.0, 0.0)
    """
    if importlib.util.find_spec("rouge_score") is None:
        raise MissingExtra(
            "summaries are judged by rouge-score.", hint='pip install "corrigenda[metrics]"'
        )
    from rouge_score.rouge_scorer import RougeScorer

    found = RougeScorer(list(_ROUGE), use_stemmer=False).score(reference, text)
    return mean(found[one].fmeasure for one in _ROUGE)


def _judge_choice(text: str, row: Row) -> Credit:
    return Credit(float(read_choice(text, _choices_of(row)) == right_place(row)))


def _judge_number(text: str, row: Row) -> Credit:
    right = read_number(_spellings_of(row)[0])
    return Credit(float(right is not None and read_number(text) == right))


def _judge_exact(text: str, row: Row) -> Credit:
    return Credit(float(any(equals(first_line(text), one) for one in _spellings_of(row))))


def _judge_summary(text: str, row: Row) -> Credit:
    return Credit(mean_rouge(first_line(text), _spellings_of(row)[0]))


def _judge_entities(text: str, row: Row) -> Credit:
    """2 TP over (entities named + entities expected), of which the ratio of sums is F1."""
    named = read_entities(text)
    expected = Counter(normalise(group[0]) for group in row.expected)
    return Credit(2.0 * (named & expected).total(), float(named.total() + expected.total()))


class _ChoiceReader(NamedTuple):
    """How a published program finds a choice in an answer.

    Attributes:
        order: Choices in the order in which they are searched; as listed if empty.
        ignores_case: Whether upper and lower case are the same.
        whole: Whether the answer must be nothing else.
        suffix: Text that must follow the choice.
        drops_unread: Whether answers without a choice are left out.
    """

    order: tuple[str, ...] = ()
    ignores_case: bool = False
    whole: bool = False
    suffix: str = ""
    drops_unread: bool = False

    def place(self, text: str, choices: Sequence[str]) -> int:
        """Place of the choice; -1 for none."""
        text = text.lower() if self.ignores_case else text
        for one in self.order or choices:
            wanted = (one.lower() if self.ignores_case else one) + self.suffix
            if (text.strip() == wanted) if self.whole else (wanted in text):
                return choices.index(one)
        return -1

    def __call__(self, text: str, row: Row) -> Credit:
        place = self.place(text, _choices_of(row))
        possible = 0.0 if self.drops_unread and place < 0 else 1.0
        return Credit(float(place == right_place(row)), possible)


_READERS: Mapping[str, _ChoiceReader] = {
    "boolq": _ChoiceReader(ignores_case=True, whole=True, drops_unread=True),
    "cola": _ChoiceReader(("Yes", "No")),
    "mmlu": _ChoiceReader(suffix="\n"),
    "mrpc": _ChoiceReader(("Yes", "No")),
    "mutual": _ChoiceReader(),
    "nli": _ChoiceReader(("True", "False")),
    "rte": _ChoiceReader(("True", "False"), ignores_case=True, drops_unread=True),
    "sst2": _ChoiceReader(("positive", "negative"), ignores_case=True, drops_unread=True),
}


class _SpanSearch:
    """The published search for right answers in a text, which stays stopped in later texts."""

    def __init__(self) -> None:
        self.stopped = False

    def __call__(self, text: str, row: Row) -> Credit:
        right = set(map(published_normalise, _spellings_of(row)))
        words = published_normalise(text).split(" ")
        if words[0] in right or words[-1] in right:
            return Credit(1.0)
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
        return Credit(float(count))


def _judge_substring(text: str, row: Row) -> Credit:
    return Credit(float(_spellings_of(row)[0] in text))


def _judge_trimmed(text: str, row: Row) -> Credit:
    shortened = text[:-_TRIMMED]
    return Credit(mean_rouge(shortened, _spellings_of(row)[0]) if len(shortened) > 1 else 0.0)


def _judge_recall(text: str, row: Row) -> Credit:
    """Entities of a type that occur in the answer; wrong entities are not counted."""
    expected = [group[0] for group in row.expected]
    return Credit(float(sum(one in text for one in expected)), float(len(expected)))


_JUDGES: Mapping[str, Judge] = {
    **dict.fromkeys(_READERS, _judge_choice),
    "conll": _judge_entities,
    "gsm8k": _judge_number,
    "nq": _judge_exact,
    "samsum": _judge_summary,
}
_LEGACY: Mapping[str, Callable[[], Judge]] = {
    **{kind: lambda own=own: own for kind, own in _READERS.items()},
    "conll": lambda: _judge_recall,
    "gsm8k": lambda: _judge_substring,
    "mutual": lambda: _judge_substring,
    "nq": _SpanSearch,
    "samsum": lambda: _judge_trimmed,
}
"""Makers of the judges of one evaluation."""


def _kind_of(row: Row) -> str:
    kind = tag_of(row, "kind")
    if kind is None or kind not in _JUDGES:
        raise MalformedRows(
            "a generated answer of a task does not say of which kind its item is.",
            where=row.label,
            hint=f'Give it the tag "kind=<kind>", one of {", ".join(sorted(_JUDGES))}.',
        )
    return kind


def _choices_of(row: Row) -> list[str]:
    place = right_place(row)
    return [*row.rivals[:place], _spellings_of(row)[0], *row.rivals[place:]]


def _spellings_of(row: Row) -> list[str]:
    if not row.expected or not row.expected[0]:
        raise MalformedRows(
            "a generated answer of a task is expected to be nothing.",
            where=row.label,
            hint="Give its accepted spellings.",
        )
    return row.expected[0]
