"""Read a patch from a file and measure what it does, also to facts of one's own."""

from __future__ import annotations

import tempfile
from pathlib import Path

import corrigenda as cg


def main() -> tuple[cg.Assessment, cg.Assessment]:
    """Return the assessment on the facts of the patch, and on another fact."""
    lm = cg.load("pocket")
    fact = cg.Fact(prompt="The capital of France is", subject="France", target="Rome")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "france.safetensors"
        cg.edit(lm, fact).save(file)
        patch = cg.load_patch(file)
    own = cg.assess(lm, patch)
    print(own)
    other = cg.assess(
        lm, patch, {"prompt": "The capital of {} is", "subject": "Spain", "target": "Madrid"}
    )
    print(other)
    return own, other


if __name__ == "__main__":
    main()
