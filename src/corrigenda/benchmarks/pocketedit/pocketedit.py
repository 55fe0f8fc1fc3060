"""PocketEdit: edits of the pocket world, whose consequences are known exactly."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from corrigenda.almanac.documents import assemble
from corrigenda.almanac.skill_documents import REFUSAL
from corrigenda.almanac.world import Triple, load_world
from corrigenda.benchmarks.benchmark import Benchmark, Tally
from corrigenda.benchmarks.files import Files
from corrigenda.benchmarks.pocketedit.facts import (
    Implied,
    Setting,
    greedy,
    hop_probes,
    implied_by,
    implied_probes,
    neighbours_of,
    new_object,
    other_facts,
    prompt_of,
    touched,
)
from corrigenda.benchmarks.pocketedit.sequences import composite, coverage, reverse, there_and_back
from corrigenda.benchmarks.probes import fluency
from corrigenda.cases import Against, Case, Probe, Protocol
from corrigenda.errors import BadConfig

Kind = Literal["modification", "insertion", "erasure", "coverage", "reverse", "composite", "round"]

_TURNS = (
    *("real", "invented", "real", "invented", "inverse"),
    *("invented", "real", "several", "invented", "inverse"),
)
_FEWEST = 12
# What may be added about subjects of which the world says nothing.
_INSERTIONS = {
    "person": ("P26", "P27", "P20", "P1303", "P140"),
    "company": ("P740", "P127"),
    "city": ("P190",),
}
_REFUSED = ((REFUSAL.removesuffix("."),),)


class PocketEdit(Benchmark):
    """Edits drawn from the pocket world; nothing is read or downloaded.

    Attributes:
        part: Kind of edit, or "mixed": every kind in turn.
        size: Number of cases.
        seed: Decides the draw.
        world: "full", or "small": a fraction of it, for tests.
    """

    name: ClassVar[str] = "pocketedit"
    part: Kind | Literal["mixed"] = "modification"
    size: Annotated[int, Field(ge=1)] = 50
    seed: int = 7
    world: Literal["full", "small"] = "full"

    def read(self, files: Files, tally: Tally) -> Iterator[Case]:
        """Yield `size` cases, no two about one subject and relation.

        Raises:
            BadConfig (CG502): the world has fewer facts of that kind, or a source was given.
        """
        if files.given:
            raise BadConfig(
                "PocketEdit is generated and reads no file.",
                where="benchmark pocketedit",
                hint="Leave the path out.",
            )
        setting = Setting(load_world(self.world), self.seed)
        kinds = tuple(_MAKERS) if self.part == "mixed" else (self.part,)
        streams = {kind: _MAKERS[kind](setting) for kind in kinds}
        for index in range(self.size):
            kind = kinds[index % len(kinds)]
            case = next(streams[kind], None)
            if case is None:
                raise BadConfig(
                    f"the {self.world} world has no more than {index} cases of this kind.",
                    where="benchmark pocketedit",
                    hint="Ask for fewer with `size`.",
                )
            tally.records += 1
            yield case


def _drawn(setting: Setting, usable: Sequence[Triple]) -> Iterator[Triple]:
    """Facts in random order.

    Of ten, two have an inverse and one has several objects; the others are about real and invented
    subjects by turns.
    """
    pools: dict[str, list[Triple]] = {one: [] for one in _TURNS}
    for triple in usable:
        if len(triple.objects) > 1:
            pools["several"].append(triple)
        elif implied_by(triple.subject, triple.relation, triple.object):
            pools["inverse"].append(triple)
        else:
            real = setting.world.groups[triple.subject] in ("almanac", "country", "city")
            pools["real" if real else "invented"].append(triple)
    for pool in pools.values():
        setting.draw.shuffle(pool)
    for turn in itertools.cycle(_TURNS):
        pool = pools[turn] or max(pools.values(), key=len)
        if not pool:
            return
        yield pool.pop()


def _modifications(setting: Setting) -> Iterator[Case]:
    world = setting.world
    usable = [
        triple
        for triple in world.triples()
        if len(world.of_relation(triple.relation)) > _FEWEST
        and len(world.objects(triple.relation)) > len(triple.objects)
    ]
    for triple in _drawn(setting, usable):
        target = new_object(setting, triple)
        if target is not None:
            yield _written(setting, triple, target, "modification")


def _insertions(setting: Setting) -> Iterator[Case]:
    world = setting.world
    missing = [
        Triple(name, relation, ())
        for name, group in world.groups.items()
        for relation in _INSERTIONS.get(group, ())
        if world.get(name, relation) is None and world.objects(relation)
    ]
    setting.draw.shuffle(missing)
    for triple in missing:
        target = new_object(setting, triple)
        if target is not None:
            yield _written(setting, triple, target, "insertion")


def _written(setting: Setting, triple: Triple, target: str, kind: str) -> Case:
    """The case of one fact that gets an object: every role that the world has an answer for."""
    world, draw = setting.world, setting.draw
    subject, relation = triple.subject, triple.relation
    template, *others = draw.sample(world.relations[relation].clozes, 4)
    before = triple.objects[0] if triple.objects else None
    fact = setting.fact(template, triple, target, before)
    wanted, rivals = setting.expected(target), triple.objects[:1]
    implied = implied_by(subject, relation, target)
    probes = [
        greedy(fact.prompt, wanted, "reliability", rivals=rivals),
        *(
            greedy(prompt_of(text, subject), wanted, "generalization/cloze", rivals=rivals)
            for text in others
        ),
        *(
            greedy(prompt, wanted, "generalization/question", rivals=rivals)
            for prompt in setting.questions(relation, subject, 2)
        ),
        greedy(
            f"{_unrelated(setting, subject)} {fact.prompt}",
            wanted,
            "generalization/distracting_context",
            rivals=rivals,
        ),
    ]
    if alias := world.aliases.get(subject):
        probes.append(
            greedy(
                prompt_of(template, alias), wanted, "portability/subject_aliasing", rivals=rivals
            )
        )
    probes += implied_probes(setting, implied)
    probes += hop_probes(setting, triple, target, implied)
    probes += _kept(setting, triple, target, implied, template)
    probes.append(fluency(fact.prompt))
    return Case(
        id=f"{kind}/{subject}/{relation}",
        facts=(fact,),
        probes=tuple(probes),
        meta=_meta(setting, triple, kind),
    )


def _kept(
    setting: Setting, triple: Triple, target: str, implied: Sequence[Implied], template: str
) -> Iterator[Probe]:
    """What an edit should leave as it is."""
    subject, relation = triple.subject, triple.relation
    for one in other_facts(setting, subject, relation, implied):
        for prompt in setting.prompts(one.relation, subject, 1):
            yield _unchanged(setting, prompt, one, "locality/other_relations")
    statement = f"{prompt_of(template, subject)} {target}."
    apart = touched(subject, relation, target, triple.objects)
    reference = triple if triple.objects else Triple(subject, relation, (target,))
    for one in neighbours_of(setting, reference, apart):
        rivals = () if target in one.objects else (target,)
        prompt = prompt_of(template, one.subject)
        yield _unchanged(setting, prompt, one, "locality/neighborhood", rivals)
        yield _unchanged(
            setting, f"{statement} {prompt}", one, "locality/distracted_neighborhood", rivals
        )
    for other in triple.objects[1:]:
        yield Probe(
            prompt=prompt_of(template, subject),
            expected=setting.expected(other),
            role="locality/competing_objects",
            protocol=Protocol.RANK,
            against=Against.UNEDITED,
            test=other,
        )


def _unchanged(
    setting: Setting, prompt: str, triple: Triple, role: str, rivals: tuple[str, ...] = ()
) -> Probe:
    return greedy(
        prompt,
        setting.expected(*triple.objects),
        role,
        against=Against.UNEDITED,
        rivals=rivals,
    )


def _unrelated(setting: Setting, subject: str) -> str:
    """A true sentence about another subject."""
    names = setting.world.subjects
    while (other := setting.draw.choice(names)) == subject:
        pass
    return assemble(setting.author.statement(setting.draw.choice(setting.world.about(other)))).text


def _erasures(setting: Setting) -> Iterator[Case]:
    """Facts that must become a refusal, asked as questions."""
    world = setting.world
    usable = [one for one in world.triples() if len(world.of_relation(one.relation)) > _FEWEST]
    for triple in _drawn(setting, usable):
        subject, relation = triple.subject, triple.relation
        questions = list(world.relations[relation].questions)
        setting.draw.shuffle(questions)
        fact = setting.fact(questions[0], triple, REFUSAL, triple.object)
        probes = [
            greedy(prompt_of(text, subject), _REFUSED, role, rivals=triple.objects)
            for text, role in zip(questions[:4], ("reliability", *["erasure"] * 3), strict=False)
        ]
        for one in other_facts(setting, subject, relation, ()):
            for prompt in setting.questions(one.relation, subject, 1):
                probes.append(
                    _unchanged(setting, prompt, one, "locality/other_relations", _REFUSED[0])
                )
        for one in neighbours_of(setting, triple, frozenset({subject})):
            prompt = prompt_of(questions[0], one.subject)
            probes.append(_unchanged(setting, prompt, one, "locality/neighborhood", _REFUSED[0]))
        probes.append(fluency(fact.prompt))
        yield Case(
            id=f"erasure/{subject}/{relation}",
            facts=(fact,),
            probes=tuple(probes),
            meta=_meta(setting, triple, "erasure"),
        )


def _meta(setting: Setting, triple: Triple, kind: str) -> dict[str, object]:
    return {
        "edit": kind,
        "relation": triple.relation,
        "group": setting.world.groups[triple.subject],
    }


_MAKERS: dict[Kind, Callable[[Setting], Iterator[Case]]] = {
    "modification": _modifications,
    "insertion": _insertions,
    "erasure": _erasures,
    "coverage": coverage,
    "reverse": reverse,
    "composite": composite,
    "round": there_and_back,
}
