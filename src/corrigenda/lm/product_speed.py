"""How fast this processor multiplies in half precision, by which a model's dtype is chosen.

Without units for bfloat16 or float16, products of passes over many tokens take 2 to 4 times as long
as in float32 with AVX2 or AVX-512 (1.3 with AVX-512 for bfloat16), and 10 to 35 times without.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from corrigenda.files import cache_folder, write_cached, write_text

HALF = (torch.bfloat16, torch.float16)
"""The dtypes that may be slow."""

_FOLDER = "speed"
_SLOW = 2.0
_ROWS, _WIDTH = 32, 1024
_SECONDS = 0.05


@cache
def is_slow(dtype: torch.dtype) -> bool:
    """Return whether products in a dtype take twice as long as in float32, on this processor.

    Measured once, in 0.2 seconds, and remembered in the cache for this processor and version of
    torch.
    """
    if dtype not in HALF:
        return False
    name = str(dtype).rpartition(".")[2]
    return _recall(name, lambda: measure(dtype) / measure(torch.float32)) > _SLOW


def product_rate(dtype: torch.dtype) -> float:
    """Return the operations a second of products in a dtype, on this processor.

    Measured once with as many threads as torch uses, and remembered as in `is_slow`.
    """
    threads = torch.get_num_threads()
    name = f"rate-{str(dtype).rpartition('.')[2]}-{threads}"
    return _recall(name, lambda: 2.0 * _ROWS * _WIDTH**2 / measure(dtype))


def _recall(name: str, find: Callable[[], float]) -> float:
    """Return a value measured on this processor, from the cache where it is there."""
    file = cache_folder() / _FOLDER / f"{_describe_processor()}-{name}"
    try:
        return float(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        value = find()
        write_cached(file, lambda path: write_text(path, f"{value:.3f}\n"))
        return value


@torch.no_grad()
def measure(dtype: torch.dtype) -> float:
    """Return the seconds of one product of 32 rows with a square matrix of 1,024, on the CPU.

    The least of those that fit into 0.05 seconds, and of two at least.
    """
    rows = torch.ones(_ROWS, _WIDTH, dtype=dtype)
    matrix = torch.ones(_WIDTH, _WIDTH, dtype=dtype)
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(times) < 2 or time.perf_counter() < end:
        begin = time.perf_counter()
        torch.nn.functional.linear(rows, matrix)
        times.append(time.perf_counter() - begin)
    return min(times)


def _describe_processor() -> str:
    """Return a name for processor and arithmetic, 16 hexadecimal digits."""
    known = {"model name", "flags", "Features"}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [platform.processor(), platform.machine()]
    kept = {line for line in lines if line.partition(":")[0].strip() in known or ":" not in line}
    limits = [os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")]
    text = "\0".join([*sorted(kept), *limits, torch.__version__])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
