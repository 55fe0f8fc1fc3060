"""Benchmarks: read a public file as cases. Imports no torch."""

from corrigenda.benchmarks.benchmark import Benchmark, LoadedBenchmark, load

__all__ = [
    "Benchmark",
    "LoadedBenchmark",
    "load",
]
