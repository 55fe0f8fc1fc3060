"""Lines of a corrections file: CSV, TSV, JSON lines, JSON and Excel; bad ones do not stop others.

Imports no torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, cast

from corrigenda.almanac.world import load_world
from corrigenda.errors import CorrigendaError, MalformedFacts, MissingExtra
from corrigenda.fact_records import LISTS, FactRow, read_rows
from corrigenda.facts import Fact, as_facts
from corrigenda.text_files import UnreadableText

_COLUMNS = {
    "question": "prompt",
    "answer": "target",
    "new answer": "target",
    "correct answer": "target",
    "old": "before",
    "old answer": "before",
    "wrong answer": "before",
    "alias": "aliases",
    "paraphrase": "paraphrases",
    "neighbour": "neighbours",
    "neighbor": "neighbours",
    "neighbors": "neighbours",
    "same subject": "same_subject",
}
_RELATION = "relation"
_EXCEL = (".xlsx", ".xls", ".ods")
_HINT = (
    "Columns: prompt (or question), answer, and where needed subject; or subject, relation, answer."
)


class FactLine(NamedTuple):
    """One line of a corrections file.

    Attributes:
        number: Its number in the file, from 1; in a table the line of names is the first.
        fact: What it says; None where it cannot be read.
        problem: Why it cannot be read; empty where it can.
    """

    number: int
    fact: Fact | None
    problem: str = ""


def read_lines(path: str | Path) -> list[FactLine]:
    """Return the lines of a file of corrections, those that cannot be read with the reason.

    The columns are `prompt` or `question`, `answer` or `target`, and optionally `subject`,
    `old answer`, `paraphrases`, `neighbours`, `same subject`, `aliases`; several texts in one cell
    are separated by `|`. Instead of a prompt there may be `subject` and `relation`, in words. Field
    names of other frameworks are understood as by `corrigenda.read_facts`. Excel files are read by
    polars (extra `excel`).

    Raises:
        MalformedFacts (CG101): the file cannot be read at all, or holds nothing.
        MissingExtra (CG504): an Excel file, and its reader is not installed.
    """
    path = Path(path)
    try:
        rows = _read_excel(path) if path.suffix.lower() in _EXCEL else read_rows(path)
        found = [_parse(row, path.name) for row in rows]
    except UnreadableText as error:
        raise MalformedFacts(f"{path} cannot be read: {error}.", hint=_HINT) from error
    if not found:
        raise MalformedFacts("the file holds no corrections.", where=str(path), hint=_HINT)
    return found


def _parse(row: FactRow, name: str) -> FactLine:
    number = int(row.place.split()[-1])
    if isinstance(row.value, UnreadableText):
        return FactLine(number, None, str(row.value))
    if not isinstance(row.value, Mapping):
        return FactLine(number, None, "an object with fields was expected")
    try:
        record = _name_fields(cast("Mapping[str, object]", row.value))
        (fact,) = as_facts({"name": f"{name}:{number}", **record})
    except CorrigendaError as error:
        return FactLine(number, None, f"{error.code} {error.message}")
    return FactLine(number, fact)


def _name_fields(record: Mapping[str, object]) -> dict[str, object]:
    """Return a record with the field names of facts, and a prompt where it has a relation."""
    fields: dict[str, object] = {}
    for given, value in record.items():
        plain = " ".join(given.strip().lower().replace("_", " ").split())
        name = _COLUMNS.get(plain, given.strip())
        if name in LISTS and isinstance(value, str):
            fields[name] = [text for text in value.split("|") if text.strip()]
        elif value is not None and value != "":
            fields[name] = value
    relation = fields.pop(_RELATION, None)
    if relation is not None and "prompt" not in fields:
        if not isinstance(fields.get("subject"), str):
            raise MalformedFacts("a relation needs a subject.", hint=_HINT)
        fields["prompt"] = word_relation(str(relation), str(fields["subject"]))
    return fields


def word_relation(relation: str, subject: str) -> str:
    """Return a prompt for a relation in words, as the almanac words it where it has it.

    Example:
        >>> word_relation("capital", "Atlantis"), word_relation("tallest tower", "Atlantis")
        ('The capital of Atlantis is', 'The tallest tower of Atlantis is')
    """
    words = relation.strip().lower()
    plain = f"The {words} of {{s}} is"
    for one in load_world().relations.values():
        if one.name.lower() == words and f"{plain} {{o}}" not in one.clozes:
            # The words are the name of a relation that is worded otherwise.
            return one.clozes[0].removesuffix(" {o}").replace("{s}", subject)
    return plain.replace("{s}", subject)


def _read_excel(path: Path) -> Iterator[FactRow]:
    """Yield the rows of the first sheet, as texts.

    Raises:
        MissingExtra (CG504): fastexcel, by which polars reads Excel files, is not installed.
        UnreadableText: it is no such file.
    """
    if importlib.util.find_spec("fastexcel") is None:
        raise MissingExtra(
            "Excel files are read by fastexcel.",
            where=str(path),
            hint="Install it: pip install 'corrigenda[excel]'; or save the table as CSV.",
        )
    import polars

    try:
        table = polars.read_excel(path, infer_schema_length=0)
    except Exception as error:
        raise UnreadableText(f"no Excel file ({error})") from error
    for number, record in enumerate(table.iter_rows(named=True), start=2):
        if any(value not in (None, "") for value in record.values()):
            yield FactRow(f"line {number}", record)
