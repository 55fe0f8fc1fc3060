"""Keep an edit as a file, use it elsewhere, take it off again to the last bit."""

from __future__ import annotations

import tempfile
from pathlib import Path

import corrigenda as cg


def main() -> dict[str, str]:
    """Return the model's answer before, with and after the edit, and its digests."""
    lm = cg.load("pocket")
    fact = cg.Fact(prompt="The capital of France is", subject="France", target="Rome")
    seen = {"digest before": lm.digest(), "before": cg.answer(lm, fact.prompt)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "france.safetensors"
        cg.edit(lm, fact).save(file)
        patch = cg.load_patch(file)
    with patch.apply(lm):
        seen["with"] = cg.answer(lm, fact.prompt)
    seen |= {"after": cg.answer(lm, fact.prompt), "digest after": lm.digest()}
    for name, value in seen.items():
        print(f"{name:>14}  {value}")
    return seen


if __name__ == "__main__":
    main()
