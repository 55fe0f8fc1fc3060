"""Figures of a server in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Figure(NamedTuple):
    """A figure with its values.

    Attributes:
        name: Its name.
        kind: "counter" or "gauge".
        help: What it is.
        values: Labels and value of each series.
    """

    name: str
    kind: str
    help: str
    values: Sequence[tuple[Mapping[str, str], float]]


def format_figures(figures: Sequence[Figure]) -> str:
    """Return figures in the text format 0.0.4 of Prometheus.

    Example:
        >>> print(format_figures([Figure("a_total", "counter", "Of a.", [({"b": "c"}, 1)])]))
        # HELP a_total Of a.
        # TYPE a_total counter
        a_total{b="c"} 1
        <BLANKLINE>
    """
    lines: list[str] = []
    for figure in figures:
        lines += [f"# HELP {figure.name} {figure.help}", f"# TYPE {figure.name} {figure.kind}"]
        for labels, value in figure.values:
            inside = ",".join(f'{name}="{_escape(text)}"' for name, text in labels.items())
            name = f"{figure.name}{{{inside}}}" if inside else figure.name
            lines.append(f"{name} {value!r}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
