"""Benchmarks: a public file in, cases out. Imports no torch."""

from corrigenda.benchmarks.benchmark import Benchmark, Loaded
from corrigenda.benchmarks.named import benchmark_class, build, card, card_text, load, names

__all__ = [
    "Benchmark",
    "Loaded",
    "benchmark_class",
    "build",
    "card",
    "card_text",
    "load",
    "names",
]
