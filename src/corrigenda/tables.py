"""Tables of text: aligned columns for a terminal, HTML for a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence

_GAP = "  "


def align_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table as lines with aligned columns.

    Example:
        >>> print(align_table([("name", "n"), ("rome", "12")]))
        name  n
        rome  12
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_GAP.join(map(str.ljust, row, widths)).rstrip() for row in rows)


def write_html_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML; its first row is the head.

    Example:
        >>> write_html_table([("a",), ("<b>",)])
        '<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """
    heads, *body = ([html.escape(cell) for cell in row] for row in rows)
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
