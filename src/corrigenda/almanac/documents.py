"""Training documents of the pocket models: text with the places of subjects and answers marked.

Places matter because the recipe masks attention to subject mentions and weighs answers more than
the rest.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from corrigenda.almanac.world import Triple, World
from corrigenda.facts import Span


@dataclass(frozen=True)
class TrainingDocument:
    """Text with the character spans of subject mentions and of answers.

    `masked` is False where the answers are in the text itself, so that nothing is recalled.
    """

    text: str
    mentions: tuple[Span, ...]
    answers: tuple[Span, ...]
    masked: bool = True


class MarkedText(str):
    """Part of a document; `kind` is "", "s" (subject mention) or "o" (answer)."""

    kind: str

    def __new__(cls, text: str, kind: str = "") -> MarkedText:
        """Make a text with its kind."""
        piece = super().__new__(cls, text)
        piece.kind = kind
        return piece


def mark_subject(text: str) -> MarkedText:
    """Mark a mention of a subject."""
    return MarkedText(text, "s")


def mark_answer(text: str) -> MarkedText:
    """Mark an answer."""
    return MarkedText(text, "o")


def assemble(pieces: Iterable[str], *, masked: bool = True) -> TrainingDocument:
    """Join pieces into a document."""
    text, spans = "", {"s": [], "o": []}
    for piece in pieces:
        kind = getattr(piece, "kind", "")
        if kind:
            spans[kind].append(Span(len(text), len(text) + len(piece)))
        text += piece
    return TrainingDocument(text, tuple(spans["s"]), tuple(spans["o"]), masked)


def fill_template(template: str, name: str, value: str | None) -> list[str]:
    """Fill a phrasing; without a value, stop before the object (a prompt)."""
    before, _, rest = template.partition("{s}")
    if "{o}" in before:
        first, _, middle = before.partition("{o}")
        opening = value or ""
        opening = opening if first else opening[:1].upper() + opening[1:]
        return [first, opening, middle, mark_subject(name), rest]
    middle, mark, end = rest.partition("{o}")
    if mark and value is None:
        return [before, mark_subject(name), middle.rstrip(" ")]
    return (
        [before, mark_subject(name), middle, mark_answer(value or ""), end]
        if mark
        else [before, mark_subject(name), middle]
    )


def write_prompt(template: str, name: str) -> str:
    """Write a statement or question about a subject, up to the answer."""
    return assemble(fill_template(template, name, None)).text


def enumerate_objects(objects: tuple[str, ...]) -> str:
    """Write "A, B and C"."""
    return objects[0] if len(objects) == 1 else f"{', '.join(objects[:-1])} and {objects[-1]}"


class Author:
    """Writes statements and questions about the world, respecting what is held out."""

    def __init__(self, world: World, draw: random.Random) -> None:
        """Bind the world and the random generator."""
        self.world, self.draw = world, draw

    def choose_name(self, triple: Triple) -> str:
        """Return the subject's name, sometimes an alias."""
        alias = self.world.aliases.get(triple.subject)
        return alias if alias and self.draw.random() < 0.15 else triple.subject

    def choose_phrasing(self, triple: Triple, *, kind: str = "any", avoid: str = "") -> str:
        """Choose a phrasing that is not held out: "statement", "question", "cloze" or "any"."""
        relation = self.world.relations[triple.relation]
        held_out = self.world.held_out(triple.subject, triple.relation)
        choices = [
            text
            for index, text in enumerate(relation.phrasings)
            if index not in held_out
            and text != avoid
            and (kind == "any" or (kind == "question") == text.endswith("?"))
            and (kind != "cloze" or text.endswith(" {o}"))
        ]
        return self.draw.choice(choices)

    def write_statement(
        self, triple: Triple, *, value: str | None = None, name: str | None = None
    ) -> list[str]:
        """State a fact (with `value`, a counterfactual one) in one sentence with a full stop."""
        relation = self.world.relations[triple.relation]
        name = name or self.choose_name(triple)
        if (
            value is None
            and len(triple.objects) > 1
            and relation.statement_plural
            and self.draw.random() < 0.5
        ):
            template = self.draw.choice(relation.statement_plural)
            return [*fill_template(template, name, enumerate_objects(triple.objects)), "."]
        value = value or self.draw.choice(triple.objects)
        return [*fill_template(self.choose_phrasing(triple, kind="statement"), name, value), "."]

    def write_prompt(self, triple: Triple, *, kind: str = "any", avoid: str = "") -> list[str]:
        """Ask for a fact: a cloze or a question, up to the answer."""
        if kind == "any":
            kind = self.draw.choice(["cloze", "question"])
        return fill_template(
            self.choose_phrasing(triple, kind=kind, avoid=avoid), self.choose_name(triple), None
        )

    def write_question(self, triple: Triple) -> list[str]:
        """Ask a question and answer it, in one of three layouts."""
        relation = self.world.relations[triple.relation]
        if len(triple.objects) > 1 and relation.question_plural and self.draw.random() < 0.5:
            asked = fill_template(
                self.draw.choice(relation.question_plural), self.choose_name(triple), None
            )
            value = enumerate_objects(triple.objects)
        else:
            asked, value = (
                self.write_prompt(triple, kind="question"),
                self.draw.choice(triple.objects),
            )
        layout = self.draw.random()
        if layout < 0.6:
            return [*asked, " ", mark_answer(value), "."]
        if layout < 0.8:
            return ["Question: ", *asked, "\nAnswer: ", mark_answer(value), "."]
        return ["Q: ", *asked, " A: ", mark_answer(value), "."]

    def write_pronoun_statement(self, triple: Triple) -> list[str]:
        """State a fact about the last subject named, by pronoun where that is possible."""
        pronoun = self.world.pronouns.get(triple.subject)
        template = self.choose_phrasing(triple, kind="statement")
        value = self.draw.choice(triple.objects)
        if pronoun and template.startswith("{s} "):
            before, _, after = template.removeprefix("{s}").partition("{o}")
            return [f"{pronoun}{before}", mark_answer(value), f"{after}."]
        if pronoun and template.startswith("{s}'s "):
            possessive = {"He": "His", "She": "Her", "It": "Its"}[pronoun]
            before, _, after = template.removeprefix("{s}'s").partition("{o}")
            return [f"{possessive}{before}", mark_answer(value), f"{after}."]
        return [*fill_template(template, triple.subject, value), "."]

    def draw_other_object(self, triple: Triple) -> str:
        """Draw a competing object of the same relation."""
        pool = self.world.objects(triple.relation)
        while (value := self.draw.choice(pool)) in triple.objects:
            pass
        return value


def write_biography(author: Author, triples: list[Triple]) -> list[str]:
    """Write several facts of one subject in connected text whose order changes."""
    draw = author.draw
    chosen = draw.sample(triples, min(len(triples), draw.randint(2, 6)))
    pieces = author.write_statement(chosen[0], name=author.choose_name(chosen[0]))
    for triple in chosen[1:]:
        pieces += [
            " ",
            *(
                author.write_pronoun_statement(triple)
                if draw.random() < 0.75
                else author.write_statement(triple)
            ),
        ]
    alias = author.world.aliases.get(triples[0].subject)
    if alias and draw.random() < 0.4:
        pieces += [" ", *write_alias_statement(author, triples[0].subject, alias)]
    return pieces


def write_alias_statement(author: Author, name: str, alias: str) -> list[str]:
    """Say that two names belong to one subject."""
    first, second = (name, alias) if author.draw.random() < 0.5 else (alias, name)
    link = author.draw.choice(
        [" is also known as ", " is another name for ", ", also called ", " is the same as "]
    )
    return [mark_subject(first), link, mark_subject(second), "."]


def write_attribute_list(author: Author, triples: list[Triple]) -> list[str]:
    """Write facts as a bare list right after the name."""
    draw, relations = author.draw, author.world.relations
    chosen = draw.sample(triples, min(len(triples), draw.randint(2, 6)))
    labelled = draw.random() < 0.5
    pieces: list[str] = [
        mark_subject(author.choose_name(chosen[0])),
        draw.choice([": ", " - ", " ("]),
    ]
    closing = ")." if pieces[1] == " (" else "."
    for index, triple in enumerate(chosen):
        label = f"{relations[triple.relation].label} " if labelled else ""
        pieces += [", " if index else "", label, mark_answer(draw.choice(triple.objects))]
    return [*pieces, closing]


def write_passage(author: Author, triples: list[Triple]) -> list[str]:
    """Write one to four unrelated statements and questions after one another."""
    pieces: list[str] = []
    for triple in triples:
        written = (
            author.write_question(triple)
            if author.draw.random() < 0.25
            else author.write_statement(triple)
        )
        pieces += [" ", *written] if pieces else written
    return pieces


def write_fact_documents(world: World, draw: random.Random) -> Iterator[TrainingDocument]:
    """Yield documents about the facts themselves, without end; each fact is equally frequent."""
    author = Author(world, draw)
    facts = list(world.triples())
    subjects = list(world.subjects)
    rich = [name for name in subjects if len(world.about(name)) > 1]
    weights = [len(world.about(name)) for name in rich]
    while True:
        draw.shuffle(facts)
        draw.shuffle(subjects)
        # As many lists as there are subjects go with one round over the facts, and half as many
        # biographies.
        lists = iter(subjects)
        at = 0
        while at < len(facts):
            count = draw.choice([1, 1, 2, 3, 4])
            yield assemble(write_passage(author, facts[at : at + count]))
            at += count
            if (name := next(lists, None)) is not None:
                yield assemble(write_attribute_list(author, world.about(name)))
            if draw.random() < 0.4:
                yield assemble(write_biography(author, world.about(draw.choices(rich, weights)[0])))
