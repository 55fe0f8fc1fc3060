"""How a training is run, apart from what it computes: checkpoints and progress."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from corrigenda.progress import Progress


class TrainingJob(NamedTuple):
    """Where a training writes its checkpoints, and how it reports progress.

    Attributes:
        checkpoint: File for checkpoints, read where it exists; no checkpoints if None.
        progress: Called with (stage, done, total).
    """

    checkpoint: Path | None = None
    progress: Progress | None = None


QUIET = TrainingJob()
"""A job without checkpoints that reports nothing."""
