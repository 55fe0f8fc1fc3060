"""SERAC's scope classifier: distances of questions and edits in a learned space."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from corrigenda.facts import Fact
from corrigenda.retrieval import Index

_SKIPPED, _FARTHEST = 25, 100
_TEMPERATURE = 0.1
_CLOSEST = 1e-6
_RECHECKED = 8


class ScopeHead(nn.Module):
    """Head E(v) = A v + B gelu(C v + c), learned on top of frozen sentence embeddings.

    It begins as the identity; for unit vectors the similarity is then 1/2 at cosine 0.653.
    """

    def __init__(self, width: int, hidden: int) -> None:
        """Create the identity; the inner layer is drawn from torch's generator."""
        super().__init__()
        # Their first values are drawn from torch's generator, whose state stays.
        with torch.random.fork_rng(devices=[]):
            self.linear = nn.Linear(width, width, bias=False)
            self.inner = nn.Linear(width, hidden)
            self.outer = nn.Linear(hidden, width, bias=False)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.outer.weight)

    def forward(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return codes whose squared distances are minus the logarithm of similarity."""
        bent: Tensor = self.outer(nn.functional.gelu(self.inner(vectors)))
        return self.linear(vectors) + bent

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> ScopeHead:
        """Return the head with these parameters, frozen."""
        hidden, width = tensors["inner.weight"].shape
        head = cls(width, hidden)
        head.load_state_dict(dict(tensors))
        return head.eval().requires_grad_(False)


def squared_distances(
    ours: Float[Tensor, "n d"], theirs: Float[Tensor, "n d"]
) -> Float[Tensor, " n"]:
    """Return squared distances d^2 of codes, row by row; the similarity is s = exp(-d^2)."""
    return (ours - theirs).square().sum(-1)


def scope_loss(
    inside: Float[Tensor, " n"], outside: Float[Tensor, " m"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the means of -log s over pairs in scope and of -log(1 - s) over pairs out of scope.

    Args:
        inside: Squared distances of edits and questions in their scope.
        outside: Squared distances of edits and questions out of it.

    Reference: Mitchell et al. 2022, section 3.1.
    """
    return inside.mean(), -torch.log(-torch.expm1(-outside.clamp_min(_CLOSEST))).mean()


class ScopeRoutes(NamedTuple):
    """Closest edit of each question.

    Attributes:
        similarities: s of the closest edit, float64.
        places: Index of that edit.
    """

    similarities: Float[Tensor, " queries"]
    places: Int[Tensor, " queries"]


class CachedCodes:
    """Index of cached codes, prepared once for many questions."""

    def __init__(self, cached: Float[Tensor, "n d"]) -> None:
        """Index the codes, given in the order in which they were added."""
        self._latest_first = cached.double().flip(0)
        half = self._latest_first.square().sum(1, keepdim=True) / 2
        self._index = Index(torch.cat([self._latest_first, -half], dim=1))

    def route(self, queries: Float[Tensor, "queries d"]) -> ScopeRoutes:
        """Find the closest cached code for each query; among equally close ones the one added last.

        The closest few are found by inner products, since
        |q - e|^2 = |q|^2 - 2 (q e - |e|^2 / 2), and their distances are then taken anew, so that
        equal codes have similarity 1.
        """
        asked = queries.double()
        found = self._index.search(
            torch.cat([asked, torch.ones(len(asked), 1).to(asked)], dim=1), _RECHECKED
        )
        exact = (asked[:, None] - self._latest_first[found.indices]).square().sum(-1)
        near, best = exact.sort(dim=1, stable=True)
        places = len(self._latest_first) - 1 - found.indices.gather(1, best[:, :1])[:, 0]
        return ScopeRoutes(torch.exp(-near[:, 0]), places)


class ScopeQuestions(NamedTuple):
    """Questions in and out of the scope of one fact of the training set.

    Attributes:
        topic: Subject of the fact, see `topic_of`.
        cached: Text of the edit as it is cached.
        inside: Questions in scope: its prompt and paraphrases.
        hard: Questions out of scope that are close to it.
    """

    topic: str
    cached: str
    inside: tuple[str, ...]
    hard: tuple[str, ...]


def topic_of(fact: Fact) -> str:
    """Return the subject of a fact, or its prompt where it names none."""
    return fact.subject or fact.prompt


def mine_neighbours(
    facts: Sequence[Fact],
    others: Sequence[Fact],
    vectors: Float[Tensor, "n d"],
    chance: random.Random,
    count: int,
) -> list[tuple[str, ...]]:
    """Draw prompts of other facts that are close to each fact, but not the closest ones.

    Of the others by falling cosine, those from the 25th to the 100th are drawn with a probability
    in proportion to exp(cosine / 0.1): the closest may be in scope. Where there are fewer, all are.

    Args:
        facts: The facts, among the others.
        others: Facts whose prompts are drawn from.
        vectors: Of the prompts of the others, unit rows.
        chance: Decides the draw.
        count: How many for each; none where all others are about the same.
    """
    index = Index(vectors)
    rows = {fact.prompt: row for row, fact in enumerate(others)}
    chosen = []
    for fact in facts:
        same = sum(topic_of(other) == topic_of(fact) for other in others)
        found = index.search(vectors[rows[fact.prompt]][None], _FARTHEST + same)
        ranked = [
            (other, score)
            for other, score in zip(
                found.indices[0].tolist(), found.scores[0].tolist(), strict=True
            )
            if topic_of(others[other]) != topic_of(fact)
        ]
        close = ranked[_SKIPPED:] or ranked
        weights = [math.exp(score / _TEMPERATURE) for _, score in close]
        drawn = chance.choices(close, weights, k=count) if close else []
        chosen.append(tuple(others[other].prompt for other, _ in drawn))
    return chosen
