"""See where a model recalls a fact: causal tracing, drawn as text."""

from __future__ import annotations

import corrigenda as cg


def main() -> str:
    """Return the map of the effect of restoring each state."""
    lm = cg.load("pocket")
    plot = cg.trace(lm, "The capital of France is", "France").plot()
    print(plot)
    return str(plot)


if __name__ == "__main__":
    main()
