"""Text of models, files and users in Markdown, where none of its signs may take effect."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Signs that take effect anywhere, an underscore at the edge of a word, and what begins a block.
_MARKDOWN = re.compile(
    r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|^[#>+=-]|(?<=^\d)[.)]|(?<=^\d\d)[.)]"
)


def write_markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; cells are taken as Markdown, see `escape_markdown`."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escape_markdown(text: str) -> str:
    """Return text as it is read: no sign of Markdown or HTML takes effect, no line ends."""
    # Entities, since some readers of Markdown take a tag for one also after a backslash.
    plain = join_lines(text).strip().replace("&", "&amp;").replace("<", "&lt;")
    return _MARKDOWN.sub(r"\\\g<0>", plain)


def format_code(text: str) -> str:
    """Return text as code in a line or in a cell of a table."""
    text = join_lines(text)
    fence = "`" * (longest_run(text, "`") + 1)
    edge = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{edge}{text}{edge}{fence}".replace("|", "\\|")


def join_lines(text: str) -> str:
    """Return text on one line, without signs that control a terminal or a page."""
    return "".join(one if one.isprintable() else " " for one in text)


def longest_run(text: str, sign: str) -> int:
    """Return how often a sign is repeated at most, so that a longer fence can be chosen."""
    return max(map(len, re.findall(f"{re.escape(sign)}+", text)), default=0)
