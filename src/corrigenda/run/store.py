"""What a run recorded, on disk: parts written as they come, found again by the id of the run.

```text
runs/<id>/run.json                          manifest: specification, digests, versions, finished
runs/<id>/parts/<part>.rows.parquet         while it runs, one pair of files for each part
runs/<id>/parts/<part>.measurements.parquet
runs/<id>/rows.parquet                      when it has finished
runs/<id>/measurements.parquet
```

A part counts from the moment its rows are there, which is one step; its measurements come first. So
a run that is killed has every part whole or not at all, and goes on with those that are missing.
"""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from corrigenda.errors import CorruptFile, MissingData, did_you_mean
from corrigenda.files import write_atomically, write_text
from corrigenda.rows import Measurement, Record, Row, from_frame, to_frame
from corrigenda.run.spec import RunSpec
from corrigenda.text_files import read_text

if TYPE_CHECKING:
    import polars

FOLDER = "runs"
"""Where runs are kept unless something else is said."""

_MANIFEST, _PARTS = "run.json", "parts"
_ROWS, _MEASUREMENTS = "rows", "measurements"


class Manifest(BaseModel):
    """Everything about a run but its rows.

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
    files: list[dict[str, JsonValue]] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
    started: str = ""
    finished: str = ""


class Part(NamedTuple):
    """What is written at once.

    Attributes:
        name: Its name; parts of a run are read in the order of their names.
        rows: Answers.
        measurements: Other numbers.
    """

    name: str
    rows: Sequence[Row]
    measurements: Sequence[Measurement]


class Recorded(NamedTuple):
    """A run as it was recorded; hand `rows` and `measurements` to metrics.

    Attributes:
        rows: Answers, in the order of the plan.
        measurements: Costs, drift and errors, in the same order.
        spec: What was run.
        manifest: On what, with which versions, and whether it has finished.
        folder: Where it is.
    """

    rows: list[Row]
    measurements: list[Measurement]
    spec: RunSpec
    manifest: Manifest
    folder: Path


@dataclass(frozen=True)
class Store:
    """The folder of one run, while it is written.

    Attributes:
        folder: Its folder, named after the id of the run.
    """

    folder: Path

    @property
    def finished(self) -> bool:
        """Whether every unit was done."""
        return _has_manifest(self.folder) and bool(read_manifest(self.folder).finished)

    def begin(self, manifest: Manifest) -> None:
        """Write the manifest of a run that starts; one that goes on keeps its own.

        Raises:
            WriteFailed (CG601): the folder cannot be written.
        """
        if not _has_manifest(self.folder):
            (self.folder / _PARTS).mkdir(parents=True, exist_ok=True)
            _write_manifest(self.folder, manifest.model_copy(update={"started": _now()}))

    def done(self) -> frozenset[str]:
        """Names of the parts that are there."""
        ending = f".{_ROWS}.parquet"
        return frozenset(
            path.name.removesuffix(ending)
            for path in (self.folder / _PARTS).glob(f"*{ending}")
            if not path.name.startswith(".")
        )

    def add(self, part: Part) -> None:
        """Write a part, completely or not at all.

        Raises:
            WriteFailed (CG601): the disk is full, or the folder is not writable.
        """
        parts = self.folder / _PARTS
        write_table(parts / f"{part.name}.{_MEASUREMENTS}.parquet", part.measurements, Measurement)
        write_table(parts / f"{part.name}.{_ROWS}.parquet", part.rows, Row)

    def finish(self) -> None:
        """Put all parts into one file of each kind, and say that the run has finished.

        Raises:
            WriteFailed (CG601): the disk is full, or the folder is not writable.
        """
        for kind in (_MEASUREMENTS, _ROWS):
            frame = _joined(self.folder, kind)
            write_atomically(self.folder / f"{kind}.parquet", frame.write_parquet)
        manifest = read_manifest(self.folder)
        _write_manifest(self.folder, manifest.model_copy(update={"finished": _now()}))
        shutil.rmtree(self.folder / _PARTS, ignore_errors=True)


def load(run: str | Path, folder: str | Path = FOLDER) -> Recorded:
    """Read a run, finished or not.

    Args:
        run: Its folder; or its id, or the beginning of it, within `folder`.
        folder: Where runs are kept.

    Raises:
        MissingData (CG604): no such run, or several whose ids begin so.
        CorruptFile (CG402): its files were changed or damaged.
        MalformedRows (CG507): its rows were written by another version.
    """
    place = find(run, folder)
    manifest = read_manifest(place)
    return Recorded(
        _records(place, _ROWS, Row),
        _records(place, _MEASUREMENTS, Measurement),
        RunSpec.model_validate(manifest.spec),
        manifest,
        place,
    )


def find(run: str | Path, folder: str | Path = FOLDER) -> Path:
    """The folder of a run; see `load`."""
    if _has_manifest(Path(run)):
        return Path(run)
    known = ids(folder)
    fitting = [one for one in known if one.startswith(str(run))]
    if str(run) and len(fitting) == 1:
        return Path(folder) / fitting[0]
    several = f": {', '.join(fitting)}" if len(fitting) > 1 and str(run) else ""
    raise MissingData(
        f'{"several runs begin with" if several else "no run"} "{run}"{several}.',
        where=str(folder),
        hint=did_you_mean(str(run), known) if known else "Start one with `corrigenda bench`.",
    )


def ids(folder: str | Path = FOLDER) -> list[str]:
    """Ids of all runs in a folder, the one started last at the end."""
    found = [place for place in Path(folder).glob("*/") if _has_manifest(place)]
    return [one.name for one in sorted(found, key=lambda one: (read_manifest(one).started, one))]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the run in a folder.

    Raises:
        CorruptFile (CG402): it cannot be read.
    """
    path = folder / _MANIFEST
    try:
        return Manifest.model_validate_json(read_text(path))
    except ValueError as error:
        raise CorruptFile(
            f"{path} is no manifest of a run.",
            where=str(error).splitlines()[0],
            hint="Remove the folder and run again.",
        ) from error


def write_table(path: Path, records: Iterable[Record], kind: type[Record]) -> None:
    """Write records as one Parquet file, completely or not at all.

    Raises:
        WriteFailed (CG601): the disk is full, or the folder is not writable.
    """
    frame = to_frame(records, kind)
    write_atomically(path, frame.write_parquet)


def read_table(path: Path, kind: type[Record]) -> list[Record]:
    """Records that `write_table` wrote.

    Raises:
        CorruptFile (CG402): the file is missing or damaged.
        MalformedRows (CG507): it was written by another version.
    """
    return from_frame(_frame(path), kind)


def _records(folder: Path, kind: str, record: type[Record]) -> list[Record]:
    whole = folder / f"{kind}.parquet"
    if read_manifest(folder).finished:
        return read_table(whole, record)
    return from_frame(_joined(folder, kind), record)


def _joined(folder: Path, kind: str) -> polars.DataFrame:
    """All parts that count, in the order of their names."""
    import polars

    names = sorted(Store(folder).done())
    frames = [_frame(folder / _PARTS / f"{name}.{kind}.parquet") for name in names]
    empty = to_frame([], Row) if kind == _ROWS else to_frame([], Measurement)
    return polars.concat([empty, *frames])


def _frame(path: Path) -> polars.DataFrame:
    import polars

    try:
        return polars.read_parquet(path)
    except (OSError, polars.exceptions.PolarsError) as error:
        raise CorruptFile(
            f"{path} is damaged or missing.",
            where=str(error).splitlines()[0],
            hint="Remove the folder of the run and run again.",
        ) from error


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    write_text(folder / _MANIFEST, manifest.model_dump_json(indent=1))


def _has_manifest(folder: Path) -> bool:
    return (folder / _MANIFEST).is_file()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
