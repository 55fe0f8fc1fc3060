"""Rows as a run would record them, in few words."""

from __future__ import annotations

from corrigenda.cases import Against, Protocol
from corrigenda.rows import Row

FED, GREEDY, RANK = Protocol.TEACHER_FORCED, Protocol.GREEDY, Protocol.RANK


def fed(case: str, values: list[int], *, role: str = "reliability", probe: int = 0, **more) -> Row:
    """A teacher-forced answer with these tokens right (1) or wrong (0)."""
    wanted = [10 + i for i in range(len(values))]
    given = [token if right else 99 for token, right in zip(wanted, values, strict=True)]
    return Row(
        case=case,
        role=role,
        probe=probe,
        protocol=FED,
        token_ids=wanted,
        predicted=given,
        **more,
    )


def said(case: str, text: str, expected: str | list[list[str]], **more) -> Row:
    """A greedy answer."""
    groups = [[expected]] if isinstance(expected, str) else expected
    more.setdefault("role", "reliability")
    return Row(case=case, protocol=GREEDY, answer=text, expected=groups, **more)


def ranked(case: str, own: float, rival: float, **more) -> Row:
    """An expected answer and its rival, by their mean negative log-probability."""
    more.setdefault("role", "reliability")
    more.setdefault("against", Against.BEFORE)
    return Row(case=case, protocol=RANK, log_probs=[-own], rival_log_probs=[[-rival]], **more)
