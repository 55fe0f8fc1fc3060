"""TruthX's training states: a model's modules at tokens of truthful and untruthful answers."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.errors import BadConfig
from corrigenda.facts import Fact
from corrigenda.lm.kv_cache import batches, pad_id
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Site, Tokens, key, write
from corrigenda.lm.spans import Encoded, encode
from corrigenda.progress import Progress


class StatePairs(NamedTuple):
    """Pairs of states at tokens that two answers share.

    Attributes:
        states: By module, pairs of states, the one within the truthful answer first; in the dtype
            of the model, on the CPU.
        num_facts: Facts they come from.
        num_without: Further facts whose answers share no token after their first difference.
    """

    states: tuple[Float[Tensor, "pairs 2 d"], ...]
    num_facts: int
    num_without: int


def module_points(lm: LanguageModel) -> tuple[Point, ...]:
    """Return the 2n modules of a model of n blocks, by their ids.

    Module 2l is the attention of block l, seen before its output projection; module 2l + 1 its
    feed-forward block, seen where it joins the residual stream.
    """
    return tuple(
        point
        for layer in range(lm.num_layers)
        for point in (key(Site(layer, "attn.out")), write(Site(layer)))
    )


def module_name(module: int) -> str:
    """Return the name of a module in files and notes.

    Example:
        >>> module_name(5)
        '2.mlp'
    """
    return f"{module // 2}.{('attn', 'mlp')[module % 2]}"


def require_pairs(facts: Sequence[Fact]) -> None:
    """Refuse facts that give no pair of answers.

    Raises:
        BadConfig (CG502): one has no `before`, or the same as its target.
    """
    for fact in facts:
        if fact.before is None or fact.before == fact.target:
            raise BadConfig(
                "a truthful answer (`target`) needs an untruthful one (`before`) with it.",
                where=fact.label,
                hint="Give facts whose target is the truth and whose `before` is another answer.",
            )


def shared_tokens(first: Sequence[int], second: Sequence[int]) -> list[tuple[int, int]]:
    """Return places of equal tokens in two answers after their first difference, each used once.

    Before it both answers have the same states.

    Example:
        >>> shared_tokens([5, 7, 1, 2], [5, 8, 9, 1, 2])
        [(2, 3), (3, 4)]
    """
    start = next(
        (at for at, (one, two) in enumerate(zip(first, second, strict=False)) if one != two),
        min(len(first), len(second)),
    )
    places: dict[int, list[int]] = defaultdict(list)
    for at in range(len(second) - 1, start - 1, -1):
        places[second[at]].append(at)
    return [(at, places[first[at]].pop()) for at in range(start, len(first)) if places[first[at]]]


def read_pairs(
    lm: LanguageModel,
    facts: Sequence[Fact],
    *,
    max_pairs: int,
    seed: int,
    progress: Progress | None = None,
) -> StatePairs:
    """Read both answers of facts until there are enough pairs of states.

    Args:
        lm: The model as it is.
        facts: Prompts with a truthful answer (`target`) and an untruthful one (`before`).
        max_pairs: Facts are taken until there are so many pairs.
        seed: Of the order in which facts are taken.
        progress: Called with ("reading answers", rows done, rows in all).

    Raises:
        BadConfig (CG502): no pair of answers shares a token; see also `require_pairs`.
        PromptTooLong (CG105): a prompt and an answer exceed the context.
    """
    require_pairs(facts)
    order = list(facts)
    random.Random(f"pairs/{seed}").shuffle(order)
    rows: list[Encoded] = []
    places: list[list[int]] = []
    found = without = 0
    for fact in order:
        if found >= max_pairs:
            break
        both = [
            encode(lm, fact.prompt, target=answer, separator=fact.separator, where=fact.label)
            for answer in (fact.target, fact.before or "")
        ]
        shared = shared_tokens(both[0].target_ids, both[1].target_ids)[: max_pairs - found]
        found, without = found + len(shared), without + (not shared)
        if shared:
            rows += both
            for one, at in zip(both, zip(*shared, strict=True), strict=True):
                places.append([one.labels[place] for place in at])
    if not rows:
        raise BadConfig(
            "the two answers of a fact never share a token after their first difference.",
            where=f"{len(order)} facts",
            hint="Write answers as sentences: states are compared at the words both have.",
        )
    taken: list[list[Tensor]] = [[]] * len(rows)
    done = 0
    for group in batches(lm, [len(row.ids) for row in rows], None):
        for index, states in zip(group, _read(lm, rows, places, group), strict=True):
            taken[index] = states
        done += len(group)
        if progress is not None:
            progress("reading answers", done, len(rows))
    states = tuple(
        torch.cat(
            [
                torch.stack([taken[index][module], taken[index + 1][module]], dim=1)
                for index in range(0, len(rows), 2)
            ]
        )
        for module in range(2 * lm.num_layers)
    )
    return StatePairs(states, len(rows) // 2, without)


def _read(
    lm: LanguageModel, rows: Sequence[Encoded], places: Sequence[list[int]], group: Sequence[int]
) -> list[list[Tensor]]:
    """Return the states of each row of a batch, by module, at its places."""
    width = max(len(places[index]) for index in group)
    at = torch.tensor(
        [[*places[index], *[places[index][-1]] * (width - len(places[index]))] for index in group]
    )
    tokens = Tokens.pad([rows[index].ids for index in group], pad_id(lm)).to(lm.device)
    points = module_points(lm)
    seen = lm.tap(tokens, points, positions=at.to(lm.device))
    return [
        [seen[point][row, : len(places[index])].cpu() for point in points]
        for row, index in enumerate(group)
    ]
