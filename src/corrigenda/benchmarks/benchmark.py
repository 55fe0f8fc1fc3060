"""The base of benchmarks: a frozen configuration that turns a public file into cases."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

from corrigenda.benchmarks.draw import draw_cases
from corrigenda.benchmarks.files import BenchmarkFiles, SourceFile
from corrigenda.cases import Case
from corrigenda.errors import (
    AmbiguousSubject,
    EmptyTarget,
    MalformedRecords,
    SubjectNotFound,
    UnknownBenchmark,
)
from corrigenda.registry import Registry
from corrigenda.settings import Settings

RecordT = TypeVar("RecordT")


class UnusableRecord(Exception):
    """Raised for a record that can be read but not used; the text is the reason counted."""


@dataclass
class Tally:
    """Counts of the records and probes of a file that were read, left out or flagged.

    Attributes:
        records: Records read.
        dropped: Records left out, by reason.
        skipped: Probes left out of cases, by reason.
        flagged: Cases that need care, by reason; the reasons are in `meta["flags"]` too.
    """

    records: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    skipped: Counter[str] = field(default_factory=Counter[str])
    flagged: Counter[str] = field(default_factory=Counter[str])


@dataclass(frozen=True, kw_only=True)
class LoadedBenchmark:
    """Cases of a benchmark, with counts of what was read and left out.

    Attributes:
        benchmark: Its name.
        options: Its options.
        cases: The cases, in the order of the file.
        counts: `records` read, `cases`, `facts`, `probes`, then probes by role.
        dropped: Records left out, by reason.
        skipped: Probes left out, by reason.
        flagged: Cases that need care, by reason.
        unknown_fields: Fields of records that the schema does not have, with the number of records;
            they are not read.
        files: The files that were read, with their checksums.
    """

    benchmark: str
    options: Mapping[str, object]
    cases: tuple[Case, ...]
    counts: Mapping[str, int]
    dropped: Mapping[str, int]
    skipped: Mapping[str, int]
    flagged: Mapping[str, int]
    unknown_fields: Mapping[str, int]
    files: tuple[SourceFile, ...]

    def __iter__(self) -> Iterator[Case]:
        """Iterate over the cases."""
        return iter(self.cases)

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.cases)


class Benchmark(Settings, ABC):
    """Benchmark with its options: validated, frozen, equal when the options are equal.

    A benchmark is a subclass in a module of `corrigenda/benchmarks`, or of a folder of it, with the
    card of the same name in that folder. It sets `name` and implements `read`; where it has several
    files, its option `part` chooses one. The card lists the public files under `[[files]]`: `name`,
    and where known `part`, `url`, `sha256`, `bytes`.

    Raises:
        BadConfig (CG502): an option the benchmark does not have, or a value it cannot take.
    """

    kind: ClassVar[str] = "benchmark"
    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ("edit", "relation")
    """Keys of `Case.meta` whose values make the kinds of which a draw has its shares."""
    is_drawn: ClassVar[bool] = False
    """Whether its cases come in the order of a draw of its own; then a limit takes the first."""
    takes_known_facts: ClassVar[bool] = False
    """Whether its source, for another model than the pocket ones, is an exam of that model."""
    expects: ClassVar[tuple[str, ...]] = ()
    """Families of roles that some case of every file has; without them it has another schema."""
    headline: ClassVar[tuple[str, ...]] = ()
    """Metrics that the benchmark's paper reports, in its order; tables show them first."""

    @abstractmethod
    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield the cases of the files, one after the other, and count what is left out."""

    def load(
        self, source: str | Path | None = None, *, limit: int | None = None, seed: int = 0
    ) -> LoadedBenchmark:
        """Read a file, a folder that holds it, or the public download.

        Args:
            source: The file, under any name; or a folder that holds it under its public name; None
                takes the copy of an earlier download, else downloads it and checks it.
            limit: Draw that many of the cases by the seed, each kind by its share; see
                `corrigenda.benchmarks.draw`. Counts of probes are of those, of records of all.
            seed: Seed of the draw.

        Raises:
            MissingData (CG604): no such file, and no download.
            WrongChecksum (CG605): the download is not the published file.
            MalformedRecords (CG603): the file cannot be read, or has another schema: a record does
                not fit, or a family of `expects` is in no case.
        """
        options = self.model_dump(mode="json")
        matter = BENCHMARKS.card(self.name)
        tally, files = Tally(), BenchmarkFiles(matter, options.get("part", ""), source)
        seen: set[str] = set()
        cases: list[Case] = []
        for case in itertools.islice(self.read(files, tally), limit if self.is_drawn else None):
            if case.id in seen:
                tally.dropped["another record has the same id"] += 1
                continue
            seen.add(case.id)
            cases.append(case)
        whole, drawn = cases, dict[str, int]()
        if limit is not None and limit < len(whole):
            drawn = {"drawn from": len(whole)}
            cases = draw_cases(whole, limit, self.kinds, seed)
        for case in cases:
            tally.flagged.update(read_flags(case))
        roles = Counter(probe.role for case in cases for probe in case.probes)
        counts = {
            "records": tally.records,
            "cases": len(cases),
            **drawn,
            "facts": sum(len(case.facts) for case in cases),
            "probes": roles.total(),
            **dict(sorted(roles.items())),
        }
        found = LoadedBenchmark(
            benchmark=self.name,
            options=options,
            cases=tuple(cases),
            counts=counts,
            dropped=dict(tally.dropped),
            skipped=dict(tally.skipped),
            flagged=dict(tally.flagged),
            unknown_fields=dict(files.unknown_fields),
            files=tuple(files.sources),
        )
        self._require_expected(whole, found)
        return found

    def _require_expected(self, cases: Sequence[Case], found: LoadedBenchmark) -> None:
        """Refuse a file in which a family of probes that the schema promises is in no case."""
        families = {probe.family for case in cases for probe in case.probes}
        missing = [family for family in self.expects if family not in families]
        if cases and missing:
            unknown = ", ".join(f"{name} ({count})" for name, count in found.unknown_fields.items())
            raise MalformedRecords(
                f"no record gives a probe of {' or '.join(missing)}.",
                where=", ".join(one.name for one in found.files),
                hint=f"The file seems to have the schema of another benchmark than {self.name}"
                + (f"; fields that are not read: {unknown}." if unknown else "."),
            )


BENCHMARKS: Registry[Benchmark] = Registry(
    "benchmark",
    "corrigenda.benchmarks",
    "corrigenda.benchmarks.benchmark:Benchmark",
    UnknownBenchmark,
    group="corrigenda.benchmarks",
)
"""Benchmarks: those with a card in `corrigenda/benchmarks` or a folder of it, and plug-ins."""


def load(
    name: str, source: str | Path | None = None, /, *, limit: int | None = None, **options: object
) -> LoadedBenchmark:
    """Read a benchmark by its name, with its options; see `Benchmark.load`.

    Raises:
        UnknownBenchmark (CG508): no benchmark by that name.
        BadConfig (CG502): an option the benchmark does not have, or a value it cannot take.

    Example:
        >>> loaded = load("pocketedit", limit=3)
        >>> len(loaded), loaded.counts["reliability"]
        (3, 3)
    """
    return BENCHMARKS.get(name)(**options).load(source, limit=limit)


def make_cases(
    records: Iterable[RecordT], make: Callable[[int, RecordT], Iterable[Case]], tally: Tally
) -> Iterator[Case]:
    """Make the cases of records, in order; records that cannot be used are dropped and counted.

    Args:
        records: The records of a file.
        make: Makes the cases of one record, given its place in the file. Raises
            `UnusableRecord`, or the errors of `Fact`, where it cannot.
        tally: Where records and reasons are counted.
    """
    for index, record in enumerate(records):
        tally.records += 1
        try:
            cases = tuple(make(index, record))
        except UnusableRecord as error:
            tally.dropped[str(error)] += 1
        except SubjectNotFound:
            tally.dropped["the subject is not in the prompt"] += 1
        except AmbiguousSubject:
            tally.dropped["the subject occurs in the prompt more than once"] += 1
        except EmptyTarget:
            tally.dropped["the prompt or the target is empty"] += 1
        else:
            yield from cases


def read_flags(case: Case) -> tuple[str, ...]:
    """Return the reasons why a case needs care, from `meta["flags"]`."""
    flags = case.meta.get("flags", ())
    assert isinstance(flags, tuple)
    return flags
