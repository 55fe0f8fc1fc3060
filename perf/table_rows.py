"""Rows of `real_table.py`: which are kept, and how they are shown. No model, no torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

REGIMES = ("single", "batch", "sequence", "records")
"""Regimes in the order of the tables; `records` are single edits of CounterFact."""

NOTHING = "-"


class TableRow(TypedDict):
    """One method of one model in one regime; fields without values are left out.

    Attributes:
        model: Name of the model.
        label: The method, with its variant.
        regime: One of `REGIMES`.
        facts: How many facts were to be edited.
        origin: What the figures depend on: format, versions, weights, options, facts.
        edited: How many were edited.
        asked: How many were asked about.
        shares: Name of a share, and its value with the ends of its interval.
        perplexity: Mean ratio of perplexities, edited over unedited, and the largest.
        seconds: Seconds of the processor of an edit, per fact.
        fit_seconds: The same of the fit.
        bytes: Size of a saved patch, per fact.
        refused: Code of an error, and of how many facts.
        error: Why there are no figures.
        threads: Threads that were used.
    """

    model: str
    label: str
    regime: str
    facts: int
    origin: dict[str, str]
    edited: NotRequired[int]
    asked: NotRequired[int]
    shares: NotRequired[dict[str, list[float]]]
    perplexity: NotRequired[list[float]]
    seconds: NotRequired[float]
    fit_seconds: NotRequired[float]
    bytes: NotRequired[float]
    refused: NotRequired[dict[str, int]]
    error: NotRequired[str]
    threads: NotRequired[int]


Origins = Mapping[str, Mapping[str, str]]
"""Label of a method, and what its figures depend on now."""

SHARES = ("efficacy", "paraphrase", "locality", "same_subject")
CHAT = tuple(f"chat {name}" for name in SHARES)
SCORES = ("ES", "PS", "NS", "S")

_EDITS_HEAD = (
    *("method", "facts", "efficacy", "paraphrase", "neighbours", "same subject"),
    *("perplexity", "CPU s a fact", "KiB a fact", "fit, CPU s"),
)
_CHAT_HEAD = ("method", "facts", "efficacy", "paraphrase", "neighbours", "same subject")
_SCORES_HEAD = ("method", "records", "ES", "PS", "NS", "S", "CPU s a fact")
_TIMES = {"single": "alone", "batch": "at once", "sequence": "in a row", "records": "alone"}


def hash_origin(settings: object) -> str:
    """Return a short hash of plain values."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_rows(file: Path) -> list[TableRow]:
    """Return the rows of a file; none where there is no file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def drop_stale(rows: Iterable[TableRow], model: str, origins: Origins) -> list[TableRow]:
    """Leave out rows of a model that were measured otherwise than they would be now.

    Rows of other models stay, and so do rows of methods that are not among `origins`.
    """
    return [
        row
        for row in rows
        if row["model"] != model
        or row["label"] not in origins
        or row["origin"] == origins[row["label"]]
    ]


def add_row(rows: Iterable[TableRow], new: TableRow) -> list[TableRow]:
    """Put a row in the place of its like; sorted by model, method and regime."""
    kept = [row for row in rows if _identify(row) != _identify(new)]
    return sorted(
        [*kept, new], key=lambda row: (row["model"], row["label"], REGIMES.index(row["regime"]))
    )


def find_missing(
    rows: Iterable[TableRow],
    model: str,
    label: str,
    regimes: Sequence[str],
    facts: Mapping[str, int],
    *,
    again: bool = False,
) -> list[str]:
    """Return the regimes of a method that have no row yet for that many facts.

    Args:
        rows: Rows that are not stale.
        model: The model.
        label: The method.
        regimes: Regimes wanted.
        facts: How many facts each regime is to edit.
        again: Whether rows that hold an error count as missing.
    """
    known = {
        row["regime"]
        for row in rows
        if (row["model"], row["label"]) == (model, label)
        and row["facts"] == facts[row["regime"]]
        and not (again and "error" in row)
    }
    return [regime for regime in regimes if regime not in known]


def replace_block(page: Path, name: str, lines: Iterable[str]) -> None:
    """Replace what stands between two marks of a page: `<!-- NAME: begin -->` and `... end -->`.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = (f"<!-- {name}: {mark} -->" for mark in ("begin", "end"))
    text = page.read_text(encoding="utf-8")
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"{page} has no block {name}")
    page.write_text("\n".join([before + begin, *lines, end + after]), encoding="utf-8")


def write_tables(rows: Iterable[TableRow]) -> list[str]:
    """Return the tables of one model as lines of Markdown."""
    rows = list(rows)
    exam = [row for row in rows if row["regime"] != "records"]
    chat = [row for row in exam if any(name in row.get("shares", {}) for name in CHAT)]
    records = [row for row in rows if row["regime"] == "records"]
    lines: list[str] = []
    if exam:
        lines += ["", *_write_table(_EDITS_HEAD, map(_write_edits, exam))]
    if chat:
        lines += ["", "The same edits, asked in the chat template:", ""]
        lines += _write_table(_CHAT_HEAD, map(_write_chat, chat))
    if records:
        lines += ["", "Records of CounterFact, each edited alone:", ""]
        lines += _write_table(_SCORES_HEAD, map(_write_scores, records))
    return [*lines, ""]


def write_share(share: Sequence[float] | None) -> str:
    """Write a share with the ends of its interval.

    Example:
        >>> write_share([0.9, 0.7348, 0.979]), write_share(None)
        ('0.90 (0.73-0.98)', '-')
    """
    if share is None or math.isnan(share[0]):
        return NOTHING
    value, low, high = share
    if math.isnan(low) or math.isnan(high):
        return f"{value:.2f}"
    return f"{value:.2f} ({low:.2f}-{high:.2f})"


def _write_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_write_line(head), "|" + "---|" * len(head), *map(_write_line, rows)]


def _write_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _write_edits(row: TableRow) -> list[str]:
    if "error" in row:
        return _write_failure(row, len(_EDITS_HEAD))
    return [
        *_write_name(row),
        *(write_share(row.get("shares", {}).get(name)) for name in SHARES),
        _write_ratio(row.get("perplexity")),
        _write_number(row.get("seconds"), 1),
        _write_number(row["bytes"] / 1024 if "bytes" in row else None, 0),
        _write_number(row.get("fit_seconds"), 0),
    ]


def _write_chat(row: TableRow) -> list[str]:
    return [*_write_name(row), *(write_share(row.get("shares", {}).get(name)) for name in CHAT)]


def _write_scores(row: TableRow) -> list[str]:
    if "error" in row:
        return _write_failure(row, len(_SCORES_HEAD))
    return [
        *_write_name(row),
        *(write_share(row.get("shares", {}).get(name)) for name in SCORES),
        _write_number(row.get("seconds"), 1),
    ]


def _write_name(row: TableRow) -> list[str]:
    """Return the cells of the method and of the number of facts, with those refused."""
    edited = row.get("edited", row["facts"])
    facts = f"{edited} {_TIMES[row['regime']]}"
    if row.get("asked", edited) < edited:
        facts += f", {row.get('asked')} asked"
    refused = ", ".join(f"{number} {code}" for code, number in row.get("refused", {}).items())
    return [f"`{row['label']}`", facts + (f" ({refused})" if refused else "")]


def _write_failure(row: TableRow, width: int) -> list[str]:
    text = row.get("error", "").replace("|", "\\|").replace("\n", " ")
    return [*_write_name(row), text, *[""] * (width - 3)]


def _write_ratio(ratio: Sequence[float] | None) -> str:
    if ratio is None:
        return NOTHING
    mean, largest = (f"{one:.3g}" for one in ratio)
    return mean if mean == largest else f"{mean} (<= {largest})"


def _write_number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"


def _identify(row: TableRow) -> tuple[str, str, str]:
    return row["model"], row["label"], row["regime"]
