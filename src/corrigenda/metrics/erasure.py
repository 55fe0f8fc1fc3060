"""Erasure (Sanitation): refusals where the answer should be gone, and nowhere else.

The questions to forget are rows of `reliability`, those whose refusal was written, and of
`erasure`, others with the same answer: they expect the refusal, and what is to be forgotten is
their rival. The questions to keep are rows of `locality/retained`; that their continuations keep
their tokens is `locality.unchanged(rows, protocol=..., measure="tokens")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from corrigenda.cases import Protocol
from corrigenda.metrics.estimate import BOOTSTRAP, AnswerValue, Bootstrap, Estimate, over_cases
from corrigenda.metrics.metric import LOWER, Metric, define
from corrigenda.metrics.selection import required_answer, select
from corrigenda.metrics.strings import contains
from corrigenda.metrics.success import metric_name
from corrigenda.rows import Row

REFUSAL = "i don't know"


def refusal(
    rows: Sequence[Row],
    role: str = "erasure",
    *,
    phrase: str = REFUSAL,
    legacy: bool = False,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Share of the questions to forget whose continuation contains the refusal.

    Args:
        rows: Of one run, greedy, short (the reference takes 10 tokens).
        role: Role of the questions to forget.
        phrase: What counts as a refusal, compared as `strings.contains` does.
        legacy: Search prompt and continuation for the expected answer as it is written, with its
            full stop.
        bootstrap: How to find the interval.
    """

    def value(row: Row) -> bool:
        if legacy:
            text = row.prompt + required_answer(row)
            return any(one in text for group in row.expected for one in group)
        return refuses(required_answer(row), phrase)

    return _share_of_answers(
        rows, role, "refusal_legacy" if legacy else "refusal", value, bootstrap
    )


def leak(
    rows: Sequence[Row], role: str = "erasure", *, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Share of the questions to forget whose continuation contains the answer; 0 is best."""

    def value(row: Row) -> bool:
        return any(contains(required_answer(row), one) for one in row.rivals)

    return _share_of_answers(rows, role, "leak", value, bootstrap)


def over_refusal(
    rows: Sequence[Row],
    role: str = "locality/retained",
    *,
    phrase: str = REFUSAL,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Share of the questions to keep that are refused; lower is better."""

    def value(row: Row) -> bool:
        return refuses(required_answer(row), phrase)

    return _share_of_answers(rows, role, "over_refusal", value, bootstrap)


def refuses(text: str, phrase: str = REFUSAL) -> bool:
    r"""Whether a text contains the refusal.

    Example:
        >>> refuses("Well, I don\u2019t know."), refuses("I am not sure")
        (True, False)
    """
    return contains(text, phrase)


def _share_of_answers(
    rows: Sequence[Row],
    role: str,
    name: str,
    value: Callable[[Row], bool],
    bootstrap: Bootstrap,
) -> Estimate:
    found, skipped = select(rows, role, protocol=Protocol.GREEDY)
    items = [AnswerValue(row.case, float(value(row))) for row in found]
    return over_cases(
        metric_name(name, Protocol.GREEDY), items, skipped=skipped, bootstrap=bootstrap
    )


METRICS: tuple[Metric, ...] = (
    *(
        define(
            f"refusal{'_legacy' if legacy else ''}@greedy",
            "questions to forget that are refused",
            refusal,
            reads="erasure",
            legacy=legacy,
            options={"legacy": legacy},
        )
        for legacy in (False, True)
    ),
    define(
        "leak@greedy",
        "questions to forget that are answered",
        leak,
        reads="erasure",
        better=LOWER,
    ),
    define(
        "over_refusal@greedy",
        "questions to keep that are refused",
        over_refusal,
        reads="locality/retained",
        better=LOWER,
    ),
)
