"""The question of an edit in other surroundings: does it hold in long text, in talk, under doubt?

The surroundings are those of "Is it possible to edit large language models robustly?", made from
the record itself instead of encyclopaedia pages: what it says of the subject is the related text,
what it says of others the noise. Sentences that hold the old or the new answer are left out. All
probes are greedy, expect the new answer, and have the old one as rival (see `metrics.robustness`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from corrigenda.cases import Case, Probe, Protocol, Surroundings
from corrigenda.facts import Fact

NO_SUBJECT = "the fact names no subject"
NO_OLD = "no old answer is known"
NO_TEXT = "the record says nothing else of the subject"
NO_OTHER_TEXT = "the record says nothing of others"

_TURNS = 5
_SENTENCES = 6
_NEW_TOKENS = 30


class _Material(NamedTuple):
    """What a record holds besides its question."""

    fact: Fact
    subject: str
    old: str
    told: tuple[str, ...]
    asked: tuple[str, ...]
    noise: tuple[str, ...]


def surrounded(
    case: Case, kinds: Iterable[Surroundings], skipped: Counter[str] | None = None
) -> Case:
    """The same case with its question in other surroundings as further probes.

    Args:
        case: A case with one fact; others come back as they are.
        kinds: Which surroundings.
        skipped: Counts what could not be made, by reason.

    Example:
        >>> fact = Fact(prompt="Rome is in", target="Spain", subject="Rome", before="Italy")
        >>> case = surrounded(Case(id="1", facts=(fact,), probes=()), ["doubt"])
        >>> case.probes[0].role, case.probes[0].prompt
        ('robustness/doubt', 'Rome is in')
    """
    counted = Counter[str]() if skipped is None else skipped
    if len(case.facts) != 1:
        counted["a case with several facts"] += 1
        return case
    material = _material(case)
    probes: list[Probe] = []
    for kind in kinds:
        reason = _missing(kind, material)
        if reason:
            counted[f"robustness/{kind}: {reason}"] += 1
        else:
            probes += _MAKERS[kind](material, kind)
    return dataclasses.replace(case, probes=(*case.probes, *probes))


def _material(case: Case) -> _Material:
    fact = case.facts[0]
    rivals = (
        rival for probe in case.probes if probe.family == "reliability" for rival in probe.rivals
    )
    old = fact.before or next(rivals, "")
    about: dict[str, str] = {}
    others: dict[str, None] = {}
    for probe in case.probes:
        answer = probe.answer
        if not answer or probe.family not in ("locality", "portability", "generalization"):
            continue
        sentence = f"{probe.prompt}{probe.separator}{answer}."
        if any(one and one in sentence for one in (fact.target, old)):
            continue
        if fact.subject and fact.subject in probe.prompt:
            about.setdefault(sentence, probe.prompt)
        elif probe.family == "locality":
            others[sentence] = None
    return _Material(
        fact,
        fact.subject or "",
        old,
        tuple(about)[:_SENTENCES],
        tuple(about.values())[:_TURNS],
        tuple(others)[:_SENTENCES],
    )


def _missing(kind: Surroundings, material: _Material) -> str:
    if not material.old:
        return NO_OLD
    if kind in ("long_reference", "simulated_dialogue") and not material.subject:
        return NO_SUBJECT
    if kind not in ("cloze", "doubt", "assertion") and not material.told:
        return NO_TEXT
    return NO_OTHER_TEXT if kind == "noisy" and not material.noise else ""


def _probe(
    material: _Material, kind: Surroundings, prompt: str, *turns: str, test: str = ""
) -> Probe:
    fact = material.fact
    return Probe(
        prompt=prompt,
        expected=((fact.target, *fact.aliases),),
        role=f"robustness/{kind}",
        protocol=Protocol.GREEDY,
        rivals=(material.old,),
        test=test,
        max_new_tokens=_NEW_TOKENS,
        separator=fact.separator,
        turns=turns,
    )


def _text(sentences: Iterable[str]) -> str:
    return " ".join(sentences)


def _blank(prompt: str) -> str:
    return f"Fill in the blank: {prompt} ____.\nThe blank stands for"


def _cloze(material: _Material, kind: Surroundings) -> Iterator[Probe]:
    yield _probe(material, kind, _blank(material.fact.prompt))


def _long(material: _Material, kind: Surroundings) -> Iterator[Probe]:
    yield _probe(material, kind, f"{_text(material.told)} {material.fact.prompt}")


def _long_cloze(material: _Material, kind: Surroundings) -> Iterator[Probe]:
    yield _probe(material, kind, f"{_text(material.told)}\n{_blank(material.fact.prompt)}")


def _long_reference(material: _Material, kind: Surroundings) -> Iterator[Probe]:
    start, end = material.fact.span
    prompt = material.fact.prompt
    mention = "The subject of this text" if start == 0 else "the subject of this text"
    referring = f"{prompt[:start]}{mention}{prompt[end:]}"
    yield _probe(material, kind, f"{_text(material.told)} {referring}")


def _noisy(material: _Material, kind: Surroundings) -> Iterator[Probe]:
    text = _text((*material.noise, *material.told))
    yield _probe(material, kind, f"{text} {material.fact.prompt}")


def _simulated_dialogue(material: _Material, kind: Surroundings) -> Iterator[Probe]:
    lines = [f"User: Tell me about {material.subject}.", f"Assistant: {material.told[0]}"]
    for sentence in material.told[1:]:
        lines += ["User: What else?", f"Assistant: {sentence}"]
    lines += ["User: And what else?", f"Assistant: {material.fact.prompt}"]
    yield _probe(material, kind, "\n".join(lines))


def _doubt(material: _Material, kind: Surroundings) -> Iterator[Probe]:
    prompt = material.fact.prompt
    yield _probe(material, kind, prompt, f"That contradicts what I know. Think again: {prompt}")


def _assertion(material: _Material, kind: Surroundings) -> Iterator[Probe]:
    prompt = material.fact.prompt
    said = f"As far as I know, {prompt} {material.old}.\nSorry, you are right.\nOnce more: {prompt}"
    yield _probe(material, kind, prompt, said)


def _dialogue(material: _Material, kind: Surroundings) -> Iterator[Probe]:
    """The question, then questions about related things, then the question again."""
    prompt = material.fact.prompt
    yield _probe(material, kind, prompt, test=kind)
    yield _probe(material, kind, prompt, *material.asked, prompt, test=kind)


_MAKERS: dict[Surroundings, Callable[[_Material, Surroundings], Iterator[Probe]]] = {
    "cloze": _cloze,
    "long": _long,
    "long_cloze": _long_cloze,
    "long_reference": _long_reference,
    "noisy": _noisy,
    "simulated_dialogue": _simulated_dialogue,
    "doubt": _doubt,
    "assertion": _assertion,
    "dialogue": _dialogue,
}
