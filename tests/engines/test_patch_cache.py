"""A value built from active patches is built once, and only for the very patches asked."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch

from corrigenda.engines.patch_cache import PatchCache
from corrigenda.facts import Fact
from corrigenda.methods.ice.editor import IcePatch
from corrigenda.patch.module import ModulePatch
from corrigenda.testing.tiny import tiny_model


def patch(prompt: str) -> ModulePatch:
    fact = Fact(prompt=prompt, target="x")
    return IcePatch.make(tiny_model("gpt2"), {"v": torch.zeros(1)}, method="ice", facts=[fact])


def test_it_is_built_again_only_for_other_patches() -> None:
    calls: list[list[str]] = []

    def prompts(patches: Sequence[ModulePatch]) -> list[str]:
        calls.append([fact.prompt for one in patches for fact in one.facts])
        return calls[-1]

    cache, first, second = PatchCache(prompts), patch("A is"), patch("B is")
    assert cache.get([first]) is cache.get([first])
    assert cache.get([first, second]) == ["A is", "B is"]
    assert cache.get([second, first]) == ["B is", "A is"]
    assert cache.get([second]) == cache.get([second]) == ["B is"]
    assert len(calls) == 4
    # Equal content is not enough: what was built belongs to the very patches.
    assert cache.get([patch("B is")]) == ["B is"]
    assert len(calls) == 5


def test_it_goes_with_the_patches() -> None:
    class Made:
        alive = 0

        def __init__(self, _: object) -> None:
            Made.alive += 1

        def __del__(self) -> None:
            Made.alive -= 1

    cache, one = PatchCache(Made), patch("A is")
    cache.get([one])
    assert Made.alive == 1
    del one
    gc.collect()
    assert Made.alive == 0
