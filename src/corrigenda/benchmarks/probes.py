"""Makes probes in the forms that most benchmarks use."""

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
    """Make a probe scored under teacher forcing."""
    return Probe(
        prompt=prompt.strip(),
        expected=((expected,),) if isinstance(expected, str) else expected,
        role=role,
        protocol=Protocol.TEACHER_FORCED,
        against=against,
        rivals=rivals,
    )


def make_natural_probe(
    prompt: str,
    expected: str | Groups,
    role: str,
    *,
    against: Against = Against.TARGET,
    rivals: tuple[str, ...] = (),
    max_new_tokens: int | None = None,
) -> Probe:
    """Make a probe whose whole natural answer is judged."""
    return Probe(
        prompt=prompt.strip(),
        expected=((expected.strip(),),) if isinstance(expected, str) else expected,
        role=role,
        protocol=Protocol.GENERATE,
        against=against,
        rivals=rivals,
        max_new_tokens=max_new_tokens,
    )


def make_rank_probes(
    prompts: Iterable[str], role: str, expected: str, rival: str
) -> Iterator[Probe]:
    """Make probes that compare the probabilities of two answers; blank prompts are left out."""
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
    """Make a probe that generates text after a prompt, with no expected answer."""
    return Probe(
        prompt=prompt.strip(),
        role="fluency",
        protocol=Protocol.GREEDY,
        max_new_tokens=FLUENCY_TOKENS,
    )
