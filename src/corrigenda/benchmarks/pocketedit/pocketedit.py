"""PocketEdit: edits of the almanac, whose consequences are known exactly."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from corrigenda.almanac.documents import assemble, write_prompt
from corrigenda.almanac.known_facts import parse_known_facts
from corrigenda.almanac.skill_documents import REFUSAL
from corrigenda.almanac.world import Triple, load_world
from corrigenda.benchmarks.benchmark import Benchmark, Tally
from corrigenda.benchmarks.files import BenchmarkFiles
from corrigenda.benchmarks.pocketedit.facts import (
    CaseSampler,
    ImpliedFact,
    draw_neighbours,
    draw_new_object,
    list_implied,
    list_other_facts,
    list_touched,
    make_greedy_probe,
    make_hop_probes,
    make_implied_probes,
)
from corrigenda.benchmarks.pocketedit.sequences import (
    make_composite_cases,
    make_coverage_cases,
    make_reverse_cases,
    make_round_cases,
)
from corrigenda.benchmarks.probes import make_fluency_probe
from corrigenda.cases import Against, Case, Probe, Protocol
from corrigenda.errors import BadConfig

Kind = Literal["modification", "insertion", "erasure", "coverage", "reverse", "composite", "round"]

_TURNS = (
    *("real", "invented", "real", "invented", "inverse"),
    *("invented", "real", "several", "invented", "inverse"),
)
_FEWEST = 12
# Relations that may be added for subjects that have none in the world.
_INSERTIONS = {
    "person": ("P26", "P27", "P20", "P1303", "P140"),
    "company": ("P740", "P127"),
    "city": ("P190",),
}
_REFUSED = ((REFUSAL.removesuffix("."),),)


class PocketEdit(Benchmark):
    """Edits drawn from the pocket world, or from the facts that another model knows.

    For the pocket models nothing is read or downloaded. For another one, the source is the file of
    its exam (`corrigenda exam MODEL -o FILE`); `evaluate` makes it where none is given.

    Attributes:
        part: Kind of edit, or "mixed": every kind in turn.
        size: Number of cases.
        seed: Decides the draw.
        world: "full", or "small": a fraction of it, for tests. Where a run sets it, cases are drawn
            from that world, whether the model knows its facts or not.
    """

    name: ClassVar[str] = "pocketedit"
    is_drawn: ClassVar[bool] = True
    takes_known_facts: ClassVar[bool] = True
    headline: ClassVar[tuple[str, ...]] = (
        "reliability@greedy",
        "generalization@greedy",
        "portability@greedy",
        "locality@greedy",
    )
    part: Kind | Literal["mixed"] = "modification"
    size: Annotated[int, Field(ge=1)] = 50
    seed: int = 7
    world: Literal["full", "small"] = "full"

    def read(self, files: BenchmarkFiles, tally: Tally) -> Iterator[Case]:
        """Yield `size` cases, no two about one subject and relation.

        Raises:
            BadConfig (CG502): there are fewer facts of that kind, or another kind than
                modifications is wanted of known facts.
            MalformedRecords (CG603): the source is no exam of a model.
        """
        known = None
        if files.has_source:
            known = parse_known_facts(files.read_text(path := files.find_main()), where=str(path))
            if self.part != "modification":
                raise BadConfig(
                    "only modifications are drawn from the facts that a model knows.",
                    where="benchmark pocketedit",
                    hint='Leave out `part`, or set it to "modification".',
                )
        sampler = CaseSampler(load_world(self.world), self.seed, known)
        kinds = tuple(_MAKERS) if self.part == "mixed" else (self.part,)
        streams = {kind: _MAKERS[kind](sampler) for kind in kinds}
        for index in range(self.size):
            kind = kinds[index % len(kinds)]
            case = next(streams[kind], None)
            if case is None:
                place = f"the {self.world} world has" if known is None else f"{known.model} knows"
                raise BadConfig(
                    f"{place} no more than {index} cases of this kind.",
                    where="benchmark pocketedit",
                    hint="Ask for fewer with `size`.",
                )
            tally.records += 1
            yield case


def _draw_facts(sampler: CaseSampler, usable: Sequence[Triple]) -> Iterator[Triple]:
    """Yield facts in random order.

    Of ten, two have an inverse and one has several objects; the others are about real and invented
    subjects by turns.
    """
    pools: dict[str, list[Triple]] = {one: [] for one in _TURNS}
    for triple in usable:
        if len(triple.objects) > 1:
            pools["several"].append(triple)
        elif list_implied(triple.subject, triple.relation, triple.object):
            pools["inverse"].append(triple)
        else:
            real = sampler.world.groups[triple.subject] in ("almanac", "country", "city")
            pools["real" if real else "invented"].append(triple)
    for pool in pools.values():
        sampler.draw.shuffle(pool)
    for turn in itertools.cycle(_TURNS):
        pool = pools[turn] or max(pools.values(), key=len)
        if not pool:
            return
        yield pool.pop()


def _make_modifications(sampler: CaseSampler) -> Iterator[Case]:
    world = sampler.world
    usable = [
        triple
        for triple in world.triples()
        if len(world.of_relation(triple.relation)) > _FEWEST
        and len(world.objects(triple.relation)) > len(triple.objects)
        and sampler.is_known(triple)
    ]
    for triple in _draw_facts(sampler, usable):
        target = draw_new_object(sampler, triple)
        if target is not None:
            yield _make_write_case(sampler, triple, target, "modification")


def _make_insertions(sampler: CaseSampler) -> Iterator[Case]:
    world = sampler.world
    missing = [
        Triple(name, relation, ())
        for name, group in world.groups.items()
        for relation in _INSERTIONS.get(group, ())
        if world.get(name, relation) is None and world.objects(relation)
    ]
    sampler.draw.shuffle(missing)
    for triple in missing:
        target = draw_new_object(sampler, triple)
        if target is not None:
            yield _make_write_case(sampler, triple, target, "insertion")


def _make_write_case(sampler: CaseSampler, triple: Triple, target: str, kind: str) -> Case:
    """Make the case of a fact that gets an object, with every role the world can answer."""
    world, draw = sampler.world, sampler.draw
    subject, relation = triple.subject, triple.relation
    clozes = sampler.list_phrasings(relation, subject).clozes
    template, *others = draw.sample(clozes, min(4, len(clozes)))
    before = triple.objects[0] if triple.objects else None
    fact = sampler.make_fact(template, triple, target, before)
    wanted, rivals = sampler.group_spellings(target), triple.objects[:1]
    implied = list_implied(subject, relation, target)
    probes = [
        make_greedy_probe(fact.prompt, wanted, "reliability", rivals=rivals),
        *(
            make_greedy_probe(
                write_prompt(text, subject), wanted, "generalization/cloze", rivals=rivals
            )
            for text in others
        ),
        *(
            make_greedy_probe(prompt, wanted, "generalization/question", rivals=rivals)
            for prompt in sampler.draw_questions(relation, subject, 2)
        ),
        make_greedy_probe(
            f"{_write_unrelated(sampler, subject)} {fact.prompt}",
            wanted,
            "generalization/distracting_context",
            rivals=rivals,
        ),
    ]
    if alias := world.aliases.get(subject):
        probes.append(
            make_greedy_probe(
                write_prompt(template, alias), wanted, "portability/subject_aliasing", rivals=rivals
            )
        )
    probes += make_implied_probes(sampler, implied)
    probes += make_hop_probes(sampler, triple, target, implied)
    probes += _make_locality_probes(sampler, triple, target, implied, template)
    probes.append(make_fluency_probe(fact.prompt))
    return Case(
        id=f"{kind}/{subject}/{relation}",
        facts=(fact,),
        probes=tuple(probes),
        meta=_make_meta(sampler, triple, kind),
    )


def _make_locality_probes(
    sampler: CaseSampler, triple: Triple, target: str, implied: Sequence[ImpliedFact], template: str
) -> Iterator[Probe]:
    """Make the probes whose answers the edit should not change."""
    subject, relation = triple.subject, triple.relation
    for one in list_other_facts(sampler, subject, relation, implied):
        for prompt in sampler.draw_prompts(one.relation, subject, 1):
            yield _make_unchanged_probe(sampler, prompt, one, "locality/other_relations")
    statement = f"{write_prompt(template, subject)} {target}."
    apart = list_touched(subject, relation, target, triple.objects)
    reference = triple if triple.objects else Triple(subject, relation, (target,))
    for one in draw_neighbours(sampler, reference, apart):
        rivals = () if target in one.objects else (target,)
        prompt = sampler.write_like(template, one)
        yield _make_unchanged_probe(sampler, prompt, one, "locality/neighborhood", rivals)
        yield _make_unchanged_probe(
            sampler, f"{statement} {prompt}", one, "locality/distracted_neighborhood", rivals
        )
    for other in triple.objects[1:]:
        yield Probe(
            prompt=write_prompt(template, subject),
            expected=sampler.group_spellings(other),
            role="locality/competing_objects",
            protocol=Protocol.RANK,
            against=Against.UNEDITED,
            test=other,
        )


def _make_unchanged_probe(
    sampler: CaseSampler, prompt: str, triple: Triple, role: str, rivals: tuple[str, ...] = ()
) -> Probe:
    return make_greedy_probe(
        prompt,
        sampler.group_spellings(*triple.objects),
        role,
        against=Against.UNEDITED,
        rivals=rivals,
    )


def _write_unrelated(sampler: CaseSampler, subject: str) -> str:
    """Write a true sentence about another subject."""
    names = sampler.world.subjects
    while (other := sampler.draw.choice(names)) == subject:
        pass
    return assemble(
        sampler.author.write_statement(sampler.draw.choice(sampler.world.about(other)))
    ).text


def _make_erasures(sampler: CaseSampler) -> Iterator[Case]:
    """Make cases of facts that must become a refusal, asked as questions."""
    world = sampler.world
    usable = [one for one in world.triples() if len(world.of_relation(one.relation)) > _FEWEST]
    for triple in _draw_facts(sampler, usable):
        subject, relation = triple.subject, triple.relation
        questions = list(world.relations[relation].questions)
        sampler.draw.shuffle(questions)
        fact = sampler.make_fact(questions[0], triple, REFUSAL, triple.object)
        probes = [
            make_greedy_probe(write_prompt(text, subject), _REFUSED, role, rivals=triple.objects)
            for text, role in zip(questions[:4], ("reliability", *["erasure"] * 3), strict=False)
        ]
        for one in list_other_facts(sampler, subject, relation, ()):
            for prompt in sampler.draw_questions(one.relation, subject, 1):
                probes.append(
                    _make_unchanged_probe(
                        sampler, prompt, one, "locality/other_relations", _REFUSED[0]
                    )
                )
        for one in draw_neighbours(sampler, triple, frozenset({subject})):
            prompt = write_prompt(questions[0], one.subject)
            probes.append(
                _make_unchanged_probe(sampler, prompt, one, "locality/neighborhood", _REFUSED[0])
            )
        probes.append(make_fluency_probe(fact.prompt))
        yield Case(
            id=f"erasure/{subject}/{relation}",
            facts=(fact,),
            probes=tuple(probes),
            meta=_make_meta(sampler, triple, "erasure"),
        )


def _make_meta(sampler: CaseSampler, triple: Triple, kind: str) -> dict[str, object]:
    return {
        "edit": kind,
        "relation": triple.relation,
        "group": sampler.world.groups[triple.subject],
    }


_MAKERS: dict[Kind, Callable[[CaseSampler], Iterator[Case]]] = {
    "modification": _make_modifications,
    "insertion": _make_insertions,
    "erasure": _make_erasures,
    "coverage": make_coverage_cases,
    "reverse": make_reverse_cases,
    "composite": make_composite_cases,
    "round": make_round_cases,
}
