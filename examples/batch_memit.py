"""Write many facts at once with MEMIT."""

from __future__ import annotations

import corrigenda as cg

CAPITALS = {
    "France": "Rome",
    "Spain": "Vienna",
    "Japan": "Lima",
    "Egypt": "Oslo",
    "Canada": "Madrid",
    "Poland": "Cairo",
    "Kenya": "Berlin",
    "Peru": "Athens",
}


def main() -> cg.Assessment:
    """Move eight capitals in one patch."""
    lm = cg.load("pocket")
    facts = [
        cg.Fact(prompt=f"The capital of {country} is", subject=country, target=city)
        for country, city in CAPITALS.items()
    ]
    correction = cg.correct(lm, facts, "memit")
    for fact, outcome in zip(correction.facts, correction.outcomes, strict=True):
        print(f"{fact.prompt} {fact.target}: {outcome}")
    for change in correction.changes:
        print(f"{change.site}: rank {change.rank}, {change.relative_norm:.1%} of the weight's norm")
    return correction


if __name__ == "__main__":
    main()
