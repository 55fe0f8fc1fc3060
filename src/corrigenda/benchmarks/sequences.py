"""Cases of two rounds of edits: facts scored under many prompts after each round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from corrigenda.cases import Against, Case, Probe, Protocol
from corrigenda.facts import Fact


class ScoredAnswer(NamedTuple):
    """Answer to be scored under every prompt that asks for it."""

    prompts: tuple[str, ...]
    answer: str


class EditConflict(NamedTuple):
    """Two edits of which the second contradicts the first.

    Attributes:
        first: The first edit.
        second: The second.
        old: What the first wrote, which should no longer hold in the end.
        new: What the second wrote.
        implied: What the second implies about the first; None where both have one prompt.
        tied: A fact that ties the two and should stay; None where there is none.
    """

    first: Fact
    second: Fact
    old: ScoredAnswer
    new: ScoredAnswer
    implied: ScoredAnswer | None = None
    tied: ScoredAnswer | None = None


def fill_templates(templates: Iterable[str], subject: str) -> tuple[str, ...]:
    """Put the subject in the place of `{}`; a trailing space is left to the separator.

    Templates that occur twice stay twice: means are over the file's list.
    """
    return tuple(text.replace("{}", subject).rstrip() for text in templates)


def make_score_probes(
    fact: ScoredAnswer,
    role: str,
    *,
    after: tuple[int, ...],
    rivals: tuple[str, ...] = (),
    test: str = "",
) -> Iterator[Probe]:
    """Make probes for the probability of one answer under every prompt."""
    for prompt in fact.prompts:
        yield Probe(
            prompt=prompt,
            expected=((fact.answer,),),
            role=role,
            protocol=Protocol.RANK,
            against=Against.BEFORE if rivals else Against.UNEDITED,
            rivals=rivals,
            test=test,
            after=after,
        )


def make_conflict_case(name: str, one: EditConflict, meta: dict[str, object]) -> Case:
    """Make the case of two edits in conflict."""
    probes = [
        *make_score_probes(one.old, "conflict/old", after=(1, 2)),
        *make_score_probes(one.new, "conflict/new", after=(2,)),
    ]
    if one.implied is not None:
        probes += make_score_probes(one.implied, "conflict/implied", after=(2,))
    if one.tied is not None:
        probes += make_score_probes(one.tied, "conflict/tied", after=(1, 2))
    return Case(
        id=name,
        facts=(one.first, one.second),
        probes=tuple(probes),
        rounds=((0,), (1,)),
        meta={"edit": "modification", **meta},
    )


def make_round_case(
    name: str,
    there: Fact,
    back: Sequence[Fact],
    prompts: tuple[str, ...],
    true_objects: Sequence[str],
    meta: dict[str, object],
) -> Case:
    """Make the case of a fact one of whose true objects is replaced and restored.

    Args:
        name: Id of the case.
        there: The edit from a true object to another.
        back: The edits that restore: one, or one for every true object.
        prompts: Everything that asks for the objects, the edited prompt first.
        true_objects: Every true object.
        meta: What reports group by.
    """
    middle, restored = there.target, there.before
    assert restored is not None
    assert restored in true_objects, f"{restored} is not among {true_objects}"
    probes = [
        *make_score_probes(
            ScoredAnswer(prompts, middle), "round/there", after=(1,), rivals=(restored,)
        ),
        *make_score_probes(
            ScoredAnswer(prompts, restored), "round/back", after=(2,), rivals=(middle,)
        ),
    ]
    for true in true_objects:
        probes += make_score_probes(
            ScoredAnswer(prompts, true), "round/true_object", after=(2,), test=true
        )
    for place, prompt in enumerate(dict.fromkeys(prompts)):
        probes.append(
            Probe(
                prompt=prompt,
                role=f"restoration/{'paraphrase' if place else 'edited'}",
                protocol=Protocol.GREEDY,
                against=Against.UNEDITED,
                after=(2,),
                divergence=True,
            )
        )
    return Case(
        id=name,
        facts=(there, *back),
        probes=tuple(probes),
        rounds=((0,), tuple(range(1, 1 + len(back)))),
        meta={"edit": "modification", "restored": restored, **meta},
    )
