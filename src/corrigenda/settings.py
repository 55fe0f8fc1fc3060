"""Frozen, validated settings: what editors, transforms and benchmarks have in common."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from corrigenda.errors import BadConfig, did_you_mean


def bad_config(kind: type[BaseModel], error: ValidationError, *, where: str) -> BadConfig:
    """The error for options that do not fit a configuration, all problems in one message."""
    problems, hints = [], []
    for item in error.errors():
        option = ".".join(map(str, item["loc"])) or "options"
        problems.append(f"{option}: {item['msg']}")
        if item["type"] == "extra_forbidden":
            hints.append(did_you_mean(option, list(kind.model_fields)))
    return BadConfig("; ".join(problems) + ".", where=where, hint=" ".join(hints))
