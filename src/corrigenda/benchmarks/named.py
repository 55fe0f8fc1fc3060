"""Benchmarks by name, and their cards."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

from corrigenda.benchmarks.benchmark import PACKAGE, Benchmark, Loaded
from corrigenda.cards import card_in, names_in, stem
from corrigenda.errors import UnknownBenchmark, did_you_mean


def names() -> tuple[str, ...]:
    """Names of all benchmarks: those with a card. `counterfact-plus` is `counterfact_plus.py`."""
    return names_in(PACKAGE)


def benchmark_class(name: str) -> type[Benchmark]:
    """The class of a benchmark.

    Raises:
        UnknownBenchmark (CG508): no benchmark by that name.
    """
    _require(name)
    module = importlib.import_module(f"{PACKAGE}.{stem(name)}")
    for kind in vars(module).values():
        if (
            inspect.isclass(kind)
            and issubclass(kind, Benchmark)
            and getattr(kind, "name", "") == name
        ):
            return kind
    raise AssertionError(f"{module.__name__} defines no Benchmark named {name!r}")


def build(name: str, /, **options: object) -> Benchmark:
    """Make a benchmark with its options.

    Raises:
        UnknownBenchmark (CG508): no benchmark by that name.
        BadConfig (CG502): an option the benchmark does not have, or a value it cannot take.
    """
    return benchmark_class(name)(**options)


def load(
    name: str, source: str | Path | None = None, /, *, limit: int | None = None, **options: object
) -> Loaded:
    """Read a benchmark: `build(name, **options).load(source, limit=limit)`.

    Example:
        >>> loaded = load("pocketedit", limit=3)
        >>> len(loaded), loaded.counts["reliability"]
        (3, 3)
    """
    return build(name, **options).load(source, limit=limit)


def card(name: str) -> dict[str, object]:
    """Front matter of a benchmark's card.

    Raises:
        UnknownBenchmark (CG508): no benchmark by that name.
    """
    _require(name)
    return card_in(PACKAGE, name).matter


def card_text(name: str) -> str:
    """Text of a benchmark's card, Markdown, without the front matter.

    Raises:
        UnknownBenchmark (CG508): no benchmark by that name.
    """
    _require(name)
    return card_in(PACKAGE, name).text


def _require(name: str) -> None:
    if name not in names():
        raise UnknownBenchmark(f'no benchmark "{name}".', hint=did_you_mean(name, names()))
