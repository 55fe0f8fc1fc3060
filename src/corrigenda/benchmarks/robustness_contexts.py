"""Asks an edit's question in other contexts: in long text, in dialogue, under doubt.

The surroundings are those of "Is it possible to edit large language models robustly?", made from
the record itself instead of encyclopaedia pages: its sentences about the subject are the related
text, those about others the noise. Sentences that hold the old or the new answer are left out. All
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
NO_TEXT = "the record has no other sentence about the subject"
NO_OTHER_TEXT = "the record has no sentence about others"

_TURNS = 5
_SENTENCES = 6
_NEW_TOKENS = 30


class _CaseTexts(NamedTuple):
    """Sentences and questions of a record, apart from its own question."""

    fact: Fact
    subject: str
    old: str
    about_subject: tuple[str, ...]
    questions: tuple[str, ...]
    about_others: tuple[str, ...]


def add_surroundings(
    case: Case, kinds: Iterable[Surroundings], skipped: Counter[str] | None = None
) -> Case:
    """Return the case with its question in other contexts as further probes.

    Args:
        case: A case with one fact; others come back as they are.
        kinds: Which surroundings.
        skipped: Counts what could not be made, by reason.

    Example:
        >>> fact = Fact(prompt="Rome is in", target="Spain", subject="Rome", before="Italy")
        >>> case = add_surroundings(Case(id="1", facts=(fact,), probes=()), ["doubt"])
        >>> case.probes[0].role, case.probes[0].prompt
        ('robustness/doubt', 'Rome is in')
    """
    counted = Counter[str]() if skipped is None else skipped
    if len(case.facts) != 1:
        counted["a case with several facts"] += 1
        return case
    material = _collect_texts(case)
    probes: list[Probe] = []
    for kind in kinds:
        reason = _find_missing(kind, material)
        if reason:
            counted[f"robustness/{kind}: {reason}"] += 1
        else:
            probes += _MAKERS[kind](material, kind)
    return dataclasses.replace(case, probes=(*case.probes, *probes))


def _collect_texts(case: Case) -> _CaseTexts:
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
    return _CaseTexts(
        fact,
        fact.subject or "",
        old,
        tuple(about)[:_SENTENCES],
        tuple(about.values())[:_TURNS],
        tuple(others)[:_SENTENCES],
    )


def _find_missing(kind: Surroundings, material: _CaseTexts) -> str:
    if not material.old:
        return NO_OLD
    if kind in ("long_reference", "simulated_dialogue") and not material.subject:
        return NO_SUBJECT
    if kind not in ("cloze", "doubt", "assertion") and not material.about_subject:
        return NO_TEXT
    return NO_OTHER_TEXT if kind == "noisy" and not material.about_others else ""


def _make_probe(
    material: _CaseTexts, kind: Surroundings, prompt: str, *turns: str, test: str = ""
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


def _join_sentences(sentences: Iterable[str]) -> str:
    return " ".join(sentences)


def _write_blank(prompt: str) -> str:
    return f"Fill in the blank: {prompt} ____.\nThe blank stands for"


def _make_cloze(material: _CaseTexts, kind: Surroundings) -> Iterator[Probe]:
    yield _make_probe(material, kind, _write_blank(material.fact.prompt))


def _make_long(material: _CaseTexts, kind: Surroundings) -> Iterator[Probe]:
    yield _make_probe(
        material, kind, f"{_join_sentences(material.about_subject)} {material.fact.prompt}"
    )


def _make_long_cloze(material: _CaseTexts, kind: Surroundings) -> Iterator[Probe]:
    yield _make_probe(
        material,
        kind,
        f"{_join_sentences(material.about_subject)}\n{_write_blank(material.fact.prompt)}",
    )


def _make_long_reference(material: _CaseTexts, kind: Surroundings) -> Iterator[Probe]:
    start, end = material.fact.span
    prompt = material.fact.prompt
    mention = "The subject of this text" if start == 0 else "the subject of this text"
    referring = f"{prompt[:start]}{mention}{prompt[end:]}"
    yield _make_probe(material, kind, f"{_join_sentences(material.about_subject)} {referring}")


def _make_noisy(material: _CaseTexts, kind: Surroundings) -> Iterator[Probe]:
    text = _join_sentences((*material.about_others, *material.about_subject))
    yield _make_probe(material, kind, f"{text} {material.fact.prompt}")


def _make_simulated_dialogue(material: _CaseTexts, kind: Surroundings) -> Iterator[Probe]:
    lines = [f"User: Tell me about {material.subject}.", f"Assistant: {material.about_subject[0]}"]
    for sentence in material.about_subject[1:]:
        lines += ["User: What else?", f"Assistant: {sentence}"]
    lines += ["User: And what else?", f"Assistant: {material.fact.prompt}"]
    yield _make_probe(material, kind, "\n".join(lines))


def _make_doubt(material: _CaseTexts, kind: Surroundings) -> Iterator[Probe]:
    prompt = material.fact.prompt
    yield _make_probe(
        material, kind, prompt, f"That contradicts what I know. Think again: {prompt}"
    )


def _make_assertion(material: _CaseTexts, kind: Surroundings) -> Iterator[Probe]:
    prompt = material.fact.prompt
    said = f"As far as I know, {prompt} {material.old}.\nSorry, you are right.\nOnce more: {prompt}"
    yield _make_probe(material, kind, prompt, said)


def _make_dialogue(material: _CaseTexts, kind: Surroundings) -> Iterator[Probe]:
    """Ask the question, then questions about related facts, then the question again."""
    prompt = material.fact.prompt
    yield _make_probe(material, kind, prompt, test=kind)
    yield _make_probe(material, kind, prompt, *material.questions, prompt, test=kind)


_MAKERS: dict[Surroundings, Callable[[_CaseTexts, Surroundings], Iterator[Probe]]] = {
    "cloze": _make_cloze,
    "long": _make_long,
    "long_cloze": _make_long_cloze,
    "long_reference": _make_long_reference,
    "noisy": _make_noisy,
    "simulated_dialogue": _make_simulated_dialogue,
    "doubt": _make_doubt,
    "assertion": _make_assertion,
    "dialogue": _make_dialogue,
}
