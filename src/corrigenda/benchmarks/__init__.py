"""Benchmarks: a public file in, cases out. Imports no torch."""

from corrigenda.benchmarks.benchmark import Benchmark, LoadedBenchmark, load

__all__ = [
    "Benchmark",
    "LoadedBenchmark",
    "load",
]
