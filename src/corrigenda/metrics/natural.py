"""Natural answers, judged whole: by rules, by overlap, by a judge, and how far these agree.

Answers of `generate` and `chat` end by themselves, with no more known of the expected one than a
limit on all. A judge is asked while the run is made; its verdicts are in the rows as it gave them.

| measure | 1 where |
|---|---|
| `:exact` | the whole answer is the expected one |
| `:contains` | the expected answer occurs in it |
| `:wild` | all before its first full stop or line break is the expected answer (WILD) |
| `:f1` | F1 of words in common with the expected answer |
| `:judge` | the judge says that it is right; absent without a judge |
| `:rouge_l`, `:rouge_1`, `:rouge_2` | recall of ROUGE; `_f1` its F1 |
| `:bleu` | BLEU of words; `:bleu_characters_legacy` of characters, as published for UnKE |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from corrigenda.cases import NATURAL, Protocol
from corrigenda.metrics.estimate import (
    BOOTSTRAP,
    AnswerValue,
    Bootstrap,
    Estimate,
    over_cases,
)
from corrigenda.metrics.metric import AS_BEFORE, LOWER, POSITIVE, Metric, define
from corrigenda.metrics.overlap import RougeKind, bleu, rouge, word_f1
from corrigenda.metrics.published_strings import published_equals, published_normalise
from corrigenda.metrics.selection import required_answer, select
from corrigenda.metrics.strings import contains, equals, has_characters
from corrigenda.rows import Row

NOT_JUDGED = "no judge was asked"
NOT_READ = "the verdict cannot be read"
NOT_ENDED = "it was not recorded whether the answer ended"
NO_WORDS = "no words in the expected answer"
SEVERAL_GROUPS = "several answers expected: only `contains` and `judge` can tell"

_STOP = re.compile(r"[.\n]")
_RIGHT = frozenset({"a", "yes", "correct", "right", "true", "1"})
_WRONG = frozenset({"b", "no", "incorrect", "wrong", "false", "0"})
_WORD = re.compile(r"\w+")

_Measure = Callable[[Row], "float | str"]


def read_verdict(text: str) -> bool | None:
    """Return what a judge says: its first word among those for right and wrong; None for neither.

    Example:
        >>> read_verdict("A"), read_verdict("**No**, it names another city."), read_verdict("maybe")
        (True, False, None)
    """
    for word in _WORD.findall(text.lower()):
        if word in _RIGHT:
            return True
        if word in _WRONG:
            return False
    return None


def judged_right(row: Row) -> float | str:
    """1 if the judge says that the answer is right."""
    if row.verdict is None:
        return NOT_JUDGED
    value = read_verdict(row.verdict)
    return NOT_READ if value is None else float(value)


def whole_answer(row: Row) -> float | str:
    """1 if the whole answer is an expected spelling and nothing else."""
    return _best(row, lambda text, one: float(equals(text, one)))


def holds_answer(row: Row) -> float | str:
    """1 if the answer contains a spelling of every expected group."""
    text = required_answer(row)
    if not row.expected or not all(any(map(has_characters, one)) for one in row.expected):
        return NO_WORDS
    return float(all(any(contains(text, one) for one in group) for group in row.expected))


def wild_answer(row: Row) -> float | str:
    """1 if all before the first full stop or line break is an expected spelling (WILD).

    Compared by the rule of published programs. A target with a full stop inside, "J. R. R.
    Tolkien", can never be met: the published rule has this fault too.
    """
    cut = _STOP.split(required_answer(row).lstrip(), maxsplit=1)[0]
    return _best(row, lambda _, one: float(published_equals(cut, one)), published_normalise)


def shared_words(row: Row) -> float | str:
    """F1 of words with the nearest expected spelling."""
    return _best(row, word_f1)


def _make_rouge(kind: RougeKind, part: str) -> _Measure:
    def measure(row: Row) -> float | str:
        return _best(row, lambda text, one: getattr(rouge(text, one, kind), part))

    return measure


def word_bleu(row: Row) -> float | str:
    """BLEU of words."""
    return _best(row, bleu)


def character_bleu(row: Row) -> float | str:
    """BLEU of characters, as published for UnKE."""
    return _best(row, lambda text, one: bleu(text, one, characters=True))


MEASURES: dict[str, _Measure] = {
    "exact": whole_answer,
    "contains": holds_answer,
    "f1": shared_words,
    "wild": wild_answer,
    "judge": judged_right,
    "rouge_l": _make_rouge("rougeL", "recall"),
    "rouge_1": _make_rouge("rouge1", "recall"),
    "rouge_2": _make_rouge("rouge2", "recall"),
    "rouge_l_f1": _make_rouge("rougeL", "f1"),
    "bleu": word_bleu,
    "bleu_characters_legacy": character_bleu,
}
"""Measures of natural answers; the first is the default."""

RULES = ("exact", "contains")
"""Rules that a judge is compared with."""


def judge_agreement(
    rows: Sequence[Row],
    *,
    protocol: Protocol,
    rule: str,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Share of judged answers on which judge and rule say the same.

    Args:
        rows: Of one run; all roles that were judged count.
        protocol: `generate` or `chat`.
        rule: Name of a measure in `RULES`.
        bootstrap: How to find the interval.
    """
    judged = [row for row in rows if row.verdict is not None and row.protocol == protocol]
    skipped: dict[str, int] = {}
    items: list[AnswerValue] = []
    for role in dict.fromkeys(row.role for row in judged):
        for row in select([one for one in judged if one.role == role], role, protocol=protocol)[0]:
            verdict, ruled = judged_right(row), MEASURES[rule](row)
            reason = next((one for one in (verdict, ruled) if isinstance(one, str)), None)
            if reason is not None:
                skipped[reason] = skipped.get(reason, 0) + 1
            else:
                items.append(AnswerValue(row.case, float(verdict == ruled)))
    name = f"judge_agreement@{protocol}:{rule}"
    return over_cases(name, items, skipped=skipped, bootstrap=bootstrap)


def not_ended(
    rows: Sequence[Row],
    role: str = "reliability",
    *,
    protocol: Protocol,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Share of answers that reached the limit on their tokens without ending."""
    found, skipped = select(rows, role, protocol=protocol)
    items: list[AnswerValue] = []
    for row in found:
        if row.ended is None:
            skipped[NOT_ENDED] += 1
        else:
            items.append(AnswerValue(row.case, float(not row.ended)))
    return over_cases(f"not_ended@{protocol}", items, skipped=skipped, bootstrap=bootstrap)


def answer_words(
    rows: Sequence[Row],
    role: str = "reliability",
    *,
    protocol: Protocol,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Mean number of words of an answer."""
    found, skipped = select(rows, role, protocol=protocol)
    items = [AnswerValue(row.case, float(len(required_answer(row).split()))) for row in found]
    name = f"answer_words@{protocol}"
    return over_cases(name, items, skipped=skipped, bootstrap=bootstrap, share=False)


def _best(
    row: Row,
    measure: Callable[[str, str], float],
    words: Callable[[str], object] = has_characters,
) -> float | str:
    """Return the best value over the spellings of the one expected group."""
    text = required_answer(row)
    if not row.expected or not any(map(words, row.expected[0])):
        return NO_WORDS
    if len(row.expected) > 1:
        return SEVERAL_GROUPS
    return max(measure(text, one) for one in row.expected[0])


METRICS: tuple[Metric, ...] = (
    *(
        define(
            f"judge_agreement@{protocol}:{rule}",
            "answers on which judge and rule agree",
            judge_agreement,
            reads="reliability",
            options={"protocol": protocol, "rule": rule},
        )
        for protocol in NATURAL
        for rule in RULES
    ),
    *(
        define(
            f"not_ended@{protocol}",
            "answers that reached the limit on their length",
            not_ended,
            reads="reliability",
            better=LOWER,
            options={"protocol": protocol},
        )
        for protocol in NATURAL
    ),
    *(
        define(
            f"answer_words@{protocol}",
            "words of an answer",
            answer_words,
            reads="reliability",
            better=AS_BEFORE,
            span=POSITIVE,
            scale=1.0,
            options={"protocol": protocol},
        )
        for protocol in NATURAL
    ),
)
