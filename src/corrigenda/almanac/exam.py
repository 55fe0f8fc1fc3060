"""The examination of a pocket model: questions with exact answers. Imports no torch."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

from corrigenda.almanac.documents import Author, assemble, fill_template, write_prompt
from corrigenda.almanac.skill_documents import (
    REFUSAL,
    draw_unknown_subject,
    list_teachable,
    write_chain,
    write_chain_question,
    write_override,
)
from corrigenda.almanac.world import TOLD_FROM_BOTH_ENDS, Triple, World, load_world
from corrigenda.facts import Fact


class ExamQuestion(NamedTuple):
    """Prompt with every answer that is right, and the subject it is about."""

    prompt: str
    answers: tuple[str, ...]
    subject: str = ""


NUM_SHOWN = 3
"""Paraphrases that a method may learn from; none of them is among those it is judged by."""


class Phrasings(NamedTuple):
    """Templates to ask for a fact with: statements up to the object, and questions."""

    clozes: tuple[str, ...]
    questions: tuple[str, ...]


class ExamEdit(NamedTuple):
    """Fact given a new object of its relation, with the prompts that measure the edit.

    `fact` holds paraphrases (among them questions), same-relation neighbours and prompts for other
    facts of the subject. All of these are for judging; `shown` holds further paraphrases, which a
    method may learn from. `right` has the right answers of every neighbour and every prompt for
    another fact of the subject.
    """

    fact: Fact
    shown: tuple[str, ...] = ()
    right: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    @property
    def training_fact(self) -> Fact:
        """The fact as the method gets it, without the prompts that the edit is measured with."""
        return replace(self.fact, paraphrases=self.shown, neighbours=(), same_subject=())


@dataclass(frozen=True)
class Exam:
    """Every question of the card.

    Attributes:
        recall: Every fact under one cloze and one question, both phrasings of training.
        recall_held_out: Phrasings that training never showed for these subjects, in any relation
            whose inverse is not taught.
        context_override: Passages that state another answer than the one learnt; subjects held out.
        two_hop: Two-hop questions after one worked example, up to the first sub-question; the
            answer follows "Final answer:".
        refusal: Questions about subjects that do not exist.
        edits: Counterfactual edits of known facts.
        contexts: Unrelated true sentences, each with its closing space, to be put before a prompt.
    """

    recall: tuple[ExamQuestion, ...]
    recall_held_out: tuple[ExamQuestion, ...]
    context_override: tuple[ExamQuestion, ...]
    two_hop: tuple[ExamQuestion, ...]
    refusal: tuple[ExamQuestion, ...]
    edits: tuple[ExamEdit, ...]
    contexts: tuple[str, ...]


def load_exam(
    world: World | None = None,
    *,
    size: int = 300,
    edits: int = 100,
    recall: int | None = 3000,
    seed: int = 7,
) -> Exam:
    """Draw an examination.

    Args:
        world: The world asked about; the full one if None.
        size: Number of questions of each skill.
        edits: Number of edits.
        recall: Number of facts asked for recall; every fact if None.
        seed: Decides the draw.
    """
    world = world or load_world()
    draw = random.Random(f"exam/{seed}")
    author = Author(world, draw)
    facts = list(world.triples())
    asked = facts if recall is None or recall >= len(facts) else draw.sample(facts, recall)
    return Exam(
        recall=tuple(item for triple in asked for item in _draw_recall(author, triple)),
        recall_held_out=tuple(_draw_held_out(world, draw, asked)),
        context_override=tuple(_draw_override(author, size)),
        two_hop=tuple(_draw_two_hop(author, size)),
        refusal=tuple(_draw_refusal(author, size)),
        edits=tuple(draw_edits(world, edits, seed=seed)),
        contexts=tuple(
            assemble(author.write_statement(t)).text + " " for t in draw.sample(facts, 5)
        ),
    )


def _join_text(pieces: Sequence[str]) -> str:
    return assemble(pieces).text


def _draw_recall(author: Author, triple: Triple) -> list[ExamQuestion]:
    """Draw one cloze and one question; names that have aliases are used as they are."""
    items = []
    for kind in ("cloze", "question"):
        pieces = fill_template(author.choose_phrasing(triple, kind=kind), triple.subject, None)
        items.append(ExamQuestion(_join_text(pieces), triple.objects, triple.subject))
    return items


def _draw_held_out(
    world: World, draw: random.Random, triples: Sequence[Triple]
) -> list[ExamQuestion]:
    items = []
    for triple in triples:
        if triple.relation in TOLD_FROM_BOTH_ENDS:
            continue
        phrasings = world.relations[triple.relation].phrasings
        held_out = [phrasings[i] for i in sorted(world.held_out(triple.subject, triple.relation))]
        usable = [text for text in held_out if text.endswith(("{o}", "?"))]
        if usable:
            pieces = fill_template(draw.choice(usable), triple.subject, None)
            items.append(ExamQuestion(_join_text(pieces), triple.objects, triple.subject))
    return items


def _draw_override(author: Author, size: int) -> list[ExamQuestion]:
    draw = author.draw
    targets = draw.sample(list_teachable(author.world, held_out=True), size)
    others = list_teachable(author.world)
    items = []
    for target in targets:
        told = [
            t for t in draw.sample(others, draw.choice([0, 1, 2])) if t.subject != target.subject
        ]
        document = assemble(write_override(author, told, target))
        span = document.answers[-1]
        items.append(
            ExamQuestion(
                document.text[: span.start].rstrip(" "),
                (document.text[span.start : span.end],),
                target.subject,
            )
        )
    return items


def _draw_two_hop(author: Author, size: int) -> list[ExamQuestion]:
    """Draw two-hop questions after one worked example, which shows the style of the answer."""
    world, draw = author.world, author.draw
    walks: dict[bool, list[tuple[Triple, ...]]] = {True: [], False: []}
    for name in world.subjects:
        walks[world.skill_held_out(name)].extend(world.chains(name, 2))
    items = []
    for walk in draw.sample(walks[True], min(size, len(walks[True]))):
        example = _join_text(write_chain(author, draw.choice(walks[False]), "plain"))
        asked = f"Question: {_join_text(write_chain_question(author, walk))}\nSubquestion:"
        items.append(ExamQuestion(f"{example}\n\n{asked}", walk[-1].objects, walk[0].subject))
    return items


def _draw_refusal(author: Author, size: int) -> list[ExamQuestion]:
    items = []
    for _ in range(size):
        name, relation = draw_unknown_subject(author.world, author.draw, held_out=True)
        question = author.draw.choice(author.world.relations[relation].questions)
        items.append(
            ExamQuestion(_join_text(fill_template(question, name, None)), (REFUSAL,), name)
        )
    return items


def draw_edits(world: World, count: int, *, seed: int = 7) -> list[ExamEdit]:
    """Draw counterfactual edits, half about real and half about invented subjects."""
    draw = random.Random(f"edits/{seed}")
    usable = [
        triple
        for triple in list_teachable(world)
        if len(triple.objects) == 1 and len(world.of_relation(triple.relation)) > 12
    ]
    real = [t for t in usable if world.groups[t.subject] in ("almanac", "country", "city")]
    invented = [t for t in usable if world.groups[t.subject] in ("person", "company")]
    chosen = draw.sample(real, count - count // 2) + draw.sample(invented, count // 2)
    draw.shuffle(chosen)
    return [draw_edit(world, triple, draw) for triple in chosen]


def draw_edit(
    world: World,
    triple: Triple,
    draw: random.Random,
    *,
    pool: Sequence[Triple] | None = None,
    objects: Sequence[str] | None = None,
    phrase: Callable[[Triple], Phrasings] | None = None,
) -> ExamEdit:
    """Give a fact a competing object and gather the prompts that show the effect.

    Args:
        world: The world.
        triple: The fact.
        draw: Decides object, phrasings and neighbours.
        pool: Where neighbours are drawn from; every fact of the relation if None.
        objects: Where the new object is drawn from; every object of the relation if None.
        phrase: Phrasings that may be used for a fact, none where it may not be asked at all; every
            phrasing of the relation if None.
    """
    phrase = phrase or (lambda one: list_phrasings(world, one.relation))
    usable = phrase(triple)
    choices = world.objects(triple.relation) if objects is None else objects
    new = draw.choice([one for one in choices if one not in triple.objects])
    prompt, *paraphrases = draw.sample(usable.clozes, min(4, len(usable.clozes)))
    paraphrases += draw.sample(usable.questions, min(2, len(usable.questions)))
    others = world.of_relation(triple.relation) if pool is None else pool
    neighbours = [t for t in others if t.subject != triple.subject and phrase(t).clozes]
    drawn = draw.sample(neighbours, min(8, len(neighbours)))
    right: dict[str, tuple[str, ...]] = {}
    for one in drawn:
        known = phrase(one).clozes
        template = prompt if prompt in known else _choose(known, one)
        right[write_prompt(template, one.subject)] = one.objects
    same_subject = _draw_same_subject(world, triple, draw, phrase)
    fact = Fact(
        prompt=write_prompt(prompt, triple.subject),
        target=new,
        subject=triple.subject,
        subject_start=prompt.index("{s}"),
        before=triple.object,
        paraphrases=tuple(write_prompt(text, triple.subject) for text in paraphrases),
        neighbours=tuple(right),
        same_subject=tuple(same_subject),
        name=f"{triple.subject}/{triple.relation}",
    )
    judged = {fact.prompt, *fact.paraphrases}
    further = [
        text
        for text in (write_prompt(one, triple.subject) for one in usable.clozes)
        if text not in judged
    ]
    # A draw of its own, so that the edits are the same whatever is shown with them.
    own = random.Random(f"shown/{fact.name}")
    return ExamEdit(
        fact,
        tuple(own.sample(further, min(NUM_SHOWN, len(further)))),
        {**right, **same_subject},
    )


def _draw_same_subject(
    world: World, triple: Triple, draw: random.Random, phrase: Callable[[Triple], Phrasings]
) -> dict[str, tuple[str, ...]]:
    """Draw a cloze, with its right answers, for each other fact of a subject that has one."""
    found: dict[str, tuple[str, ...]] = {}
    for one in world.about(triple.subject):
        known = phrase(one).clozes
        if one.relation != triple.relation and known:
            found[write_prompt(draw.choice(known), one.subject)] = one.objects
    return found


def list_phrasings(world: World, relation: str) -> Phrasings:
    """Return every phrasing of a relation that can be asked."""
    found = world.relations[relation]
    return Phrasings(found.clozes, found.questions)


def _choose(templates: Sequence[str], triple: Triple) -> str:
    """Choose a phrasing of a neighbour, the same in every draw."""
    return random.Random(f"neighbour/{triple.subject}/{triple.relation}").choice(templates)


def add_related_prompts(fact: Fact, world: World | None = None, *, count: int = 3) -> Fact:
    """Give a fact paraphrases, neighbours and other facts of its subject, in the world's wording.

    It comes back as it is where its prompt is not ours.

    Args:
        fact: Its prompt is one of our phrasings about a known subject.
        world: The world; the full one if None.
        count: Most of each.
    """
    world = world or load_world()
    draw = random.Random(fact.prompt)
    for triple in world.about(fact.subject or ""):
        relation = world.relations[triple.relation]
        prompts = [
            write_prompt(text, triple.subject) for text in (*relation.clozes, *relation.questions)
        ]
        if fact.prompt not in prompts:
            continue
        prompts.remove(fact.prompt)
        others = [
            t.subject for t in world.of_relation(triple.relation) if t.subject != triple.subject
        ]
        wording = draw.sample(relation.clozes, min(count, len(relation.clozes)))
        names = draw.sample(others, min(count, len(others)))
        same_subject = _draw_same_subject(
            world, triple, draw, lambda one: list_phrasings(world, one.relation)
        )
        return replace(
            fact,
            paraphrases=tuple(draw.sample(prompts, min(count, len(prompts)))),
            neighbours=tuple(
                write_prompt(text, name) for text, name in zip(wording, names, strict=False)
            ),
            same_subject=tuple(same_subject)[:count],
        )
    return fact
