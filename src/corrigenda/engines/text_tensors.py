"""Texts and facts as tensors of bytes, so that they are part of a digest and not of a header."""

from __future__ import annotations

import json
from dataclasses import asdict

import torch
from jaxtyping import UInt8
from pydantic import JsonValue
from torch import Tensor

from corrigenda.facts import Fact
from corrigenda.text_files import decode, parse_json


def encode_value(value: JsonValue) -> UInt8[Tensor, " bytes"]:
    """Return a JSON value as the bytes of its text.

    Example:
        >>> decode_value(encode_value(["new", {"old": None}]))
        ['new', {'old': None}]
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def decode_value(tensor: UInt8[Tensor, " bytes"]) -> JsonValue:
    """Return the JSON value that `encode_value` was given."""
    return parse_json(decode(bytes(tensor.tolist())), strict=False)


def encode_facts(facts: tuple[Fact, ...]) -> UInt8[Tensor, " bytes"]:
    """Return facts as bytes."""
    return encode_value(json.loads(json.dumps([asdict(fact) for fact in facts])))


def decode_facts(tensor: UInt8[Tensor, " bytes"]) -> tuple[Fact, ...]:
    """Return the facts that `encode_facts` was given."""
    rows = decode_value(tensor)
    assert isinstance(rows, list), "a list of facts"
    return tuple(_decode_fact(row) for row in rows)


def _decode_fact(row: JsonValue) -> Fact:
    assert isinstance(row, dict), "a fact is a mapping"
    given = {key: tuple(one) if isinstance(one, list) else one for key, one in row.items()}
    return Fact(**given)  # type: ignore[arg-type]  # what `asdict` made of a Fact
