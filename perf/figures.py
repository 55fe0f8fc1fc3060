"""How every script of this folder ends: a table of its figures, then one line of JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping

import torch
import transformers


def with_versions(figures: Mapping[str, object]) -> dict[str, object]:
    """Figures with the threads and versions they were measured with."""
    return {
        **figures,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def publish(
    figures: Mapping[str, object],
    goals: Mapping[str, float] | None = None,
    limits: Mapping[str, float] | None = None,
) -> None:
    """Print figures with the threads and versions they were measured with.

    Args:
        figures: By name, in the order of the table.
        goals: Least value of some of them; the table says whether it is reached.
        limits: Largest value of some of them, likewise.
    """
    complete = with_versions(figures)
    for name, value in complete.items():
        verdict = _verdict(value, (goals or {}).get(name), (limits or {}).get(name))
        print(f"{name:>28}  {value}{verdict}")
    print(json.dumps(complete))


def _verdict(value: object, goal: float | None, limit: float | None) -> str:
    wanted = goal if limit is None else limit
    if wanted is None or not isinstance(value, float | int):
        return ""
    reached = value >= wanted if limit is None else value <= wanted
    return (
        f"  {'goal' if limit is None else 'limit'} {wanted:g}: {'reached' if reached else 'MISSED'}"
    )
