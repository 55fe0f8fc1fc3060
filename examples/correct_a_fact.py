"""Correct one fact, see what changed and what did not."""

from __future__ import annotations

import corrigenda as cg
from corrigenda.prompt_answers import Role


def main() -> cg.Assessment:
    """Correct where France is governed from, and show every answer before and after."""
    lm = cg.load("pocket")
    fact = cg.Fact(
        prompt="The capital of France is",
        subject="France",
        target="Rome",
        paraphrases=("France is governed from", "The capital city of France is"),
        neighbours=("The capital of Spain is", "The capital of Japan is"),
    )
    correction = cg.correct(lm, fact, "rome")
    for item in correction.answers:
        print(f"{item.role:>10}  {item.prompt}: {item.before} -> {item.after}")
    print(f"neighbours kept: {correction.share(Role.NEIGHBOUR):.0%}")
    return correction


if __name__ == "__main__":
    main()
