"""What an edit did: answers before and after, the size of the change, and which facts took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.decoding import answer, begins, gives, greedy
from corrigenda.patch.changes import norm, num_parameters
from corrigenda.patch.weights import WeightPatch

if TYPE_CHECKING:
    from corrigenda.editor import State
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch.protocols import Patch


class Outcome(StrEnum):
    """What became of one fact."""

    TOOK = "took"
    """The edited model's greedy answer is the target."""
    NOT_TAKEN = "not taken"
    """The fact was edited and the greedy answer is still another."""
    ALREADY_TRUE = "already true"
    """The unedited model said the target; nothing was changed for this fact (CG107)."""


class Role(StrEnum):
    """Why a prompt is asked."""

    PROMPT = "prompt"
    """The fact's own prompt."""
    PARAPHRASE = "paraphrase"
    """Another wording, which should get the target too."""
    NEIGHBOUR = "neighbour"
    """Another fact, which should keep its answer."""


@dataclass(frozen=True)
class Answered:
    """One prompt with the greedy answers of the model before and after an edit.

    Attributes:
        prompt: The text asked.
        role: Why it was asked.
        fact: Index of the fact it belongs to.
        before: Answer of the unedited model.
        after: Answer of the edited model; equal to `before` where nothing was changed.
    """

    prompt: str
    role: Role
    fact: int
    before: str
    after: str

    @property
    def changed(self) -> bool:
        """Whether the answer is another one now."""
        return self.before != self.after


class SiteChange(NamedTuple):
    """Size of the change to one weight.

    Attributes:
        site: The weight's site.
        parameter: Name of the parameter that holds it, as in the checkpoint.
        norm: Frobenius norm of the change.
        relative_norm: `norm` over the Frobenius norm of the unedited weight.
        rank: Rank of the change; None where it is not kept in factors.
        parameters: Entries of the weight, all of which a merged change touches.
        stored: Numbers the patch stores for it.
    """

    site: str
    parameter: str
    norm: float
    relative_norm: float
    rank: int | None
    parameters: int
    stored: int


@dataclass(frozen=True)
class Correction:
    """An edit with everything worth knowing about it; what `corrigenda edit` prints.

    Attributes:
        patch: The edit itself; empty where every fact was true already.
        facts: The facts as edited, subjects filled in.
        outcomes: What became of each fact.
        answers: Answers before and after, fact by fact.
        changes: Size of the change, site by site.
        method: Name of the method.
        config: Its options, presets applied.
        seconds: Time taken, by stage: `fit`, `edit`, `ask`.
        notices: Things decided on the caller's behalf (a subject found, a layer chosen, a fact left
            out).
        state: What was fitted or given; pass it to the next edit.
    """

    patch: Patch
    facts: tuple[Fact, ...]
    outcomes: tuple[Outcome, ...]
    answers: tuple[Answered, ...]
    changes: tuple[SiteChange, ...]
    method: str
    config: Mapping[str, object]
    seconds: Mapping[str, float]
    notices: tuple[str, ...] = ()
    state: State | None = field(default=None, repr=False)

    @property
    def took(self) -> bool:
        """Whether every fact is the model's greedy answer now."""
        return Outcome.NOT_TAKEN not in self.outcomes

    @property
    def statuses(self) -> tuple[str, ...]:
        """What the method says of each fact, such as "written" or "clamped"; "" where nothing.

        A fact may be written and yet not be the model's answer, or the other way round: see
        `outcomes`.
        """
        noted = self.patch.header.notes.get("status", [])
        said = iter(noted if isinstance(noted, list) else [])
        return tuple(
            "" if outcome is Outcome.ALREADY_TRUE else str(next(said, ""))
            for outcome in self.outcomes
        )

    @property
    def is_no_op(self) -> bool:
        """Whether every fact was true already, so that nothing was changed."""
        return all(outcome is Outcome.ALREADY_TRUE for outcome in self.outcomes)

    def share(self, role: Role) -> float | None:
        """Share of prompts of one role that do as wished, in [0, 1]; None where there are none.

        A prompt or paraphrase should answer with the target or an alias, a neighbour should keep
        its answer.
        """
        asked = [item for item in self.answers if item.role is role]
        if not asked:
            return None
        if role is Role.NEIGHBOUR:
            return sum(not item.changed for item in asked) / len(asked)
        return sum(begins_with_target(item.after, self.facts[item.fact]) for item in asked) / len(
            asked
        )

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists, as `corrigenda edit --json` prints them."""
        shares = {role: self.share(role) for role in Role}
        return {
            "method": self.method,
            "config": dict(self.config),
            "took": self.took,
            "no_op": self.is_no_op,
            "facts": [
                {
                    "prompt": fact.prompt,
                    "subject": fact.subject,
                    "target": fact.target,
                    "status": str(outcome),
                    "method_status": status or None,
                    "name": fact.name,
                }
                for fact, outcome, status in zip(
                    self.facts, self.outcomes, self.statuses, strict=True
                )
            ],
            "answers": [
                {
                    "fact": item.fact,
                    "role": str(item.role),
                    "prompt": item.prompt,
                    "before": item.before,
                    "after": item.after,
                    "changed": item.changed,
                }
                for item in self.answers
            ],
            "efficacy": shares[Role.PROMPT],
            "paraphrases_changed": shares[Role.PARAPHRASE],
            "neighbours_kept": shares[Role.NEIGHBOUR],
            "changes": [change._asdict() for change in self.changes],
            "seconds": dict(self.seconds),
            "notices": list(self.notices),
            "notes": self.patch.header.notes,
        }


def begins_with_target(text: str, fact: Fact) -> bool:
    """Tell whether an answer begins with the target or one of its aliases, as a whole word."""
    return any(begins(text, wanted) for wanted in (fact.target, *fact.aliases))


def already_true(lm: LanguageModel, facts: Sequence[Fact]) -> list[bool]:
    """Tell for each fact whether the model's greedy answer is the target or an alias."""
    says = [False] * len(facts)
    spaced = [index for index, fact in enumerate(facts) if fact.separator == " "]
    pairs = [(i, wanted) for i in spaced for wanted in (facts[i].target, *facts[i].aliases)]
    given = gives(lm, [(facts[i].prompt, wanted) for i, wanted in pairs])
    for (index, _), right in zip(pairs, given, strict=True):
        says[index] = says[index] or right
    # `supports` joins with a space, so other separators are read off the continuation.
    others = [index for index, fact in enumerate(facts) if fact.separator != " "]
    for index, text in zip(others, greedy(lm, [facts[i].prompt for i in others]), strict=True):
        fact = facts[index]
        starts = tuple(fact.separator + wanted for wanted in (fact.target, *fact.aliases))
        says[index] = text.startswith(starts)
    return says


def questions(facts: Sequence[Fact]) -> list[tuple[int, Role, str]]:
    """List what to ask about facts: each prompt, then its paraphrases, then its neighbours."""
    return [
        (index, role, prompt)
        for index, fact in enumerate(facts)
        for role, prompts in (
            (Role.PROMPT, (fact.prompt,)),
            (Role.PARAPHRASE, fact.paraphrases),
            (Role.NEIGHBOUR, fact.neighbours),
        )
        for prompt in prompts
    ]


def before_and_after(
    lm: LanguageModel, patch: Patch, facts: Sequence[Fact]
) -> tuple[tuple[Answered, ...], list[bool]]:
    """Ask everything about `facts` without and with `patch`; the model is left as it was.

    Returns:
        The answers, and for each fact whether the target is the greedy answer with the patch.
    """
    asked = questions(facts)
    prompts = [prompt for _, _, prompt in asked]
    before = answer(lm, prompts)
    with patch.apply(lm):
        after = answer(lm, prompts)
        says = already_true(lm, facts)
    answers = tuple(
        Answered(prompt=prompt, role=role, fact=index, before=old, after=new)
        for (index, role, prompt), old, new in zip(asked, before, after, strict=True)
    )
    return answers, says


def size_of(lm: LanguageModel, patch: Patch) -> tuple[SiteChange, ...]:
    """Measure the change of every weight of a patch against the weights of `lm`."""
    if not isinstance(patch, WeightPatch):
        return ()
    sizes = []
    for site, change in patch.changes.items():
        size = norm(change)
        weight = lm.weight(site)
        sizes.append(
            SiteChange(
                site=str(site),
                parameter=lm.parameter_name(site),
                norm=size,
                relative_norm=size / float(weight.double().norm()),
                rank=change.rank if isinstance(change, LowRank) else None,
                parameters=weight.numel(),
                stored=num_parameters(change),
            )
        )
    return tuple(sizes)
