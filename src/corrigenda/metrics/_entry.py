"""How a metric is entered into the registry."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from corrigenda.cases import Protocol
from corrigenda.metrics.estimate import Bootstrap, Estimate
from corrigenda.metrics.registry import Better, Metric, Records

HIGHER, LOWER, AS_BEFORE = Better.HIGHER, Better.LOWER, Better.AS_BEFORE
PERCENT = 100.0
SHARE = (0.0, 1.0)
DIFFERENCE = (-1.0, 1.0)
POSITIVE = (0.0, None)


def entry(
    name: str,
    title: str,
    function: Callable[..., Estimate],
    *arguments: object,
    reads: str,
    better: Better = HIGHER,
    span: tuple[float | None, float | None] = SHARE,
    scale: float = PERCENT,
    legacy: bool = False,
    sequence: bool = False,
    options: Mapping[str, object] | None = None,
) -> Metric:
    """A metric of the registry.

    Args:
        name: Its name; what stands between `@` and `:` is the protocol.
        title: A few words.
        function: What computes it, from rows or measurements.
        arguments: For the function, behind the records.
        reads: Role or family of the rows, or name of the measurements.
        better: Which way it improves.
        span: Least and greatest possible value.
        scale: Factor that tables print it with.
        legacy: Whether it is kept only to compare with published numbers.
        sequence: Whether it reads all moments of a sequence.
        options: Named arguments for the function.
    """
    _, _, asked = name.partition("@")
    protocol = Protocol(asked.partition(":")[0]) if asked else None
    bound = functools.partial(_computed, function, arguments, options or {}, protocol is None)
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
        sequence=sequence,
        compute=bound,
    )


def _computed(
    function: Callable[..., Estimate],
    arguments: tuple[object, ...],
    options: Mapping[str, object],
    measured: bool,
    records: Records,
    bootstrap: Bootstrap,
) -> Estimate:
    read = records.measurements if measured else records.rows
    return function(read, *arguments, **options, bootstrap=bootstrap)
