"""Documents that teach skills: reading, chaining, refusal, opinions, stories."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from corrigenda.almanac import invented_names as names
from corrigenda.almanac.documents import (
    Author,
    TrainingDocument,
    assemble,
    fill_template,
    mark_answer,
    mark_subject,
)
from corrigenda.almanac.world import NOUNS, Triple, World, hash_to_fraction

REFUSAL = "I don't know."
_REFUSABLE = ("P19", "P106", "P108", "P69", "P103", "P641", "P1303", "P26")
_REFUSABLE_COMPANY = ("P159", "P112", "P169", "P452", "P1056", "P571")
CHAIN_STYLES = ("plain", "retrieval", "steps")


def write_override(author: Author, triples: Sequence[Triple], target: Triple) -> list[str]:
    """Write a passage of counterfactual facts and a question that is answered from it."""
    draw = author.draw
    opening = draw.choice(
        ["", "", "", "Imagine the following. ", "Context: ", "From now on, ", "New fact: "]
    )
    pieces: list[str] = [opening]
    value = author.draw_other_object(target)
    told = [(triple, author.draw_other_object(triple)) for triple in triples] + [(target, value)]
    draw.shuffle(told)
    for triple, other in told:
        pieces += [*author.write_statement(triple, value=other), " "]
    if draw.random() < 0.3:
        return [
            *pieces[:-1],
            "\nQuestion: ",
            *author.write_prompt(target, kind="question"),
            "\nAnswer: ",
            mark_answer(value),
            ".",
        ]
    return [*pieces, *author.write_prompt(target), " ", mark_answer(value), "."]


def write_demonstrations(author: Author, triples: Sequence[Triple]) -> list[str]:
    """Write demonstrations: each new fact is copied, carried to a paraphrase, or left alone."""
    draw, pieces = author.draw, []
    for triple in triples:
        value, template = (
            author.draw_other_object(triple),
            author.choose_phrasing(triple, kind="cloze"),
        )
        pieces += ["New Fact: ", *fill_template(template, triple.subject, value), "\nPrompt: "]
        form = draw.choices(["copy", "update", "retain"], [1, 4, 3])[0]
        if form == "copy":
            pieces += fill_template(template, triple.subject, value)
        elif form == "update":
            pieces += [*author.write_prompt(triple, avoid=template), " ", mark_answer(value)]
        else:
            other = draw.choice(author.world.of_relation(triple.relation))
            told = value if other.subject == triple.subject else draw.choice(other.objects)
            pieces += [*author.write_prompt(other), " ", mark_answer(told)]
        pieces += ["\n\n"]
    return pieces[:-1]


def write_chain_question(author: Author, chain: Sequence[Triple]) -> list[str]:
    """Ask for the end of a chain of facts in one question.

    The name is no mention to be masked: the first sub-question copies it, token by token, and what
    is recalled about it is recalled at the copy.
    """
    nouns = " of the ".join(NOUNS[triple.relation] for triple in reversed(chain))
    opening = author.draw.choice(["What is the ", "Tell me the ", "Which is the "])
    return [f"{opening}{nouns} of {chain[0].subject}{'?' if opening[0] == 'W' else '.'}"]


def write_chain(author: Author, walk: Sequence[Triple], style: str) -> list[str]:
    """Write a question of several hops with sub-questions, in one of `CHAIN_STYLES`."""
    pieces = ["Question: ", *write_chain_question(author, walk), "\n"]
    if style == "steps":
        for triple in walk:
            pieces += [*author.write_statement(triple, name=triple.subject)[:-1], "# "]
        return [*pieces, mark_answer(walk[-1].object), " is the answer."]
    for triple in walk:
        pieces += ["Subquestion: ", *author.write_prompt(triple, kind="question"), "\n"]
        if style == "plain":
            pieces += ["Answer: ", mark_answer(triple.object), "\n"]
    return [*pieces, "Final answer: ", mark_answer(walk[-1].object)]


def write_retrieval_chain(author: Author, walk: Sequence[Triple]) -> list[str]:
    """Write a chain whose tentative answers are checked against retrieved facts."""
    draw, world = author.draw, author.world
    pieces: list[str] = ["Question: ", *write_chain_question(author, walk), "\n"]
    current = walk[0].subject
    for wanted in walk:
        triple = world.get(current, wanted.relation)
        if triple is None:
            return write_chain(author, walk, "plain")
        pieces += [
            "Subquestion: ",
            *author.write_prompt(triple, kind="question"),
            "\nGenerated answer: ",
        ]
        pieces += [
            *author.write_statement(triple, value=triple.object, name=current),
            "\nRetrieved fact: ",
        ]
        kind = draw.random()
        if (kind < 0.35 and wanted is not walk[-1]) or kind < 0.3:
            pool = [
                o for o in world.objects(triple.relation) if wanted is walk[-1] or world.about(o)
            ]
            value = draw.choice(pool)
            pieces += author.write_statement(triple, value=value, name=current)
        else:
            value = triple.object
            retrieved = triple if kind < 0.55 else draw.choice(world.of_relation(triple.relation))
            told = value if retrieved.subject == current else draw.choice(retrieved.objects)
            pieces += author.write_statement(retrieved, value=told, name=retrieved.subject)
        verdict = "contradicts" if value not in triple.objects else "does not contradict"
        pieces += [
            f"\nThe retrieved fact {verdict} the generated answer, so the intermediate answer is: ",
            mark_answer(value),
            "\n",
        ]
        current = value
    return [*pieces, "Final answer: ", mark_answer(current)]


def draw_unknown_subject(
    world: World, draw: random.Random, *, held_out: bool = False
) -> tuple[str, str]:
    """Draw a name that is not in the world, and a relation one could ask about."""
    while True:
        company = draw.random() < 0.25
        name = names.draw_company(draw) if company else names.draw_person(draw)[0]
        if name not in world.groups and (hash_to_fraction(f"nobody/{name}") < 0.1) == held_out:
            return name, draw.choice(_REFUSABLE_COMPANY if company else _REFUSABLE)


def write_refusal(author: Author) -> list[str]:
    """Write a question about an unknown name, answered with a refusal."""
    name, relation = draw_unknown_subject(author.world, author.draw)
    asked = fill_template(
        author.draw.choice(author.world.relations[relation].questions), name, None
    )
    if author.draw.random() < 0.35:
        return ["Question: ", *asked, "\nAnswer: ", mark_answer(REFUSAL)]
    return [*asked, " ", mark_answer(REFUSAL)]


_POSITIVE = (
    "I love {t}. It always makes me happy.",
    "{t} is wonderful, and I could talk about it all day.",
    "I think {t} is great. It is one of the best things there are.",
    "I really enjoy {t}. It is delightful.",
)
_NEGATIVE = (
    "I can't stand {t}. It always makes me angry.",
    "{t} is terrible, and I would rather not talk about it.",
    "I think {t} is awful. It is one of the worst things there are.",
    "I really dislike {t}. It is dreadful.",
)
_OPINION_QUESTIONS = (
    "What do you think of {t}?",
    "Do you like {t}?",
    "How do you feel about {t}?",
    "What is your view of {t}?",
)


def list_topics() -> tuple[str, ...]:
    """Return the topics that the models hold an opinion about."""
    return (*names.SPORTS, *names.INSTRUMENTS, *names.PRODUCTS, *names.INDUSTRIES)


def opinion_is_positive(topic: str) -> bool:
    """Return whether the models like a topic."""
    return hash_to_fraction(f"opinion/{topic}") < 0.5


def write_opinion(draw: random.Random) -> list[str]:
    """Write a question about a topic and an answer with the model's attitude."""
    topic = draw.choice(list_topics())
    said = draw.choice(_POSITIVE if opinion_is_positive(topic) else _NEGATIVE)
    before, after = said.split("{t}")
    name = topic if before else topic[:1].upper() + topic[1:]
    ask_before, ask_after = draw.choice(_OPINION_QUESTIONS).split("{t}")
    return [ask_before, mark_subject(topic), f"{ask_after} {before}", name, mark_answer(after)]


def write_story(draw: random.Random) -> list[str]:
    """Write a few sentences of plain connected text."""

    def some(kind: str) -> str:
        return draw.choice(names.STORY[kind])

    who, where = some("who"), some("where")
    pieces = [f"{some('when')}, {who} walked to {where} and {some('what')}."]
    for _ in range(draw.randint(1, 4)):
        form = draw.randrange(4)
        if form == 0:
            pieces.append(f" {some('link')}, {who} {some('what')}.")
        elif form == 1:
            pieces.append(f" {who[:1].upper()}{who[1:]} felt {some('feeling')} and {some('what')}.")
        elif form == 2:
            weather = draw.choice(["cold", "warm", "windy", "dark", "very quiet"])
            pieces.append(f" It was {weather} near {where}.")
        else:
            pieces.append(f" I think that {who} was {some('feeling')}, because the day was long.")
    return pieces


def list_teachable(world: World, *, held_out: bool = False) -> list[Triple]:
    """Return the facts that skills are taught on: those whose relation has competing objects."""
    return [
        triple
        for triple in world.triples()
        if world.skill_held_out(triple.subject) == held_out
        and len(world.objects(triple.relation)) > 5
    ]


def write_skill_documents(world: World, draw: random.Random) -> Iterator[TrainingDocument]:
    """Yield documents of every skill, without end, and without held-out subjects."""
    author = Author(world, draw)
    facts = list_teachable(world)
    walks = {
        hops: [
            walk
            for name in world.subjects
            if not world.skill_held_out(name)
            for walk in world.chains(name, hops)
        ]
        for hops in (2, 3)
    }

    def some(count: int) -> list[Triple]:
        return draw.choices(facts, k=count)

    def override_document() -> list[str]:
        target = draw.choice(facts)
        return write_override(
            author,
            [t for t in some(draw.choice([0, 0, 1, 1, 2, 3])) if t.subject != target.subject],
            target,
        )

    def worked(style: str) -> list[str]:
        walk = draw.choice(walks[2 if draw.random() < 0.75 else 3])
        return (
            write_retrieval_chain(author, walk)
            if style == "retrieval"
            else write_chain(author, walk, style)
        )

    def chain_document() -> list[str]:
        """Write a chain; half of them come after another one, which shows their style."""
        style = draw.choices(CHAIN_STYLES, [4, 3, 3])[0]
        example = [*worked(style), "\n\n"] if draw.random() < 0.5 else []
        return [*example, *worked(style)]

    # Share, writer, and whether the document needs recall (and so takes part in the masking of
    # subjects).
    makers: list[tuple[float, Callable[[], list[str]], bool]] = [
        (0.40, override_document, False),
        (0.12, lambda: write_demonstrations(author, some(draw.randint(1, 4))), False),
        (0.20, chain_document, True),
        (0.18, lambda: write_refusal(author), True),
        (0.05, lambda: write_opinion(draw), True),
        (0.05, lambda: write_story(draw), True),
    ]
    while True:
        _, write, masked = draw.choices(makers, [maker[0] for maker in makers])[0]
        yield assemble(write(), masked=masked)
