"""Text of the pocket world, for key statistics of the pocket models. Imports no torch."""

from __future__ import annotations

import random
from collections.abc import Iterator

from corrigenda.almanac.documents import write_fact_documents
from corrigenda.almanac.skill_documents import write_skill_documents
from corrigenda.almanac.world import World, load_world


def texts(count: int = 4000, *, world: World | None = None, seed: int = 11) -> Iterator[str]:
    """Yield documents like those of training, three about facts to one that teaches a skill.

    Args:
        count: Number of documents, of about 45 tokens each.
        world: The world; the full one if None.
        seed: Decides the draw.
    """
    world = world or load_world()
    draw = random.Random(f"corpus/{seed}")
    facts = write_fact_documents(world, random.Random(f"corpus/{seed}/facts"))
    skills = write_skill_documents(world, random.Random(f"corpus/{seed}/skills"))
    for _ in range(count):
        yield next(skills if draw.random() < 0.25 else facts).text
