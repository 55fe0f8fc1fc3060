"""Exact consequences of an edit in the pocket world: implied facts, chains, neighbours."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from corrigenda.almanac.documents import Author, assemble, write_prompt
from corrigenda.almanac.exam import Phrasings, list_phrasings
from corrigenda.almanac.known_facts import KnownFacts
from corrigenda.almanac.skill_documents import write_chain, write_chain_question
from corrigenda.almanac.world import NOUNS, Triple, World
from corrigenda.cases import Against, Probe, Protocol
from corrigenda.facts import Fact

NEW_TOKENS = 16
STEP_TOKENS = 96
STEPS_MARKER = "Final answer:"

INVERSE: Mapping[str, str] = {"P26": "P26", "P36": "P1376", "P1376": "P36"}
"""Relations that hold the other way round under another (or the same) name."""

_LIES_IN = "P17"
_CAPITAL, _CAPITAL_OF = "P36", "P1376"


class ImpliedFact(NamedTuple):
    """Fact that an edit implies, by "inverse_relation" or "logical_generalization"."""

    kind: str
    subject: str
    relation: str
    object: str


class CaseSampler:
    """The pocket world with the random generator that cases are drawn with.

    Where it is given what a model knows, edits, neighbours and other facts of the subject are known
    facts, in phrasings that the model answers right.
    """

    def __init__(self, world: World, seed: int, known: KnownFacts | None = None) -> None:
        """Bind a world and seed the generator."""
        self.world, self.known = world, known
        self.named = frozenset(one.object for one in known.triples()) if known else frozenset[str]()
        self.draw = random.Random(f"pocketedit/{seed}")
        self.author = Author(world, self.draw)
        self._walks: list[tuple[Triple, ...]] = []

    def list_spellings(self, name: str) -> tuple[str, ...]:
        """Return a name, and its alias if it has one."""
        alias = self.world.aliases.get(name)
        return (name, alias) if alias else (name,)

    def group_spellings(self, *objects: str) -> tuple[tuple[str, ...], ...]:
        """Return one group of all spellings of some objects, any of which will do."""
        return (tuple(text for name in objects for text in self.list_spellings(name)),)

    def is_known(self, triple: Triple) -> bool:
        """Return whether a fact may be edited, or asked as one that should stay."""
        return self.known is None or bool(self.known.phrasings(triple).clozes)

    def list_phrasings(self, relation: str, subject: str) -> Phrasings:
        """Return the phrasings of a fact that the model answers right; all if none is known."""
        known = self.known.phrasings(Triple(subject, relation, ())) if self.known else None
        return known if known and known.clozes else list_phrasings(self.world, relation)

    def write_like(self, template: str, triple: Triple) -> str:
        """Write a fact in a phrasing, or in one under which it is known."""
        known = self.list_phrasings(triple.relation, triple.subject).clozes
        return write_prompt(template if template in known else known[0], triple.subject)

    def draw_prompts(self, relation: str, subject: str, count: int) -> list[str]:
        """Draw different clozes for a fact."""
        clozes = self.list_phrasings(relation, subject).clozes
        return [
            write_prompt(template, subject)
            for template in self.draw.sample(clozes, min(count, len(clozes)))
        ]

    def draw_questions(self, relation: str, subject: str, count: int) -> list[str]:
        """Draw different questions for a fact."""
        questions = self.list_phrasings(relation, subject).questions
        return [
            write_prompt(template, subject)
            for template in self.draw.sample(questions, min(count, len(questions)))
        ]

    def make_fact(self, template: str, triple: Triple, target: str, before: str | None) -> Fact:
        """Make the edit of a fact under one of our clozes or questions."""
        return Fact(
            prompt=write_prompt(template, triple.subject),
            target=target,
            subject=triple.subject,
            subject_start=template.index("{s}"),
            before=before,
            name=f"{triple.subject}/{triple.relation}",
        )

    def write_example(self, subject: str) -> str:
        """Write a worked question of two hops about another subject."""
        if not self._walks:
            self._walks = [
                walk
                for name in self.world.subjects
                if not self.world.skill_held_out(name)
                for walk in self.world.chains(name, 2)
            ]
        while (walk := self.draw.choice(self._walks))[0].subject == subject:
            pass
        return assemble(write_chain(self.author, walk, "plain")).text


def make_greedy_probe(
    prompt: str,
    expected: tuple[tuple[str, ...], ...],
    role: str,
    *,
    against: Against = Against.TARGET,
    rivals: Sequence[str] = (),
    test: str = "",
) -> Probe:
    """Make a probe answered by greedy decoding."""
    return Probe(
        prompt=prompt,
        expected=expected,
        role=role,
        protocol=Protocol.GREEDY,
        against=against,
        rivals=tuple(rivals),
        test=test,
        max_new_tokens=NEW_TOKENS,
    )


def list_implied(subject: str, relation: str, target: str) -> list[ImpliedFact]:
    """Return the facts that hold because (subject, relation, target) does.

    A spouse has a spouse, a capital is one of something, and a capital lies in its country.

    Example:
        >>> [one.kind for one in list_implied("France", "P36", "Lyon")]
        ['inverse_relation', 'logical_generalization']
    """
    found = []
    if relation in INVERSE:
        found.append(ImpliedFact("inverse_relation", target, INVERSE[relation], subject))
    if relation == _CAPITAL:
        found.append(ImpliedFact("logical_generalization", target, _LIES_IN, subject))
    if relation == _CAPITAL_OF:
        found.append(ImpliedFact("logical_generalization", subject, _LIES_IN, target))
    return found


def draw_new_object(sampler: CaseSampler, triple: Triple) -> str | None:
    """Draw another object for a fact, so that the world stays free of contradictions.

    Where a relation has an inverse the object is free: a person without a spouse, a city that is no
    capital. Objects about which more is known come first. None where there is none.
    """
    world, relation = sampler.world, triple.relation
    if relation == "P26":
        pool = [
            name
            for name, group in world.groups.items()
            if group == "person" and world.get(name, "P26") is None
        ]
    elif relation == _CAPITAL:
        pool = [
            name
            for name, group in world.groups.items()
            if group == "city" and world.get(name, _CAPITAL_OF) is None
        ]
    else:
        pool = list(world.objects(relation))
    pool = [name for name in pool if name not in (*triple.objects, triple.subject)]
    pool = [name for name in pool if name in sampler.named] or pool
    known = [name for name in pool if world.about(name)]
    return sampler.draw.choice(known or pool) if pool else None


def list_touched(subject: str, relation: str, target: str, before: Sequence[str]) -> frozenset[str]:
    """Return the entities whose own facts of the relation an edit decides or leaves open."""
    if relation not in INVERSE:
        return frozenset({subject})
    return frozenset({subject, target, *before})


def make_implied_probes(sampler: CaseSampler, implied: Sequence[ImpliedFact]) -> Iterator[Probe]:
    """Make a cloze for every implied fact; the former object is the rival."""
    for one in implied:
        before = sampler.world.get(one.subject, one.relation)
        rivals = [name for name in (before.objects if before else ()) if name != one.object]
        for prompt in sampler.draw_prompts(one.relation, one.subject, 1):
            yield make_greedy_probe(
                prompt,
                sampler.group_spellings(one.object),
                f"portability/{one.kind}",
                rivals=rivals,
            )


def make_hop_probes(
    sampler: CaseSampler,
    triple: Triple,
    target: str,
    implied: Sequence[ImpliedFact],
    count: int = 2,
) -> Iterator[Probe]:
    """Make questions that need the edit and one or two facts about the new object.

    Each is asked in one sentence, and again after a worked example with sub-questions. It counts
    where the unedited model knows the further facts.
    """
    if triple.relation not in NOUNS:
        return
    world, draw = sampler.world, sampler.draw
    decided = {(one.subject, one.relation) for one in implied} | {(triple.subject, triple.relation)}
    first = Triple(triple.subject, triple.relation, (target,))
    for hops, name in ((1, "one_hop"), (2, "two_hops")):
        walks = [
            walk
            for walk in world.chains(target, hops)
            if not any((step.subject, step.relation) in decided for step in walk)
            and triple.subject not in {entity for step in walk for entity in (step[0], step.object)}
        ]
        for number, walk in enumerate(draw.sample(walks, min(count, len(walks)))):
            test = f"{name} {number}"
            question = assemble(write_chain_question(sampler.author, (first, *walk))).text
            expected = sampler.group_spellings(walk[-1].object)
            stale = _find_old_end(world, triple, walk)
            example = sampler.write_example(triple.subject)
            steps = Probe(
                prompt=f"{example}\n\nQuestion: {question}\nSubquestion:",
                expected=expected,
                role=f"portability/{name}_steps",
                protocol=Protocol.GREEDY,
                rivals=stale,
                test=test,
                max_new_tokens=STEP_TOKENS,
                marker=STEPS_MARKER,
            )
            yield make_greedy_probe(
                question, expected, f"portability/{name}", rivals=stale, test=test
            )
            yield steps
            for step in walk:
                (prompt,) = sampler.draw_prompts(step.relation, step.subject, 1)
                yield Probe(
                    prompt=prompt,
                    expected=sampler.group_spellings(*step.objects),
                    role="condition",
                    protocol=Protocol.GREEDY,
                    test=test,
                    after=(0,),
                    max_new_tokens=NEW_TOKENS,
                )


def _find_old_end(world: World, triple: Triple, walk: Sequence[Triple]) -> tuple[str, ...]:
    """Return where the same walk led before the edit, if that is somewhere else."""
    at = triple.object if triple.objects else ""
    for step in walk:
        found = world.get(at, step.relation)
        at = found.object if found else ""
    return (at,) if at and at != walk[-1].object else ()


def draw_neighbours(
    sampler: CaseSampler, triple: Triple, apart_from: frozenset[str], count: int = 8
) -> list[Triple]:
    """Draw facts of the relation about other subjects; those with the same object come first."""
    others = [
        one
        for one in sampler.world.of_relation(triple.relation)
        if one.subject not in apart_from
        and sampler.is_known(one)
        and (triple.relation not in INVERSE or not apart_from & set(one.objects))
    ]
    sampler.draw.shuffle(others)
    others.sort(key=lambda one: triple.object not in one.objects)
    same = others[: count // 2]
    rest = others[count // 2 :]
    return [*same, *sampler.draw.sample(rest, min(count - len(same), len(rest)))]


def list_other_facts(
    sampler: CaseSampler, subject: str, relation: str, implied: Sequence[ImpliedFact]
) -> list[Triple]:
    """Return the subject's facts that the edit neither decides nor puts in doubt."""
    decided = {(one.subject, one.relation) for one in implied}
    if relation == _LIES_IN:
        # Elsewhere it may be the capital no longer.
        decided.add((subject, _CAPITAL_OF))
    return [
        one
        for one in sampler.world.about(subject)
        if one.relation != relation
        and (subject, one.relation) not in decided
        and sampler.is_known(one)
    ]
