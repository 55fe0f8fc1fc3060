"""Finds and reads the files of a benchmark: a path, a folder, or a checked download."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.error import URLError
from urllib.parse import urljoin

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from corrigenda import text_files
from corrigenda.errors import MalformedRecords, MissingData, WrongChecksum
from corrigenda.files import cache_folder, make_folder, write_atomically

RecordT = TypeVar("RecordT")

_MOST_PROBLEMS = 10
_MOST_BYTES = 2 << 30
_TIMEOUT = 60


class SourceFile(NamedTuple):
    """Name and checksum of a file that was read.

    Attributes:
        name: Its name.
        sha256: Its checksum, hexadecimal.
    """

    name: str
    sha256: str


class PublicFile(TypedDict, total=False):
    """Entry of `[[files]]` on a card; all but `name` may be missing.

    Attributes:
        name: What the file is called where it is published, with its folder where that tells it
            from another of the same name.
        part: Which part of the benchmark it is.
        extra: Whether it goes with every part instead.
        url: Its address, relative to `home` of the card where there is one.
        sha256: Its checksum.
        bytes: Its size.
    """

    name: str
    part: str
    extra: bool
    url: str
    sha256: str
    bytes: int


_FILES = TypeAdapter(list[PublicFile])


class BenchmarkFiles:
    """Files of one part of a benchmark.

    Attributes:
        sources: Files read so far.
        unknown_fields: Fields of records that their schema does not have, with their number.
    """

    def __init__(self, card: Mapping[str, object], part: str, source: str | Path | None) -> None:
        """Bind the files named on a card to a place.

        Args:
            card: Front matter of the benchmark's card.
            part: Which part; empty: that of the first file.
            source: A file, a folder, or None for the download.
        """
        self.sources: list[SourceFile] = []
        self.unknown_fields = Counter[str]()
        self._name = str(card["name"])
        self._public = _FILES.validate_python(card.get("files", []))
        for entry in self._public:
            if "url" in entry:
                entry["url"] = urljoin(str(card.get("home", "")), entry["url"])
        first = self._public[0].get("part", "") if self._public else ""
        self._part = part or first
        self._source = None if source is None else Path(source)

    @property
    def has_source(self) -> bool:
        """Return whether a path was given."""
        return self._source is not None

    def find_main(self) -> Path:
        """Return the path of the part's file.

        Raises:
            MissingData (CG604): there is none.
            WrongChecksum (CG605): the download is another file.
        """
        if self._source is not None and self._source.is_file():
            return self._source
        entries = [
            entry
            for entry in self._public
            if entry.get("part", "") == self._part and not entry.get("extra")
        ]
        found = self._find(entries)
        if found is None:
            raise self._explain_missing(entries)
        return found

    def find_extra(self, name: str) -> Path | None:
        """Return the path of an accompanying file, by its public name; None if there is none.

        Of a source that is a file, its folder and the one above are searched.
        """
        entries = [entry for entry in self._public if entry.get("name") == name]
        assert entries, f"{name} is not on the card of {self._name}"
        if self._source is not None and self._source.is_file():
            above = self._source.resolve().parent
            places = (above / Path(name).name, above.parent / Path(name).name)
            return next((place for place in places if place.is_file()), None)
        return self._find(entries)

    def require_extra(self, name: str) -> Path:
        """Return the path of an accompanying file that the benchmark cannot do without.

        Raises:
            MissingData (CG604): there is none.
        """
        found = self.find_extra(name)
        if found is None:
            raise self._explain_missing(
                [entry for entry in self._public if entry.get("name") == name]
            )
        return found

    def read_records(self, path: Path, schema: TypeAdapter[RecordT]) -> list[RecordT]:
        """Read the records of a file: a JSON list, one JSON object a line, or CSV.

        Raises:
            MalformedRecords (CG603): the file cannot be read, or a record does not fit.
        """
        raw = self.read_document(path)
        if not isinstance(raw, list):
            raise MalformedRecords("the file holds no list of records.", where=str(path))
        self.count_unknown(raw, schema)
        return validate_records(raw, schema, where=str(path))

    def count_unknown(self, raw: Sequence[object], schema: TypeAdapter[RecordT]) -> None:
        """Count the fields of records that a schema does not have."""
        self.unknown_fields.update(find_unknown_fields(raw, schema))

    def read_document(self, path: Path) -> object:
        """Read a JSON file; one object a line, or CSV, gives the list of its records.

        CSV is known by its ending; its cells are texts.

        Raises:
            MalformedRecords (CG603): the file cannot be read.
        """
        text = self.read_text(path)
        if path.suffix == ".csv":
            return _read_cells(text, where=str(path))
        if path.suffix != ".jsonl":
            return parse_json(text, where=str(path))
        # Not splitlines: questions hold line separators of Unicode.
        return [
            parse_json(line, where=str(path), first_line=number)
            for number, line in enumerate(text.split("\n"), start=1)
            if line.strip()
        ]

    def read_text(self, path: Path) -> str:
        """Read a text file in UTF-8, with or without a byte-order mark.

        Raises:
            MalformedRecords (CG603): the file cannot be read, is no regular file, or is too large.
        """
        try:
            data = text_files.read_bytes(path, most=_MOST_BYTES)
            text = text_files.decode(data)
        except text_files.UnreadableText as error:
            raise MalformedRecords(f"the file cannot be read: {error}.", where=str(path)) from error
        self.sources.append(SourceFile(path.name, hashlib.sha256(data).hexdigest()))
        return text

    def _find(self, entries: list[PublicFile]) -> Path | None:
        if self._source is None:
            return next((self._fetch(entry) for entry in entries if "url" in entry), None)
        if not self._source.is_dir():
            return None
        for entry in entries:
            name = Path(entry.get("name", ""))
            found = sorted(self._source.rglob(str(name)), key=lambda path: (len(path.parts), path))
            # The folder given may be the one that the name starts with.
            if not found and name.parent.name == self._source.resolve().name:
                found = [path for path in (self._source / name.name,) if path.is_file()]
            if found:
                return found[0]
        return None

    def _fetch(self, entry: PublicFile) -> Path:
        name = entry.get("name", "")
        cached = cache_folder() / "benchmarks" / self._name / name
        if cached.is_file():
            return cached
        make_folder(cached.parent)
        return write_atomically(cached, lambda part: _download(entry, part))

    def _explain_missing(self, entries: list[PublicFile]) -> MissingData:
        part = f' (part "{self._part}")' if self._part else ""
        names = ", ".join(entry.get("name", "") for entry in entries)
        parts = sorted({entry["part"] for entry in self._public if "part" in entry})
        if not names:
            return MissingData(
                f"{self._name} has no file for{part or ' this'}.",
                hint=f"Parts: {', '.join(parts)}." if parts else "Give the path of the file.",
            )
        if self._source is None:
            return MissingData(
                f"no public address of {names} of {self._name}{part} is known.",
                hint="Give the path of the file, or of a folder that holds it.",
            )
        what = "in" if self._source.is_dir() else "at"
        return MissingData(
            f"no file of {self._name}{part} {what} {self._source}.", hint=f"Looked for {names}."
        )


def parse_json(text: str, *, where: str, first_line: int = 1) -> object:
    """Parse JSON, refusing what cannot be read back: NaN, infinities, half characters.

    Args:
        text: One JSON value.
        where: The file.
        first_line: Line of the file at which the text begins.

    Raises:
        MalformedRecords (CG603): it is not JSON, too deep, or holds such a value.
    """
    try:
        return text_files.parse_json(text)
    except text_files.NotJson as error:
        line = first_line + error.line - 1
        raise MalformedRecords(
            f"the file is not JSON: {error.reason} at line {line}.",
            where=where,
            hint="Was it cut off, or downloaded as a page?",
        ) from error
    except text_files.UnreadableText as error:
        raise MalformedRecords(
            f"the file cannot be read: {error}.", where=f"{where}, line {first_line}"
        ) from error


def validate_records(
    raw: Sequence[object],
    schema: TypeAdapter[RecordT],
    *,
    where: str,
    places: Sequence[str] = (),
    hint: str = "The card of the benchmark shows the schema.",
) -> list[RecordT]:
    """Check records against their schema.

    Args:
        raw: What was read.
        schema: Of one record.
        where: The file.
        places: What messages call each record; by default by its number from 0.
        hint: Where the schema is shown.

    Raises:
        MalformedRecords (CG603): lists the first problems, with the place of each record.
    """
    records: list[RecordT] = []
    problems: list[str] = []
    bad = 0
    for index, item in enumerate(raw):
        try:
            records.append(schema.validate_python(item))
        except ValidationError as error:
            bad += 1
            place = places[index] if places else f"record {index}"
            problems += [
                f"{place}: {'.'.join(map(str, one['loc'])) or 'record'}: {one['msg']}"
                for one in error.errors()
            ]
    if bad:
        more = "\n    ..." if len(problems) > _MOST_PROBLEMS else ""
        raise MalformedRecords(
            f"{bad} record(s) of another schema:\n    "
            + "\n    ".join(problems[:_MOST_PROBLEMS])
            + more,
            where=where,
            hint=hint,
        )
    return records


def find_unknown_fields(raw: Sequence[object], schema: TypeAdapter[RecordT]) -> Counter[str]:
    """Count the top-level fields of records that a schema does not have.

    Example:
        >>> class Pair(TypedDict):
        ...     prompt: str
        >>> find_unknown_fields([{"prompt": "a", "answer": "b"}, {"answer": 1}], TypeAdapter(Pair))
        Counter({'answer': 2})
    """
    core: Any = schema.core_schema
    while core["type"] != "typed-dict":
        if "schema" not in core:
            return Counter()
        core = core["schema"]
    known = set(core["fields"])
    for field in core["fields"].values():
        alias = field.get("validation_alias")
        paths = [[alias]] if isinstance(alias, str) else alias or []
        known.update(path[0] if isinstance(path, list) else path for path in paths)
    return Counter(
        name for record in raw if isinstance(record, dict) for name in record if name not in known
    )


def _read_cells(text: str, *, where: str) -> list[object]:
    """Return the rows of a CSV file with a head as tables of texts."""
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows = list(reader)
    except csv.Error as error:
        raise MalformedRecords(f"the file is not CSV: {error}.", where=where) from error
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise MalformedRecords(
                f"record {number} has another number of cells than the head.", where=where
            )
    return list(rows)


def _download(entry: PublicFile, part: Path) -> None:
    url = entry.get("url", "")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, part.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise MissingData(
            f"{entry.get('name')} cannot be downloaded: {error}.",
            where=url,
            hint="Download it elsewhere and give its path.",
        ) from error
    expected = entry.get("sha256")
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if expected and found != expected:
        raise WrongChecksum(
            f"{entry.get('name')} is not the published file: sha256 {found[:12]}..., "
            f"expected {expected[:12]}....",
            where=url,
            hint="Try again, or give the path of a copy you trust.",
        )
