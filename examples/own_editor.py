"""Write an editor of one's own and use it as an object, like every other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

import corrigenda as cg
from corrigenda.editor import Edit, Requires
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.sites import Tokens, key
from corrigenda.lm.spans import encode_fact
from corrigenda.patch import header_for


class Silence(cg.Editor):
    """Removes what one block writes for the key of each subject."""

    name: ClassVar[str] = "silence"
    requires: ClassVar[Requires] = Requires(subject=True)

    layer: int = 2
    strength: float = 1.0

    def sites(self, lm: cg.LanguageModel) -> tuple[cg.Site, ...]:
        """Return the down projection of one block."""
        return (cg.Site(self.layer),)

    def edit(
        self, lm: cg.LanguageModel, facts: Sequence[cg.Fact], state: cg.State | None = None
    ) -> Edit:
        """Return a change of rank one by which (W + dW) k = (1 - strength) W k."""
        (site,) = self.sites(lm)
        header = header_for(lm, method=self.name, config=self.model_dump(), facts=facts)
        changes = {}
        for fact in facts:
            row = encode_fact(lm, fact)
            end = torch.tensor([row.subject_last])
            found = lm.tap(Tokens.pad([row.ids], pad_id=0), [key(site)], positions=end)
            k = found[key(site)].double().T
            removed = -self.strength * lm.weight(site).double() @ k
            changes[site] = LowRank(removed, k / k.square().sum())
        return Edit(cg.WeightPatch(changes, header), state)


def main() -> cg.Assessment:
    """Assess the edit of the pocket model by an object of the class above."""
    lm = cg.load("pocket")
    fact = cg.Fact(prompt="The capital of France is", subject="France", target="Rome")
    result = cg.correct(lm, fact, Silence(layer=2))
    print(result)
    return result


if __name__ == "__main__":
    main()
