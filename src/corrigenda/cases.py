"""Cases: records of a benchmark, each with its facts and probes; imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, get_args

from corrigenda.facts import Fact

Surroundings = Literal[
    "cloze",
    "long",
    "long_cloze",
    "long_reference",
    "noisy",
    "simulated_dialogue",
    "doubt",
    "assertion",
    "dialogue",
]
SURROUNDINGS: tuple[Surroundings, ...] = get_args(Surroundings)
"""Contexts around a question, in the order in which the paper lists them; see
`benchmarks.robustness_contexts`."""


TEXTS = frozenset({"fluency", "consistency", "essence", "unseen_text"})
"""Families of probes of texts: whole texts are generated, or scored, in one way only."""


class Protocol(StrEnum):
    """How an answer is taken from the model; part of the name of every metric."""

    RANK = "rank"
    """The expected answer and each of `rivals` are scored, per token, given the prompt."""

    TEACHER_FORCED = "teacher_forced"
    """The most probable token at every position of the expected answer, which is fed in."""

    GREEDY = "greedy"
    """The model continues the prompt, always with the most probable token."""

    GENERATE = "generate"
    """The model answers as it does in use: the likeliest token each time, until it ends by itself,
    with no more known of the expected answer than a limit on all. The whole answer is judged."""

    CHAT = "chat"
    """The same, with the prompt as a user's turn of the model's chat template."""

    SAMPLED = "sampled"
    """The model continues the prompt at random among the five most probable tokens, to 100 tokens
    with the prompt, beyond the end of the text. Only text that is expected to be nothing in
    particular is asked so: that of the published fluency."""


NATURAL = (Protocol.GENERATE, Protocol.CHAT)
"""Protocols whose answers are whole and end by themselves; a judge may be asked about them."""

GENERATED = (Protocol.GREEDY, *NATURAL)
"""Protocols whose answers are text that the model continues with its likeliest tokens."""


class Against(StrEnum):
    """What an answer is compared with."""

    TARGET = "target"
    """The expected answer should be given."""

    BEFORE = "before"
    """The expected answer should win against `rivals`: what held before or, for a neighbour of
    the edit, what was written."""

    UNEDITED = "unedited"
    """The answer should be that of the unedited model to the same prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """One question asked of a model.

    Attributes:
        prompt: Everything the model reads before it answers, contexts included.
        expected: Groups of accepted spellings. Every group must be met (AND), each by any of its
            spellings (OR). Where one string is needed, it is the first of the first group. Empty
            for text that is only generated (fluency).
        role: What the answer says of the edit: `reliability`, `generalization`,
            `locality/relation_specificity`, `portability/reasoning`, `fluency`, ... The part
            before the slash is the family. `condition` is asked of the unedited model only:
            probes of the same `test` count where all its conditions hold.
        protocol: How the answer is taken.
        against: What it is held against.
        rivals: Answers that must not win: the old answer, or the new one for a neighbour.
        test: Probes of one case and role with the same non-empty name form one test; else each
            probe is a test of its own.
        every: Whether a test passes only if all its probes do (AND), or if any does (OR).
        after: Numbers of rounds (see `Case.rounds`) after which it is asked; empty: after the
            last. The unedited model, 0, is asked in any case; (0,) asks it alone.
        divergence: Whether the distributions of the next token are compared with those of the
            unedited model as well: along the expected answer, or after the prompt where there is
            none.
        max_new_tokens: Length of a greedy answer; None leaves it to the run.
        marker: Text in a greedy answer after which the answer proper follows, up to the end of the
            line; what comes before it may take several lines. Empty: the answer is all of it.
        separator: Text between prompt and expected answer.
        turns: Text added after each of the model's own answers, in a dialogue that the prompt
            opens; the greedy answer after the last of them counts.
    """

    prompt: str
    expected: tuple[tuple[str, ...], ...] = ()
    role: str
    protocol: Protocol
    against: Against = Against.TARGET
    rivals: tuple[str, ...] = ()
    test: str = ""
    every: bool = True
    after: tuple[int, ...] = ()
    divergence: bool = False
    max_new_tokens: int | None = None
    marker: str = ""
    separator: str = " "
    turns: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """Return the role up to its slash.

        Example:
            >>> Probe(prompt="A", role="locality/forgetfulness", protocol=Protocol.RANK).family
            'locality'
        """
        return self.role.partition("/")[0]

    @property
    def answer(self) -> str | None:
        """Return the first spelling of the first group, where one string is needed."""
        return self.expected[0][0] if self.expected else None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One benchmark record: its facts and its probes.

    Attributes:
        id: Unique in its benchmark, and the same whenever the file is read.
        facts: What the edit should make true, in the order of editing.
        probes: What is asked before and after.
        rounds: Facts by index, edited one round on top of the other; empty: all in one round.
        meta: What reports group by and rows carry along: relation, number of hops, direction, ...
            Plain JSON.
    """

    id: str
    facts: tuple[Fact, ...]
    probes: tuple[Probe, ...]
    rounds: tuple[tuple[int, ...], ...] = ()
    meta: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def edits(self) -> tuple[tuple[Fact, ...], ...]:
        """Return the facts of every round, in order.

        Example:
            >>> fact = Fact(prompt="Rome is in", target="Italy")
            >>> len(Case(id="1", facts=(fact, fact), probes=(), rounds=((0,), (1,))).edits)
            2
        """
        if not self.rounds:
            return (self.facts,)
        return tuple(tuple(self.facts[index] for index in one) for one in self.rounds)

    def under(self, *protocols: Protocol) -> Case:
        """Return the case with every probe that expects an answer asked under these protocols.

        Texts, other probes that expect nothing, conditions, and those whose distributions are
        compared stay as they are; with `SAMPLED`, texts of `fluency` are sampled too. Lengths of
        greedy answers, which may tell how long the expected one is, do not hold for natural ones.
        """
        probes: list[Probe] = []
        sampled = Protocol.SAMPLED in protocols
        protocols = tuple(one for one in protocols if one != Protocol.SAMPLED)
        for probe in self.probes:
            if sampled and probe.family == "fluency":
                sample = dataclasses.replace(probe, protocol=Protocol.SAMPLED, max_new_tokens=None)
                probes += [probe, sample]
            elif (
                not protocols
                or probe.divergence
                or probe.role == "condition"
                or probe.family in TEXTS
            ):
                probes.append(probe)
            else:
                probes += _ask_under(probe, protocols)
        return dataclasses.replace(self, probes=tuple(probes))


def _ask_under(probe: Probe, protocols: Sequence[Protocol]) -> list[Probe]:
    """Return a probe under each of some protocols that can ask it, or as it is where none can.

    What expects no answer can only be generated. A length that holds under protocols of one kind
    does not under those of another.
    """
    fitting = [one for one in protocols if probe.expected or one in GENERATED]
    if probe.marker:
        fitting = [one for one in fitting if one not in NATURAL]
    if not fitting or not (probe.expected or probe.protocol in GENERATED):
        return [probe]
    return [
        dataclasses.replace(
            probe,
            protocol=one,
            max_new_tokens=probe.max_new_tokens
            if (probe.protocol in NATURAL) == (one in NATURAL)
            else None,
        )
        for one in fitting
    ]
