"""Where the text for statistics comes from, and how it becomes rows of tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

Source = str | Path | Iterable[str | Path]
"""Text: one `str` or `Path` is a file (`.txt`, `.jsonl`) or `datasets:NAME[:CONFIG[:SPLIT]]`; of an iterable, a `str` is a
document and a `Path` is a file."""


@dataclass(frozen=True)
class Corpus:
    """Text with the way it is read.

    Attributes:
        source: See `Source`; None is the shipped corpus of a pocket model, else text that the model writes itself.
        num_tokens: Stop after so many tokens. None: 1,000,000 of a given text, 10 d_in of the model's own.
        length: Most tokens of a row; None: the model's context, at most 1024.
        pack: Fill rows by joining documents; otherwise each document is its own row and cut at `length`.
        include_first_token: Count the key at position 0, which in many models is an outlier of huge norm.
        seed: Seed of text that the model writes itself.
    """

    source: Source | None = None
    num_tokens: int | None = None
    length: int | None = None
    pack: bool = True
    include_first_token: bool = True
    seed: int = 0
