"""Answers of several runs to the probes of one case, with a mark where they are right or wrong."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence

from corrigenda.cases import Against, Protocol
from corrigenda.metrics.locality import UNCHANGED
from corrigenda.metrics.selection import as_before, probability
from corrigenda.metrics.success import MEASURES, measure_named, rival_probabilities
from corrigenda.reports.sections import ProbeAnswer, ProbeAnswers, SideBySide
from corrigenda.rows import Row, Stage
from corrigenda.run.store import Recorded

# More of one role are left out; benchmarks have up to ten neighbours a case.
_MOST_OF_ROLE = 5


def compare_answers(runs: Sequence[Recorded], case: str | None = None) -> SideBySide | None:
    """Return the answers of all runs to the probes of one case.

    Args:
        runs: Runs on the same cases.
        case: The case; the first with an answer if None.

    Returns:
        At most five probes of each role; None if no answer was recorded.
    """
    tables = [_collect_answers(run) for run in runs]
    wanted = case if case is not None else next(iter(tables[0]), None)
    if wanted is None or not tables[0].get(wanted):
        return None
    probes: list[ProbeAnswers] = []
    of_role = Counter[str]()
    for key, row in sorted(tables[0][wanted].items()):
        of_role[row.role] += 1
        if of_role[row.role] > _MOST_OF_ROLE:
            continue
        answers = [table.get(wanted, {}).get(key) for table in tables]
        (before,) = as_before([row])
        # Judged as an answer of an edit that changed nothing.
        before = dataclasses.replace(before, stage=Stage.AFTER)
        probes.append(
            ProbeAnswers(
                role=row.role,
                protocol=str(row.protocol),
                prompt=row.prompt,
                expected=" and ".join("/".join(group) for group in row.expected),
                before=_describe_answer(before, judged=row.against is not Against.UNEDITED),
                answers=tuple(
                    ProbeAnswer("", None) if one is None else _describe_answer(one)
                    for one in answers
                ),
            )
        )
    return SideBySide(wanted, tuple(probes))


def _collect_answers(run: Recorded) -> dict[str, dict[tuple[int, int], Row]]:
    """Collect the last answer to every probe, by case, then probe and rounds done."""
    found: dict[str, dict[tuple[int, int], Row]] = defaultdict(dict)
    for row in run.rows:
        if row.stage is Stage.AFTER and not row.skipped:
            key = (row.probe, row.rounds)
            known = found[row.case].get(key)
            if known is None or row.edits >= known.edits:
                found[row.case][key] = row
    return found


def _describe_answer(row: Row, *, judged: bool = True) -> ProbeAnswer:
    """Return the answer as text, and whether it is right by the default measure of its metric."""
    text = _write_answer(row)
    if not (text and judged):
        return ProbeAnswer(text, None)
    if row.against is Against.UNEDITED:
        measures = UNCHANGED.get(row.protocol)
        value = next(iter(measures.values()))(row) if measures else ""
    else:
        has_measure = bool(row.expected) and row.protocol in MEASURES
        value = measure_named(row.protocol)(row) if has_measure else ""
    return ProbeAnswer(text, None if isinstance(value, str) else value == 1)


def _write_answer(row: Row) -> str:
    """Write what was generated, which answer is likelier, or how many tokens are right."""
    match row.protocol:
        case Protocol.GREEDY | Protocol.SAMPLED | Protocol.GENERATE | Protocol.CHAT:
            return row.answer or ""
        case Protocol.TEACHER_FORCED:
            if row.token_ids is None or row.predicted is None:
                return ""
            right = sum(a == b for a, b in zip(row.token_ids, row.predicted, strict=True))
            return f"{right} of {len(row.token_ids)} tokens"
        case Protocol.RANK:
            if not (row.log_probs and row.expected):
                return ""
            chances = {row.expected[0][0]: probability(row.log_probs)}
            chances |= zip(row.rivals, rival_probabilities(row), strict=False)
            best = max(chances, key=chances.__getitem__)
            return f"{best} (p {chances[best]:.3g})"
