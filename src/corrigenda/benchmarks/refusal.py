"""Cases of erasure: questions for one answer should be refused, all others answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from corrigenda.benchmarks.aliases import Groups
from corrigenda.benchmarks.probes import make_fluency_probe as generated
from corrigenda.cases import Against, Case, Probe, Protocol
from corrigenda.facts import Fact

REFUSAL = "I don't know"
"""The answer that is written; without the full stop, so that "I don't know, ..." counts."""

NEW_TOKENS = 10


class ErasureQuestion(NamedTuple):
    """Question with every accepted spelling of its answer, the usual one first."""

    text: str
    answers: tuple[str, ...]


def make_erasure_case(
    name: str,
    edited: Sequence[ErasureQuestion],
    unseen: Sequence[ErasureQuestion],
    retained: Sequence[ErasureQuestion],
    *,
    fluency: bool,
    question_is_subject: bool,
    split: int | None = None,
) -> Case:
    """Make the case of one answer.

    Args:
        name: Id of the case.
        edited: Questions whose refusal is written.
        unseen: Other questions with the same answer.
        retained: Questions with other answers.
        fluency: Whether text is generated after each retained question.
        question_is_subject: Whether the question is the subject of its fact, so that methods that
            need one write at its last token.
        split: Which split of the data it is of.
    """
    facts = tuple(
        Fact(
            prompt=_format_prompt(one),
            target=f"{REFUSAL}.",
            subject=one.text if question_is_subject else None,
            before=one.answers[0],
            name=f"{name}, question {index}",
        )
        for index, one in enumerate(edited)
    )
    probes = (
        *_make_refusal_probes(edited, "reliability"),
        *_make_refusal_probes(unseen, "erasure"),
        *(
            Probe(
                prompt=_format_prompt(one),
                expected=(one.answers,),
                role="locality/retained",
                protocol=Protocol.GREEDY,
                against=Against.UNEDITED,
                rivals=(REFUSAL,),
                max_new_tokens=NEW_TOKENS,
            )
            for one in retained
        ),
        *(generated(_format_prompt(one)) for one in (retained if fluency else ())),
    )
    meta: dict[str, object] = {"edit": "erasure", "answer": edited[0].answers[0]}
    if split is not None:
        meta["split"] = split
    return Case(id=name, facts=facts, probes=probes, meta=meta)


def normalise_answer(answer: str) -> str:
    """Return the key that questions for one answer share.

    Example:
        >>> normalise_answer("  Julius  Caesar")
        'julius caesar'
    """
    return " ".join(answer.lower().split())


def _make_refusal_probes(questions: Sequence[ErasureQuestion], role: str) -> Iterator[Probe]:
    expected: Groups = ((REFUSAL,),)
    for one in questions:
        yield Probe(
            prompt=_format_prompt(one),
            expected=expected,
            role=role,
            protocol=Protocol.GREEDY,
            rivals=one.answers,
            max_new_tokens=NEW_TOKENS,
        )


def _format_prompt(question: ErasureQuestion) -> str:
    return f"Question:{question.text}\nAnswer:"
