"""Records of facts files: JSON lines, JSON lists and CSV, with the field names of other frameworks.

Field names that are understood besides those of `Fact`: of ROME and CounterFact
(`requested_rewrite`, `target_new`, `target_true`, `paraphrase_prompts`, `neighborhood_prompts`,
`case_id`), of EasyEdit (`ground_truth`, `rephrase_prompt`, `locality_prompt`), and of MEND's zsRE
(`src`, `alt`, `rephrase`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, cast

from pydantic import JsonValue

from corrigenda.text_files import (
    NotJson,
    UnreadableText,
    parse_json,
    parse_json_lines,
    read_text,
)

LISTS = ("aliases", "paraphrases", "neighbours", "same_subject")
"""Fields with several texts; in CSV they are separated by `|`."""

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_RENAMED = {
    "target_new": "target",
    "alt": "target",
    "src": "prompt",
    "target_true": "before",
    "ground_truth": "before",
    "rephrase": "paraphrases",
    "rephrase_prompt": "paraphrases",
    "rephrase_prompts": "paraphrases",
    "paraphrase_prompts": "paraphrases",
    "neighborhood_prompts": "neighbours",
    "locality_prompt": "neighbours",
    "locality_prompts": "neighbours",
    "case_id": "name",
}
# Questions and ids of other frameworks that say nothing about what to write.
_UNUSED = frozenset(
    {
        "answers",
        "attribute_prompts",
        "cond",
        "generation_prompts",
        "id",
        "loc",
        "loc_ans",
        "locality",
        "locality_ground_truth",
        "pararel_idx",
        "portability",
        "portability_ground_truth",
        "portability_prompt",
        "pred",
        "question",
        "relation_id",
        "target_new_id",
        "target_true_id",
    }
)


class FactRow(NamedTuple):
    """One record of a file.

    Attributes:
        place: Where it is, as "line 3" or "record 3".
        value: What is there, or why it cannot be read.
    """

    place: str
    value: object


class Translation(NamedTuple):
    """A record in the field names of `Fact`.

    Attributes:
        fields: The fields; names that are not understood are kept, to be refused.
        unused: Fields of other frameworks that were left out.
    """

    fields: dict[str, object]
    unused: frozenset[str]


def read_rows(path: Path) -> Iterator[FactRow]:
    """Yield the records of a file, by its content: CSV by the ending, else JSON.

    Raises:
        UnreadableText: the file cannot be read at all.
    """
    text = read_text(path)
    separator = _SEPARATORS.get(path.suffix.lower())
    if separator is not None:
        return _read_table(text, separator)
    start = text.lstrip()
    if start.startswith("["):
        whole = _parse(text)
        if isinstance(whole, list):
            return (
                FactRow(f"record {number}", value) for number, value in enumerate(whole, start=1)
            )
    # One object over several lines.
    if start.startswith("{") and _parse(start.partition("\n")[0]) is None:
        whole = _parse(text)
        if whole is not None:
            return iter([FactRow("record 1", whole)])
    return (FactRow(f"line {number}", value) for number, value in parse_json_lines(text))


def translate(record: Mapping[str, object]) -> Translation:
    """Return a record with the field names of `Fact`.

    Example:
        >>> translate({"prompt": "{} is in", "target_new": {"str": "Italy"}, "case_id": 3}).fields
        {'prompt': '{} is in', 'target': 'Italy', 'name': '3'}
    """
    inner = record.get("requested_rewrite")
    if isinstance(inner, list) and len(cast("list[object]", inner)) == 1:
        inner = cast("list[object]", inner)[0]
    if isinstance(inner, Mapping):
        rest = {name: value for name, value in record.items() if name != "requested_rewrite"}
        record = {**rest, **cast("Mapping[str, object]", inner)}
    fields: dict[str, object] = {}
    unused: set[str] = set()
    for name, value in record.items():
        if name in _UNUSED:
            unused.add(name)
            continue
        own = _RENAMED.get(name, name)
        if own != name and own in record:
            # Both names of one field: the other framework's is refused as foreign.
            own = name
        plain = _unwrap(own, name, value)
        if own in LISTS and own in fields:
            plain = [*_as_list(fields[own]), *_as_list(plain)]
        if plain is not None:
            fields[own] = plain
    return Translation(fields, frozenset(unused))


def _unwrap(own: str, name: str, value: object) -> object:
    """Return the text of `{"str": ...}`, of a list of old answers, and of a numeric id."""
    if isinstance(value, Mapping) and "str" in value:
        value = cast("Mapping[str, object]", value)["str"]
    if own == "before" and name != own and isinstance(value, list):
        several = cast("list[object]", value)
        value = several[0] if several else None
    if name == "case_id" and isinstance(value, int):
        value = str(value)
    if own in LISTS and value in ("", None):
        return None
    return value


def _as_list(value: object) -> list[object]:
    return list(cast("list[object]", value)) if isinstance(value, list | tuple) else [value]


def _parse(text: str) -> JsonValue | UnreadableText:
    """Return what JSON text holds, or why it is beyond the limits; None where it is no JSON."""
    try:
        return parse_json(text)
    except NotJson:
        return None
    except UnreadableText as error:
        return error


def _read_table(text: str, separator: str) -> Iterator[FactRow]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        head = [name.strip() for name in next(reader, [])]
        for row in reader:
            place = f"line {reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(head):
                yield FactRow(place, UnreadableText(f"{len(row)} cells, but {len(head)} columns"))
                continue
            cells = dict(zip(head, row, strict=True))
            yield FactRow(place, {name: _cell(name, cell) for name, cell in cells.items() if cell})
    except csv.Error as error:
        yield FactRow(f"line {reader.line_num}", UnreadableText(f"not CSV ({error})"))


def _cell(name: str, text: str) -> object:
    if _RENAMED.get(name, name) in LISTS:
        return text.split("|")
    if name == "subject_start" and text.strip().isdecimal():
        return int(text[:18])
    return text
