"""What active patches know together is made once, and never of others than those asked."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch

from corrigenda.engines.patch_cache import Kept
from corrigenda.facts import Fact
from corrigenda.methods.ice.editor import IcePatch
from corrigenda.patch.module import ModulePatch
from corrigenda.testing.tiny import tiny_model


def patch(prompt: str) -> ModulePatch:
    fact = Fact(prompt=prompt, target="x")
    return IcePatch.make(tiny_model("gpt2"), {"v": torch.zeros(1)}, method="ice", facts=[fact])


def test_it_is_made_again_only_for_others() -> None:
    calls: list[list[str]] = []

    def prompts(patches: Sequence[ModulePatch]) -> list[str]:
        calls.append([fact.prompt for one in patches for fact in one.facts])
        return calls[-1]

    kept, first, second = Kept(prompts), patch("A is"), patch("B is")
    assert kept.of([first]) is kept.of([first])
    assert kept.of([first, second]) == ["A is", "B is"]
    assert kept.of([second, first]) == ["B is", "A is"]
    assert kept.of([second]) == kept.of([second]) == ["B is"]
    assert len(calls) == 4
    # Equal content is not enough: what was made is of the very patches.
    assert kept.of([patch("B is")]) == ["B is"]
    assert len(calls) == 5


def test_it_goes_with_the_patches() -> None:
    class Made:
        alive = 0

        def __init__(self, _: object) -> None:
            Made.alive += 1

        def __del__(self) -> None:
            Made.alive -= 1

    kept, one = Kept(Made), patch("A is")
    kept.of([one])
    assert Made.alive == 1
    del one
    gc.collect()
    assert Made.alive == 0
