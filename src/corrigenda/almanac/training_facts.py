"""Facts of the pocket world to train learned methods on. Imports no torch."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from corrigenda.almanac.exam import draw_edit
from corrigenda.almanac.skill_documents import list_teachable
from corrigenda.almanac.world import Triple, World, load_world
from corrigenda.facts import Fact

_FEWEST = 12


def training_facts(
    variants: int = 3, *, world: World | None = None, seed: int = 13
) -> Iterator[Fact]:
    """Yield counterfactual edits to train on, in a fixed order: 3,873 of the full world.

    Each has paraphrases (statements and questions) and, as neighbours, prompts for the same
    relation of other subjects and for other facts of its own.

    They are about the subjects that documents of skills leave out (`World.skill_held_out`), some 15
    in 100, and so are their neighbours. The edits of `almanac.exam`, with every seed and of any
    number, are about all the other subjects: no subject and no fact is in both. Targets and
    phrasings are shared, as in any split of a benchmark by records.

    Args:
        variants: Edits of each fact, with targets and phrasings of their own.
        world: The world; the full one if None.
        seed: Decides targets, phrasings and neighbours.
    """
    world = world or load_world()
    draw = random.Random(f"training/{seed}")
    usable = [
        triple
        for triple in list_teachable(world, held_out=True)
        if len(triple.objects) == 1 and len(world.of_relation(triple.relation)) > _FEWEST
    ]
    pools: dict[str, list[Triple]] = defaultdict(list)
    for triple in list_teachable(world, held_out=True):
        pools[triple.relation].append(triple)
    for _ in range(variants):
        for triple in usable:
            item = draw_edit(world, triple, draw, pool=pools[triple.relation])
            fact = item.fact
            yield replace(fact, neighbours=fact.neighbours + fact.same_subject, same_subject=())
