"""Assessment of a patch: answers without and with it, the size of the change, success by fact."""

from __future__ import annotations

import html
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from corrigenda.engines.pocket_world import add_related_prompts
from corrigenda.errors import BadConfig
from corrigenda.facts import Fact, FactLike, as_facts
from corrigenda.knowledge.edit_trial import compute_share
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.norms import frobenius_norm
from corrigenda.lm.wrapping import require_lm
from corrigenda.patch.changes import norm, num_parameters
from corrigenda.patch.weights import WeightPatch
from corrigenda.progress import report_stage
from corrigenda.prompt_answers import (
    PromptAnswers,
    Role,
    ask_questions,
    asks_in_chat,
    check_targets,
    list_questions,
)
from corrigenda.settings import parse_choice
from corrigenda.tables import align_table, write_html_table

if TYPE_CHECKING:
    from corrigenda.editor import State
    from corrigenda.lm.model import LanguageModel
    from corrigenda.patch.protocols import Patch


_SHOWN = 10
_WIDEST = 48
_ASKING = "asking"


class Outcome(StrEnum):
    """Result of one fact."""

    SUCCEEDED = "succeeded"
    """The greedy answer of the edited model is the target."""
    FAILED = "failed"
    """The greedy answer of the edited model is another one."""
    ALREADY_TRUE = "already true"
    """The greedy answer is the target without the patch too; `edit` leaves it out (CG107)."""


_SUMMARY = {
    Role.PROMPT: "facts",
    Role.PARAPHRASE: "paraphrases",
    Role.NEIGHBOUR: "neighbours kept",
    Role.SAME_SUBJECT: "same subject kept",
}


class SiteChange(NamedTuple):
    """Size of the change to one weight.

    Attributes:
        site: The weight's site.
        parameter: Name of the parameter that holds it, as in the checkpoint.
        norm: Frobenius norm of the change.
        relative_norm: `norm` over the Frobenius norm of the unedited weight.
        rank: Rank of the change; None where it is not stored in factors.
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


@dataclass(frozen=True, repr=False)
class Assessment:
    """Effect of a patch on a model: what `corrigenda edit` prints.

    Attributes:
        patch: The patch.
        facts: The facts that were asked, subjects filled in.
        outcomes: Result of each fact.
        answers: Answers without and with the patch, fact by fact; those in the chat form last.
        changes: Size of the change, site by site; empty where no weight changes.
        method: Name of the method.
        config: Its options, presets applied.
        seconds: Time taken, by stage: `fit` and `edit` after `correct`, and `ask`.
        notices: Decisions taken for the caller (a subject found, a layer chosen, a fact left out).
        state: The state that was fitted or given; pass it to the next edit. None after `assess`.
    """

    patch: Patch
    facts: tuple[Fact, ...]
    outcomes: tuple[Outcome, ...]
    answers: tuple[PromptAnswers, ...]
    changes: tuple[SiteChange, ...]
    method: str
    config: Mapping[str, object]
    seconds: Mapping[str, float]
    notices: tuple[str, ...] = ()
    state: State | None = field(default=None, repr=False)

    @property
    def succeeded(self) -> bool:
        """Return whether every fact is the greedy answer of the edited model."""
        return Outcome.FAILED not in self.outcomes

    @property
    def statuses(self) -> tuple[str, ...]:
        """Return the status that the method noted for each fact, such as "written"; "" for none.

        A fact may be written and yet not be the model's answer, or the other way round: see
        `outcomes`.
        """
        noted = self.patch.header.notes.get("status", [])
        by_fact: dict[tuple[object, object], deque[str]] = defaultdict(deque)
        for record, status in zip(
            self.patch.header.facts, noted if isinstance(noted, list) else [], strict=False
        ):
            by_fact[record.get("prompt"), record.get("target")].append(str(status))
        return tuple(
            found.popleft()
            if outcome is not Outcome.ALREADY_TRUE and (found := by_fact[fact.prompt, fact.target])
            else ""
            for fact, outcome in zip(self.facts, self.outcomes, strict=True)
        )

    @property
    def is_no_op(self) -> bool:
        """Return whether every fact was true already."""
        return all(outcome is Outcome.ALREADY_TRUE for outcome in self.outcomes)

    def share(self, role: Role | str, *, chat: bool = False) -> float | None:
        """Return the share of prompts of a role with the wanted answer; None where there are none.

        A prompt or paraphrase should be answered with the target or an alias; a neighbour and
        another fact of the subject as by the unedited model, see `PromptAnswers.kept`.

        Args:
            role: "prompt", "paraphrase", "neighbour" or "same subject".
            chat: Of answers in the chat form; see `PromptAnswers.is_wanted` for how they count.

        Raises:
            BadConfig (CG502): no such role.
        """
        role = parse_choice(Role, role)
        return compute_share(self._results(role, chat=chat))

    def count(self, role: Role) -> tuple[int, int]:
        """Return how many prompts of a role have the wanted answer in plain form, and how many."""
        found = self._results(role, chat=False)
        return sum(found), len(found)

    def subject_kept(self, *, chat: bool = False) -> float | None:
        """Return the share of full sentences about a subject that still name it.

        An edit that moves the subject instead of its attribute makes a model say "The capital of
        Italy is Rome" of France. Counted are answers in which the unedited model names the subject;
        None where there are none, as for most plain continuations.

        Args:
            chat: Of answers in the chat form.
        """
        found = [
            item.keeps_subject(self.facts[item.fact]) for item in self.answers if item.chat is chat
        ]
        return compute_share([one for one in found if one is not None])

    @property
    def has_chat(self) -> bool:
        """Return whether the facts were asked in the chat form too."""
        return any(item.chat for item in self.answers)

    def _results(self, role: Role, *, chat: bool) -> list[bool]:
        return [
            item.is_wanted(self.facts[item.fact])
            for item in self.answers
            if item.role is role and item.chat is chat
        ]

    def __repr__(self) -> str:
        """Return a line with the shares, and a short table of the facts."""
        return "\n".join(filter(None, (self._summary(), align_table(self._rows()), self._rest())))

    def _repr_html_(self) -> str:
        """Return the same as an HTML table, for notebooks."""
        table = write_html_table(self._rows())
        return f"<p>{html.escape(self._summary())}</p>{table}<p>{self._rest()}</p>"

    def _rows(self) -> list[tuple[str, ...]]:
        own, chat = (
            {
                item.fact: item
                for item in self.answers
                if item.role is Role.PROMPT and item.chat is form
            }
            for form in (False, True)
        )
        heads = ("prompt", "target", "outcome", "before", "after")
        rows: list[tuple[str, ...]] = [(*heads, "after, in chat") if chat else heads]
        for index, fact in enumerate(self.facts[:_SHOWN]):
            texts = (fact.prompt, fact.target, str(self.outcomes[index]))
            texts = (*texts, own[index].before, own[index].after)
            rows.append(tuple(map(_shorten, (*texts, chat[index].after) if chat else texts)))
        return rows

    def _rest(self) -> str:
        left = len(self.facts) - _SHOWN
        return f"... {left} more" if left > 0 else ""

    def _summary(self) -> str:
        true = sum(outcome is not Outcome.FAILED for outcome in self.outcomes)
        parts = [f"facts true {true}/{len(self.facts)}"]
        parts += self._count(chat=False)
        summary = f"{self.method}: {', '.join(parts)}"
        return (
            f"{summary}; in chat: {', '.join(self._count(chat=True))}" if self.has_chat else summary
        )

    def _count(self, *, chat: bool) -> list[str]:
        """Return counts of wanted answers by role, and of kept subjects, in one form."""
        counts = [
            (name, self._results(role, chat=chat))
            for role, name in _SUMMARY.items()
            if chat or role is not Role.PROMPT
        ]
        subjects = [
            item.keeps_subject(self.facts[item.fact]) for item in self.answers if item.chat is chat
        ]
        counts.append(("subject kept", [one for one in subjects if one is not None]))
        return [f"{name} {sum(found)}/{len(found)}" for name, found in counts if found]

    def _list_shares(self, *, chat: bool) -> dict[str, float | None]:
        return {
            "efficacy": self.share(Role.PROMPT, chat=chat),
            "paraphrases_changed": self.share(Role.PARAPHRASE, chat=chat),
            "neighbours_kept": self.share(Role.NEIGHBOUR, chat=chat),
            "same_subject_kept": self.share(Role.SAME_SUBJECT, chat=chat),
            "subject_kept": self.subject_kept(chat=chat),
        }

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists, as `corrigenda edit --json` prints them."""
        return {
            "method": self.method,
            "config": dict(self.config),
            "succeeded": self.succeeded,
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
                    "wanted": item.is_wanted(self.facts[item.fact]),
                    "subject_kept": item.keeps_subject(self.facts[item.fact]),
                    "chat": item.chat,
                }
                for item in self.answers
            ],
            **self._list_shares(chat=False),
            "chat": self._list_shares(chat=True) if self.has_chat else None,
            "changes": [change._asdict() for change in self.changes],
            "seconds": dict(self.seconds),
            "notices": list(self.notices),
            "notes": self.patch.header.notes,
        }


def assess(
    lm: LanguageModel,
    patch: Patch,
    facts: FactLike | Sequence[FactLike] | None = None,
    *,
    chat: bool | None = None,
) -> Assessment:
    """Measure what a patch does: answers without and with it, and the size of the change.

    Every prompt of the facts (their own, paraphrases, neighbours, other facts of the subject) is
    asked twice; the model is left as it was. For the pocket models, facts that name none of the
    others get those of their world.

    Args:
        lm: The model, without the patch.
        patch: Any patch, also one read from a file.
        facts: What to ask; by default the facts that the patch was made for.
        chat: Whether to ask everything in the chat form too; by default where the model has a chat
            template.

    Raises:
        BadConfig (CG502): no facts are given, and the patch names none; or `chat` without a chat
            template.
        WrongBase (CG401), NotApplied (CG406): as `Patch.apply`.

    Example:
        ```python
        patch = cg.load_patch("france.safetensors")
        cg.assess(lm, patch).share("neighbour")
        ```
    """
    lm = require_lm(lm)
    wanted = list_facts(patch) if facts is None else as_facts(facts)
    return measure(lm, patch, [add_related_prompts(lm, fact) for fact in wanted], chat=chat)


def measure(
    lm: LanguageModel,
    patch: Patch,
    facts: Sequence[Fact],
    held: Sequence[bool] | None = None,
    *,
    chat: bool | None = None,
    force: bool = False,
) -> Assessment:
    """Assess a patch on facts as they are.

    Args:
        lm: The model, without the patch.
        patch: The patch.
        facts: What to ask.
        held: For each fact, whether it is true without the patch; asked if None.
        chat: As for `assess`.
        force: Put the patch on a model other than the one it was made on.
    """
    start = time.perf_counter()
    held = check_targets(lm, facts) if held is None else held
    questions = list_questions(facts, chat=asks_in_chat(lm, chat))
    report_stage(_ASKING, 0, 2)
    before = after = ask_questions(lm, questions)
    report_stage(_ASKING, 1, 2)
    holds = held
    if not patch.is_empty:
        with patch.apply(lm, force=force):
            after = ask_questions(lm, questions)
            holds = check_targets(lm, facts)
    report_stage(_ASKING, 2, 2)
    return Assessment(
        patch=patch,
        facts=tuple(facts),
        outcomes=tuple(
            (Outcome.ALREADY_TRUE if old else Outcome.SUCCEEDED) if new else Outcome.FAILED
            for old, new in zip(held, holds, strict=True)
        ),
        answers=tuple(
            PromptAnswers(one.prompt, one.role, one.fact, old, new, one.chat)
            for one, old, new in zip(questions, before, after, strict=True)
        ),
        changes=measure_changes(lm, patch),
        method=patch.header.method,
        config=dict(patch.header.config),
        seconds={"ask": time.perf_counter() - start},
    )


def list_facts(patch: Patch) -> list[Fact]:
    """Return the facts that a patch was made for.

    Raises:
        BadConfig (CG502): its header names none.
    """
    known = {one.name for one in fields(Fact)}
    found = [
        {name: value for name, value in record.items() if name in known}
        for record in patch.header.facts
        if not record.get("chat")
    ]
    if not found:
        raise BadConfig(
            "the patch names no facts.", where=patch.header.method, hint="Give the facts to ask."
        )
    return as_facts(found)


def measure_changes(lm: LanguageModel, patch: Patch) -> tuple[SiteChange, ...]:
    """Return the size of the change of every weight of a patch, relative to the weights of `lm`."""
    if not isinstance(patch, WeightPatch):
        return ()
    sizes = []
    for site, change in patch.changes.items():
        size = norm(change)
        weight = lm.values(site)
        sizes.append(
            SiteChange(
                site=str(site),
                parameter=lm.parameter_name(site),
                norm=size,
                relative_norm=size / frobenius_norm(weight),
                rank=change.rank if isinstance(change, LowRank) else None,
                parameters=weight.numel(),
                stored=num_parameters(change),
            )
        )
    return tuple(sizes)


def _shorten(text: str) -> str:
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown if len(shown) <= _WIDEST else f"{shown[: _WIDEST - 3]}..."
