"""True facts of the pocket world, each with a false one, as answers to questions. No torch."""

from __future__ import annotations

import random
from collections.abc import Iterator

from corrigenda.almanac.documents import Author, assemble, fill_template
from corrigenda.almanac.skill_documents import list_teachable
from corrigenda.almanac.world import Triple, World, load_world
from corrigenda.facts import Fact


def truth_facts(
    *, world: World | None = None, held_out: bool = True, seed: int = 17
) -> Iterator[Fact]:
    """Yield questions whose `target` is a true sentence and whose `before` is a false one.

    Both sentences have the same words but for the object, which comes last and is another one of
    the relation. Only after it do the pocket models tell a true sentence from a false one.

    Args:
        world: The world; the full one if None.
        held_out: About the subjects that documents of skills leave out, which no edit of
            `almanac.exam` is about; False for all the others, to examine on.
        seed: Decides phrasings, false objects and order.
    """
    world = world or load_world()
    draw = random.Random(f"truths/{seed}")
    author = Author(world, draw)
    usable = [
        triple for triple in list_teachable(world, held_out=held_out) if len(triple.objects) == 1
    ]
    draw.shuffle(usable)
    for triple in usable:
        yield make_truth_fact(author, triple)


def make_truth_fact(author: Author, triple: Triple) -> Fact:
    """Make a question about a fact, with a true and a false sentence that answer it."""
    question = author.choose_phrasing(triple, kind="question")
    statement = author.choose_phrasing(triple, kind="cloze")
    told = [
        assemble([*fill_template(statement, triple.subject, value), "."]).text
        for value in (triple.object, author.draw_other_object(triple))
    ]
    return Fact(
        prompt=assemble(fill_template(question, triple.subject, None)).text,
        target=told[0],
        subject=triple.subject,
        subject_start=question.index("{s}"),
        before=told[1],
        name=f"{triple.subject}/{triple.relation}",
    )
