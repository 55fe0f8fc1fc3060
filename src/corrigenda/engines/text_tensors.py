"""Texts among the tensors of a state or patch: part of its digest, and not of its header."""

from __future__ import annotations

import json
from dataclasses import asdict

import torch
from jaxtyping import UInt8
from pydantic import JsonValue
from torch import Tensor

from corrigenda.facts import Fact
from corrigenda.text_files import decode, parse_json


def as_tensor(value: JsonValue) -> UInt8[Tensor, " bytes"]:
    """Plain JSON values as the bytes of their text.

    Example:
        >>> as_value(as_tensor(["new", {"old": None}]))
        ['new', {'old': None}]
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def as_value(tensor: UInt8[Tensor, " bytes"]) -> JsonValue:
    """What `as_tensor` made a tensor of."""
    return parse_json(decode(bytes(tensor.tolist())), strict=False)


def facts_as_tensor(facts: tuple[Fact, ...]) -> UInt8[Tensor, " bytes"]:
    """Facts as bytes."""
    return as_tensor(json.loads(json.dumps([asdict(fact) for fact in facts])))


def facts_of(tensor: UInt8[Tensor, " bytes"]) -> tuple[Fact, ...]:
    """What `facts_as_tensor` made a tensor of."""
    rows = as_value(tensor)
    assert isinstance(rows, list), "a list of facts"
    return tuple(_fact(row) for row in rows)


def _fact(row: JsonValue) -> Fact:
    assert isinstance(row, dict), "a fact is a mapping"
    given = {key: tuple(one) if isinstance(one, list) else one for key, one in row.items()}
    return Fact(**given)  # type: ignore[arg-type]  # what `asdict` made of a Fact
