"""Folders of runs: parts are written as they come, and found again by the id of the run.

```text
runs/<id>/run.json                          manifest: specification, digests, versions, finished
runs/<id>/parts/<part>.rows.parquet         while it runs, one pair of files for each part
runs/<id>/parts/<part>.measurements.parquet
runs/<id>/rows.parquet                      when it has finished
runs/<id>/measurements.parquet
```

A part counts from the moment its rows are there, which is one step; its measurements come first. So
a run that is killed has every part whole or not at all, and resumes with those that are missing.
Every file carries a checksum, and reading refuses one that was changed. A process that writes holds
the lock of the folder (`corrigenda.run.lock`).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from corrigenda.errors import CorruptFile, MissingData, did_you_mean
from corrigenda.files import make_folder, write_text
from corrigenda.rows import Measurement, Record, Row, from_frame, to_frame
from corrigenda.run.parquet import read_frame, write_frame
from corrigenda.run.spec import RunSpec
from corrigenda.text_files import read_text

if TYPE_CHECKING:
    import polars

FOLDER = "runs"
"""Default folder of runs."""

_MANIFEST, _PARTS = "run.json", "parts"
_ROWS, _MEASUREMENTS = "rows", "measurements"


class Manifest(BaseModel):
    """Everything about a run except its rows.

    Attributes:
        run: Its id.
        spec: What was run, as `RunSpec` dumps it.
        model: Name of the model.
        model_digest: Digest of its weights.
        config: Options of the method, preset applied.
        cases: Number of cases.
        units: Number of units of work.
        counts: Of each benchmark: cases, probes by role, what was left out and why.
        files: Files that were read, with their checksums.
        versions: Versions of the libraries.
        started: When it was first started, UTC.
        finished: When its last unit was done; empty as long as it is not.
        checksum: Hash of all the others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    spec: dict[str, JsonValue]
    model: str = ""
    model_digest: str = ""
    config: dict[str, JsonValue] = Field(default_factory=dict)
    cases: int = 0
    units: int = 0
    counts: dict[str, JsonValue] = Field(default_factory=dict)
    files: list[dict[str, JsonValue]] = Field(default_factory=list[dict[str, JsonValue]])
    versions: dict[str, str] = Field(default_factory=dict)
    started: str = ""
    finished: str = ""
    checksum: str = ""


class RunPart(NamedTuple):
    """Rows and measurements of one step, written at once.

    Attributes:
        name: Its name; parts of a run are read in the order of their names.
        rows: AnswerTable.
        measurements: Other numbers.
    """

    name: str
    rows: Sequence[Row]
    measurements: Sequence[Measurement]


class Recorded(NamedTuple):
    """Rows, measurements and manifest of a run; metrics read the first two.

    Attributes:
        rows: AnswerTable, in the order of the plan.
        measurements: Costs, drift and errors, in the same order.
        spec: What was run.
        manifest: The model, versions and data, and whether the run has finished.
        folder: Its folder.
    """

    rows: list[Row]
    measurements: list[Measurement]
    spec: RunSpec
    manifest: Manifest
    folder: Path


@dataclass(frozen=True)
class Store:
    """Folder of one run, while it is written.

    Attributes:
        folder: Its folder, named after the id of the run.
    """

    folder: Path

    @property
    def finished(self) -> bool:
        """Whether every planned part is recorded."""
        return _has_manifest(self.folder) and bool(read_manifest(self.folder).finished)

    def begin(self, manifest: Manifest) -> None:
        """Write the manifest of a run that starts; one that resumes keeps its own.

        Raises:
            WriteFailed (CG601): the folder cannot be written.
        """
        if not _has_manifest(self.folder):
            make_folder(self.folder / _PARTS)
            _write_manifest(self.folder, manifest.model_copy(update={"started": _read_time()}))

    def list_parts(self) -> frozenset[str]:
        """Return the names of the parts that are recorded."""
        ending = f".{_ROWS}.parquet"
        return frozenset(
            path.name.removesuffix(ending)
            for path in (self.folder / _PARTS).glob(f"*{ending}")
            if not path.name.startswith(".")
        )

    def add(self, part: RunPart) -> None:
        """Write a part, completely or not at all.

        Raises:
            WriteFailed (CG601): the disk is full, or the folder is not writable.
        """
        measurements = _part_path(self.folder, part.name, _MEASUREMENTS)
        write_table(measurements, part.measurements, Measurement)
        write_table(_part_path(self.folder, part.name, _ROWS), part.rows, Row)

    def drop_damaged(self) -> None:
        """Remove parts that are damaged, with a warning; they are done again."""
        for name in self.list_parts():
            try:
                for kind in (_MEASUREMENTS, _ROWS):
                    read_frame(_part_path(self.folder, name, kind))
            except CorruptFile as error:
                warnings.warn(f"{error.message} It is recorded again.", stacklevel=2)
                _part_path(self.folder, name, _ROWS).unlink(missing_ok=True)

    def finish(self, planned: Collection[str]) -> None:
        """Put all parts into one file of each kind, and mark the run as finished.

        Args:
            planned: Names of all parts of the run.

        Raises:
            CorruptFile (CG402): a part is missing or damaged.
            WriteFailed (CG601): the disk is full, or the folder is not writable.
        """
        if missing := sorted(set(planned) - self.list_parts()):
            raise CorruptFile(
                f"{len(missing)} of {len(planned)} parts of the run are missing: {missing[0]} ...",
                where=str(self.folder),
                hint="Run it again: the missing parts are done, and no other.",
            )
        for kind in (_MEASUREMENTS, _ROWS):
            write_frame(self.folder / f"{kind}.parquet", _join_parts(self.folder, kind, planned))
        manifest = read_manifest(self.folder)
        _write_manifest(self.folder, manifest.model_copy(update={"finished": _read_time()}))
        shutil.rmtree(self.folder / _PARTS, ignore_errors=True)


def load(run: str | Path, folder: str | Path = FOLDER) -> Recorded:
    """Read a run, finished or not.

    Args:
        run: Its folder; or its id, or the beginning of it, within `folder`.
        folder: Folder of runs.

    Raises:
        MissingData (CG604): no such run, or several whose ids begin so.
        CorruptFile (CG402): its files were changed or damaged.
        MalformedRows (CG507): its rows were written by another version.
    """
    place = find_run(run, folder)
    manifest = read_manifest(place)
    return Recorded(
        _read_records(place, _ROWS, Row),
        _read_records(place, _MEASUREMENTS, Measurement),
        RunSpec.model_validate(manifest.spec),
        manifest,
        place,
    )


def find_run(run: str | Path, folder: str | Path = FOLDER) -> Path:
    """Return the folder of a run; see `load`."""
    if _has_manifest(Path(run)):
        return Path(run)
    known = list_ids(folder)
    fitting = [one for one in known if one.startswith(str(run))]
    if str(run) and len(fitting) == 1:
        return Path(folder) / fitting[0]
    several = f": {', '.join(fitting)}" if len(fitting) > 1 and str(run) else ""
    raise MissingData(
        f'{"several runs begin with" if several else "no run"} "{run}"{several}.',
        where=str(folder),
        hint=did_you_mean(str(run), known) if known else "Start one with `corrigenda evaluate`.",
    )


def list_ids(folder: str | Path = FOLDER) -> list[str]:
    """Return the ids of all runs in a folder, the one started last at the end."""
    found = [place for place in Path(folder).glob("*/") if _has_manifest(place)]

    def read_start(place: Path) -> str:
        try:
            return read_manifest(place).started
        except CorruptFile:
            # Told when that run is read, not when another one is looked for.
            return ""

    return [one.name for one in sorted(found, key=lambda one: (read_start(one), one))]


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the run in a folder.

    Raises:
        CorruptFile (CG402): it cannot be read.
    """
    path = folder / _MANIFEST
    try:
        text = read_text(path)
        manifest = Manifest.model_validate_json(text)
        if manifest.checksum != _hash_manifest(text):
            raise ValueError("its checksum is another")
        return manifest
    except ValueError as error:
        raise CorruptFile(
            f"{path} is no manifest of a run.",
            where=str(error).splitlines()[0],
            hint="Remove the folder and run again.",
        ) from error


def write_table(path: Path, records: Iterable[Record], kind: type[Record]) -> None:
    """Write records as one Parquet file with a checksum, completely or not at all.

    Raises:
        WriteFailed (CG601): the disk is full, or the folder is not writable.
    """
    write_frame(path, to_frame(records, kind))


def read_table(path: Path, kind: type[Record]) -> list[Record]:
    """Read the records that `write_table` wrote.

    Raises:
        CorruptFile (CG402): the file is missing or damaged.
        MalformedRows (CG507): it was written by another version.
    """
    return from_frame(read_frame(path), kind)


def _read_records(folder: Path, kind: str, record: type[Record]) -> list[Record]:
    whole = folder / f"{kind}.parquet"
    if read_manifest(folder).finished:
        return read_table(whole, record)
    return from_frame(_join_parts(folder, kind, Store(folder).list_parts()), record)


def _join_parts(folder: Path, kind: str, names: Collection[str]) -> polars.DataFrame:
    """Return some parts, in the order of their names."""
    import polars

    frames = [read_frame(_part_path(folder, name, kind)) for name in sorted(names)]
    empty = to_frame([], Row) if kind == _ROWS else to_frame([], Measurement)
    return polars.concat([empty, *frames])


def _part_path(folder: Path, name: str, kind: str) -> Path:
    return folder / _PARTS / f"{name}.{kind}.parquet"


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    checksum = _hash_manifest(manifest.model_dump_json())
    whole = manifest.model_copy(update={"checksum": checksum})
    write_text(folder / _MANIFEST, whole.model_dump_json(indent=1))


def _hash_manifest(text: str) -> str:
    """Return a hash of everything in a manifest but its checksum."""
    plain = {key: value for key, value in json.loads(text).items() if key != "checksum"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _has_manifest(folder: Path) -> bool:
    return (folder / _MANIFEST).is_file()


def _read_time() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
