"""Benchmarks: a public file in, cases out. Imports no torch."""

from corrigenda.benchmarks.benchmark import Benchmark, Loaded, load

__all__ = [
    "Benchmark",
    "Loaded",
    "load",
]
