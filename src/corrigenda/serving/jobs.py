"""What is generated for a request: one answer each, its pieces, and the model that gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from corrigenda.patch import Patch
from corrigenda.serving.draws import TokenChances

StopReason = Literal["stop", "length"]


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A name under which the model is served, with the patches that answers under it have.

    It is a value: where other patches are put on, a new one takes its name, and answers that have
    begun end with the patches of the old one.

    Attributes:
        name: The name in requests.
        patches: Applied in order; none for the model as it was loaded.
        created: Seconds since 1970.
    """

    name: str
    patches: tuple[Patch, ...]
    created: int


@dataclass(frozen=True)
class Asked:
    """What one answer is to continue, and how.

    Attributes:
        text: The prompt; of a conversation, the last message of the user, which is what patches
            that rewrite prompts or answer in the model's place are asked about.
        before: Turns of the conversation before that message; None where a text is continued.
        after: Turns after it.
        max_tokens: Most new tokens.
        stop: Strings that end the answer.
        temperature: 0 is greedy.
        top_p: Probability of the nucleus that is drawn from.
        seed: Seed of the draws.
        number: Which of the answers to this text it is, from 1.
        num_top: Likeliest tokens that are reported at each place; None reports no probabilities.
    """

    text: str
    before: tuple[Mapping[str, str], ...] | None
    after: tuple[Mapping[str, str], ...]
    max_tokens: int
    stop: tuple[str, ...]
    temperature: float
    top_p: float
    seed: int
    number: int
    num_top: int | None

    @property
    def is_chat(self) -> bool:
        """Whether it is a conversation."""
        return self.before is not None


class TokenReport(NamedTuple):
    """A new token with its text and the log-probabilities at its place.

    Attributes:
        text: What it adds, which is U+FFFD where it ends within a character.
        chances: Log-probabilities; tokens by id.
        top: The likeliest tokens by text.
    """

    text: str
    chances: TokenChances
    top: tuple[tuple[str, float], ...]


class AnswerPiece(NamedTuple):
    """A piece of an answer, with the reports of the tokens that ended in it, if asked for."""

    text: str
    reports: tuple[TokenReport, ...] = ()


class AnswerEnd(NamedTuple):
    """The end of an answer: why, and how many tokens were read and added."""

    reason: StopReason
    num_prompt: int
    num_new: int


class AnswerFailure(NamedTuple):
    """What kept an answer from being given."""

    error: Exception


AnswerEvent = AnswerPiece | AnswerEnd | AnswerFailure


class AnswerJob:
    """One answer that is waiting or being generated.

    Attributes:
        model: What answers.
        asked: What is answered.
        emit: Called with each event, on the thread that owns the model.
        cancelled: Set from any thread; nothing more is generated or emitted then.
    """

    def __init__(
        self, model: ServedModel, asked: Asked, emit: Callable[[AnswerEvent], None]
    ) -> None:
        """Ask for one answer."""
        self.model, self.asked, self.emit = model, asked, emit
        self.cancelled = False
