"""A stream in a process of its own, to be killed: `python -m tests.support.stream_process`."""

from __future__ import annotations

import sys

import corrigenda as cg
from tests.support.streams import EDITORS, facts, lm, state_of


def main(name: str, folder: str, count: int, size: int) -> None:
    """Say that it begins, stream into a folder, and say that it ended."""
    state, model = state_of(name), lm()
    print("begun", flush=True)
    cg.stream(
        model, EDITORS[name], facts(count), batch_size=size, folder=folder, state=state,
        progress=False,
    )  # fmt: skip
    print("ended", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
