"""Facts and pools shared by the tests of methods that put facts before questions."""

from __future__ import annotations

from collections.abc import Sequence

from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.patch.module import ModulePatch

EDITS = (
    Fact(prompt="The mother tongue of Ada Lovelace is", subject="Ada Lovelace", target="French"),
    Fact(prompt="The Space Needle is in", subject="Space Needle", target="Rome"),
    Fact(prompt="Toyota was founded by", subject="Toyota", target="Bill {target}"),
)


def pool(count: int = 40) -> list[Fact]:
    """Facts with paraphrases and neighbours, none about a subject of `EDITS`."""
    return [
        Fact(
            prompt=f"Person {n} speaks",
            subject=f"Person {n}",
            target=("Danish", "Czech", "Greek")[n % 3],
            paraphrases=(f"The language of Person {n} is",),
            neighbours=(f"Person {n + 100} speaks",),
            name=f"pool:{n}",
        )
        for n in range(count)
    ]


def asked(patch: ModulePatch, lm: LanguageModel, prompts: Sequence[str]) -> list[str]:
    """What a prompt patch asks instead of each prompt."""
    return [one.prompt for one in patch.rewrite(lm, prompts)]  # type: ignore[attr-defined]  # a prompt patch
