"""A patch, a state and the like on one line, and as a table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from torch import Tensor

from corrigenda.patch.header import Header

_SHOWN = 3
_WIDTH = 79


def one_line(header: Header, tensors: Mapping[str, Tensor]) -> str:
    """Return one screen line about a patch: method, facts, base model, size."""
    numbers = sum(tensor.numel() for tensor in tensors.values())
    facts = describe_facts(header.facts)
    base = f" on {header.base_name}" if header.base_name else ""
    size = f"{len(tensors)} tensors, {numbers:,} numbers"
    fixed = len(f"<{header.method} patch{base}: , {size}>")
    return f"<{header.method} patch{base}: {shorten(facts, max(_WIDTH - fixed, 9))}, {size}>"


def html_table(header: Header, tensors: Mapping[str, Tensor]) -> str:
    """Return a short HTML table about a patch, for notebooks."""
    rows = [("method", header.method), ("base model", header.base_name or "any")]
    rows += [("fact", describe_fact(fact)) for fact in header.facts[:_SHOWN]]
    if len(header.facts) > _SHOWN:
        rows.append(("facts", f"... {len(header.facts)} in all"))
    rows += [("tensors", f"{len(tensors)}, {sum(t.numel() for t in tensors.values()):,} numbers")]
    return table_of(rows)


def table_of(rows: Sequence[tuple[str, str]]) -> str:
    """Return an HTML table of names and values, escaped."""
    lines = [f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows]
    return f"<table>{''.join(lines)}</table>"


def describe_facts(facts: Sequence[Mapping[str, Any]]) -> str:
    """Return the only fact, or the number of facts."""
    return describe_fact(facts[0]) if len(facts) == 1 else f"{len(facts)} facts"


def describe_fact(fact: Mapping[str, Any]) -> str:
    """Return a fact's prompt and target on one line."""
    return " ".join(f"{fact.get('prompt', '?')} -> {fact.get('target', '?')}".split())


def shorten(text: str, width: int) -> str:
    """Return a text, cut to a width."""
    return text if len(text) <= width else f"{text[: max(width - 3, 0)]}..."
