"""Where the files of a benchmark come from: a path, a folder, or a download that is checked."""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.error import URLError
from urllib.parse import urljoin

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from corrigenda.errors import MalformedRecords, MissingData, WrongChecksum
from corrigenda.files import cache_folder, write_atomically
from corrigenda.text_files import UnreadableText, decode, parse_json, read_bytes

Record = TypeVar("Record")

_SHOWN = 10
_MOST_BYTES = 1 << 32
_TIMEOUT = 60


class SourceFile(NamedTuple):
    """A file that was read.

    Attributes:
        name: Its name.
        sha256: Its checksum, hexadecimal.
    """

    name: str
    sha256: str


class PublicFile(TypedDict, total=False):
    """One entry of `[[files]]` on a card; all but `name` may be missing.

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


class Files:
    """The files of one part of a benchmark.

    Attributes:
        read: What was read so far.
    """

    def __init__(self, card: Mapping[str, object], part: str, source: str | Path | None) -> None:
        """Bind the files named on a card to a place.

        Args:
            card: Front matter of the benchmark's card.
            part: Which part; empty: that of the first file.
            source: A file, a folder, or None for the download.
        """
        self.read: list[SourceFile] = []
        self._name = str(card["name"])
        self._public = _FILES.validate_python(card.get("files", []))
        for entry in self._public:
            if "url" in entry:
                entry["url"] = urljoin(str(card.get("home", "")), entry["url"])
        first = self._public[0].get("part", "") if self._public else ""
        self._part = part or first
        self._source = None if source is None else Path(source)

    @property
    def given(self) -> bool:
        """Whether a place was given."""
        return self._source is not None

    def main(self) -> Path:
        """The file of the part.

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
            raise self._missing(entries)
        return found

    def extra(self, name: str) -> Path | None:
        """A file that goes with the main one, by its public name; None where there is none.

        Of a source that is a file, its folder and the one above are searched.
        """
        entries = [entry for entry in self._public if entry.get("name") == name]
        assert entries, f"{name} is not on the card of {self._name}"
        if self._source is not None and self._source.is_file():
            above = self._source.resolve().parent
            places = (above / Path(name).name, above.parent / Path(name).name)
            return next((place for place in places if place.is_file()), None)
        return self._find(entries)

    def required(self, name: str) -> Path:
        """`extra`, where the benchmark cannot do without.

        Raises:
            MissingData (CG604): there is none.
        """
        found = self.extra(name)
        if found is None:
            raise self._missing([entry for entry in self._public if entry.get("name") == name])
        return found

    def records(self, path: Path, schema: TypeAdapter[Record]) -> list[Record]:
        """Records of a file: a JSON list, or one JSON object a line.

        Raises:
            MalformedRecords (CG603): the file cannot be read, or a record does not fit.
        """
        raw = self.document(path)
        if not isinstance(raw, list):
            raise MalformedRecords("the file holds no list of records.", where=str(path))
        return fit(raw, schema, where=str(path))

    def document(self, path: Path) -> object:
        """All that a JSON file holds; the list of its lines where it is one object a line.

        Raises:
            MalformedRecords (CG603): the file cannot be read.
        """
        try:
            data = read_bytes(path, most=_MOST_BYTES)
            text = decode(data)
        except UnreadableText as error:
            raise MalformedRecords(f"the file cannot be read: {error}.", where=str(path)) from error
        self.read.append(SourceFile(path.name, hashlib.sha256(data).hexdigest()))
        try:
            if path.suffix == ".jsonl":
                # Not splitlines: questions hold line separators of Unicode.
                return [parse_json(line) for line in text.split("\n") if line.strip()]
            return parse_json(text)
        except UnreadableText as error:
            raise MalformedRecords(
                f"the file cannot be read: {error}.",
                where=str(path),
                hint="Was it cut off, or downloaded as a page?",
            ) from error

    def text(self, path: Path) -> str:
        """All that a text file holds."""
        try:
            data = read_bytes(path, most=_MOST_BYTES)
            text = decode(data)
        except UnreadableText as error:
            raise MalformedRecords(f"the file cannot be read: {error}.", where=str(path)) from error
        self.read.append(SourceFile(path.name, hashlib.sha256(data).hexdigest()))
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
        kept = cache_folder() / "benchmarks" / self._name / name
        if kept.is_file():
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        return write_atomically(kept, lambda part: _download(entry, part))

    def _missing(self, entries: list[PublicFile]) -> MissingData:
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


def fit(
    raw: Sequence[object],
    schema: TypeAdapter[Record],
    *,
    where: str,
    places: Sequence[str] = (),
    hint: str = "The card of the benchmark shows the schema.",
) -> list[Record]:
    """Records of the schema.

    Args:
        raw: What was read.
        schema: Of one record.
        where: The file.
        places: What messages call each record; by default by its number from 0.
        hint: Where the schema is shown.

    Raises:
        MalformedRecords (CG603): lists the first problems, with the place of each record.
    """
    records: list[Record] = []
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
        more = "\n    ..." if len(problems) > _SHOWN else ""
        raise MalformedRecords(
            f"{bad} record(s) of another schema:\n    " + "\n    ".join(problems[:_SHOWN]) + more,
            where=where,
            hint=hint,
        )
    return records


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
