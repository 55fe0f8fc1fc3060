"""Models, facts and states shared by the tests of locate-then-edit methods."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from corrigenda.almanac.corpus import texts
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.facts import Fact
from corrigenda.linalg.moments import SecondMoment
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.state import State
from corrigenda.statistics import Corpus, fit_moments
from corrigenda.testing.tiny import tiny_model

PLAIN = Contexts(("", "I think so. ", "Therefore, it was {found}. "))
TWO_LEVEL = Contexts(PLAIN.prefixes, groups=(0, 1, 1))

FACTS = (
    Fact(prompt="The Space Needle is in the city of", subject="Space Needle", target="Paris"),
    Fact(
        prompt="The mother tongue of Albert Einstein is",
        subject="Albert Einstein",
        target="Portuguese, of course",
    ),
    Fact(prompt="Claude Monet was born in", subject="Claude Monet", target="Tokyo"),
    Fact(prompt="Windows", subject="Windows", target="is made by Apple"),
)


def model(family: str = "gpt2", dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Return a random tiny model."""
    return tiny_model(family, dtype=dtype)


def exact_dtype(family: str) -> torch.dtype:
    """float64 where the model can: masks overflow in the float32 attention of Gemma 2."""
    return torch.float32 if family == "gemma2" else torch.float64


def moments(lm: LanguageModel, layers: Sequence[int], seed: int = 0) -> State:
    """Return well-conditioned second moments that are not a multiple of the identity."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in layers:
        width = lm.weight(Site(layer)).shape[1]
        mix = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
        keys = torch.randn(8 * width, width, generator=generator, dtype=torch.float64)
        moment = SecondMoment(width)
        moment.update(keys @ (torch.eye(width, dtype=torch.float64) + 0.5 * mix))
        found[Site(layer)] = moment
    return State.of_moments(found)


@cache
def pocket() -> LanguageModel:
    """Return the shipped model, in float32."""
    return LanguageModel.load("pocket", dtype=torch.float32)


@cache
def pocket_moments(layers: tuple[int, ...]) -> State:
    """Return second moments of the shipped model over a few hundred documents of its world."""
    corpus = Corpus(list(texts(300)))
    return fit_moments(pocket(), [Site(layer) for layer in layers], corpus, keep=False)
