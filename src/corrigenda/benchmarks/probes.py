"""Probes in the forms that most benchmarks ask them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from corrigenda.benchmarks.aliases import Groups
from corrigenda.cases import Against, Probe, Protocol

FLUENCY_TOKENS = 100
"""New tokens of a text whose fluency is measured."""


def make_forced_probe(
    prompt: str,
    expected: str | Groups,
    role: str,
    *,
    against: Against = Against.TARGET,
    rivals: tuple[str, ...] = (),
) -> Probe:
    """A probe whose answer is fed, token by token."""
    return Probe(
        prompt=prompt.strip(),
        expected=((expected,),) if isinstance(expected, str) else expected,
        role=role,
        protocol=Protocol.TEACHER_FORCED,
        against=against,
        rivals=rivals,
    )


def make_rank_probes(
    prompts: Iterable[str], role: str, expected: str, rival: str
) -> Iterator[Probe]:
    """Probes in which one answer should be more probable than another; blank prompts are none."""
    for prompt in prompts:
        if prompt.strip():
            yield Probe(
                prompt=prompt.strip(),
                expected=((expected,),),
                role=role,
                protocol=Protocol.RANK,
                against=Against.BEFORE,
                rivals=(rival,),
            )


def make_fluency_probe(prompt: str) -> Probe:
    """A prompt behind which text is generated, and expected to be nothing in particular."""
    return Probe(
        prompt=prompt.strip(),
        role="fluency",
        protocol=Protocol.GREEDY,
        max_new_tokens=FLUENCY_TOKENS,
    )
