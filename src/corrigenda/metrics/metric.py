"""What a metric is: its name, its range, which way it improves, and how it is computed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from corrigenda.cases import Protocol
from corrigenda.metrics.estimate import Bootstrap, Estimate
from corrigenda.rows import Measurement, Row


class Better(StrEnum):
    """Which way a metric improves; reports show it as an arrow."""

    HIGHER = "higher"
    LOWER = "lower"
    AS_BEFORE = "as before"
    """Best where it equals the value of the unedited model."""


HIGHER, LOWER, AS_BEFORE = Better.HIGHER, Better.LOWER, Better.AS_BEFORE
PERCENT = 100.0
"""Scale of shares in tables."""

SHARE = (0.0, 1.0)
DIFFERENCE = (-1.0, 1.0)
POSITIVE = (0.0, None)


class RunRecords(NamedTuple):
    """Everything recorded in one run.

    Attributes:
        rows: Answers.
        measurements: Other numbers.
    """

    rows: Sequence[Row]
    measurements: Sequence[Measurement] = ()


Compute = Callable[[RunRecords, Bootstrap], Estimate]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric as reports list it.

    Attributes:
        name: Unique; `<what>@<protocol>`, with `:<measure>` where a protocol has several.
        group: Module that computes it.
        title: A few words.
        better: Which way it improves.
        low: Least possible value; None without bound.
        high: Greatest possible value; None without bound.
        protocol: How the answers were taken; None for metrics of measurements.
        reads: Role or family of the rows, or name of the measurements.
        scale: Factor that tables of the field print it with.
        legacy: Whether it is there only to compare with published numbers.
        on_request: Whether only tables that name it show it: a score of one benchmark that reads
            what others have too.
        sequence: Whether it reads all moments of a sequence, not one.
        reference: Value of the unedited model, where it is the same for every model.
        repeats: Name of the metric that has the same value where both can be computed; tables that
            list all metrics show only that one. Empty for none.
        compute: The estimate from the records of one run.
    """

    name: str
    group: str
    title: str
    better: Better
    low: float | None
    high: float | None
    protocol: Protocol | None
    reads: str
    scale: float
    legacy: bool
    on_request: bool
    sequence: bool
    reference: float | None
    repeats: str
    compute: Compute

    @property
    def arrow(self) -> str:
        """Sign of `better`, in ASCII: ^, v or =."""
        return {"higher": "^", "lower": "v", "as before": "="}[self.better]


def define(
    name: str,
    title: str,
    function: Callable[..., Estimate],
    *arguments: object,
    reads: str,
    better: Better = HIGHER,
    span: tuple[float | None, float | None] = SHARE,
    scale: float = PERCENT,
    legacy: bool = False,
    on_request: bool = False,
    sequence: bool = False,
    reference: float | None = None,
    repeats: str = "",
    options: Mapping[str, object] | None = None,
) -> Metric:
    """Return the metric that a function computes; subject files list theirs in `METRICS`.

    Args:
        name: Its name; the part between `@` and `:` is the protocol.
        title: A few words.
        function: Computes it from rows, or from measurements where the name has no protocol.
        arguments: For the function, after the records.
        reads: Role or family of the rows, or name of the measurements.
        better: Which way it improves.
        span: Least and greatest possible value.
        scale: Factor that tables print it with.
        legacy: Whether it is there only to compare with published numbers.
        on_request: Whether only tables that name it show it.
        sequence: Whether it reads all moments of a sequence.
        reference: Value of the unedited model, where it is the same for every model.
        repeats: Name of the metric that has the same value.
        options: Named arguments for the function.
    """
    _, _, spelled = name.partition("@")
    protocol = Protocol(spelled.partition(":")[0]) if spelled else None
    bound = functools.partial(_compute, function, arguments, options or {}, protocol is None)
    return Metric(
        name=name,
        group=function.__module__.rpartition(".")[2],
        title=title,
        better=better,
        low=span[0],
        high=span[1],
        protocol=protocol,
        reads=reads,
        scale=scale,
        legacy=legacy,
        on_request=on_request,
        sequence=sequence,
        reference=reference,
        repeats=repeats,
        compute=bound,
    )


def list_measures(
    known: Mapping[Protocol, Mapping[str, object]],
) -> Iterator[tuple[Protocol, str | None]]:
    """Yield every protocol with its default measure, unnamed, and then with each other measure."""
    for protocol, names in known.items():
        yield protocol, None
        for name in list(names)[1:]:
            yield protocol, name


def _compute(
    function: Callable[..., Estimate],
    arguments: tuple[object, ...],
    options: Mapping[str, object],
    reads_measurements: bool,
    records: RunRecords,
    bootstrap: Bootstrap,
) -> Estimate:
    read = records.measurements if reads_measurements else records.rows
    return function(read, *arguments, **options, bootstrap=bootstrap)
