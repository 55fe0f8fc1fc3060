"""Try one method at every block of a model, and see where the edit does best."""

from __future__ import annotations

import corrigenda as cg


def main(layers: range | None = None) -> dict[int, cg.Assessment]:
    """Return the assessment of a ROME edit at each block, all of them by default."""
    lm = cg.load("pocket")
    fact = cg.Fact(prompt="The capital of France is", subject="France", target="Rome")
    found = {}
    for editor in [cg.Rome(layer=layer) for layer in layers or range(lm.num_layers)]:
        result = cg.correct(lm, fact, editor)
        found[editor.layer] = result
        shares = [result.share(role) for role in ("prompt", "paraphrase", "neighbour")]
        print(f"block {editor.layer}:", *(f"{share:.0%}" for share in shares))
    return found


if __name__ == "__main__":
    main()
