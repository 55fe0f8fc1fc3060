"""Prompts about facts with their answers without and with a patch, and how they are judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from corrigenda.facts import Fact
from corrigenda.lm.chat import has_chat_template, word_turn, write_turn
from corrigenda.lm.decoding import answer, gives, greedy
from corrigenda.short_answers import begins, find_words, keeps_answer, states

if TYPE_CHECKING:
    from corrigenda.lm.model import LanguageModel

_CHAT_TOKENS = 32


class Role(StrEnum):
    """Relation of a prompt to the fact that was edited."""

    PROMPT = "prompt"
    """The fact's own prompt."""
    PARAPHRASE = "paraphrase"
    """Another wording, which should be answered with the target too."""
    NEIGHBOUR = "neighbour"
    """The same of another subject, which should keep its answer."""
    SAME_SUBJECT = "same subject"
    """Another fact of the subject, which should keep its answer."""


@dataclass(frozen=True)
class PromptAnswers:
    """One prompt with its greedy answers without and with a patch.

    Attributes:
        prompt: The text asked.
        role: Its relation to the fact.
        fact: Index of the fact it belongs to.
        before: Answer of the unedited model.
        after: Answer of the edited model; equal to `before` where nothing was changed.
        chat: Whether it was asked as a user's turn in the chat template.
    """

    prompt: str
    role: Role
    fact: int
    before: str
    after: str
    chat: bool = False

    @property
    def changed(self) -> bool:
        """Return whether the two answers differ, also after their first words."""
        return self.before != self.after

    @property
    def kept(self) -> bool:
        """Return whether the short answer is the same; see `short_answers.keeps_answer`."""
        return keeps_answer(self.before, self.after, sentence=self.chat)

    def is_wanted(self, fact: Fact) -> bool:
        """Return whether the answer after the edit is as it should be.

        A prompt or paraphrase should get the target or an alias: the plain answer begins with it, a
        chat answer states it in its first sentence, before the answer that was true. A neighbour
        and another fact of the subject should keep their answer.
        """
        if self.role in (Role.NEIGHBOUR, Role.SAME_SUBJECT):
            return self.kept
        if not self.chat:
            return begins_with_target(self.after, fact)
        return states(self.after, (fact.target, *fact.aliases), list_old_answers(fact))

    def keeps_subject(self, fact: Fact) -> bool | None:
        """Return whether a full sentence about the subject still names it.

        None where the unedited model did not name it in its answer, and for neighbours. An answer
        that begins with the target is no full sentence and names it as well as before.
        """
        subject = fact.subject
        if not subject or self.role is Role.NEIGHBOUR or find_words(self.before, subject) < 0:
            return None
        return find_words(self.after, subject) >= 0 or begins_with_target(self.after, fact)


class Question(NamedTuple):
    """A prompt to ask about one of several facts."""

    fact: int
    role: Role
    prompt: str
    chat: bool = False


def begins_with_target(text: str, fact: Fact) -> bool:
    """Return whether an answer begins with the target or an alias, as a whole word."""
    return any(begins(text, wanted) for wanted in (fact.target, *fact.aliases))


def list_old_answers(fact: Fact) -> tuple[str, ...]:
    """Return what held before an edit, where the fact tells, unless the target contains it."""
    old = fact.before
    return (old,) if old and find_words(fact.target, old) < 0 else ()


def check_targets(lm: LanguageModel, facts: Sequence[Fact]) -> list[bool]:
    """Return for each fact whether the greedy answer is the target or an alias."""
    holds = [False] * len(facts)
    spaced = [index for index, fact in enumerate(facts) if fact.separator == " "]
    pairs = [(i, wanted) for i in spaced for wanted in (facts[i].target, *facts[i].aliases)]
    given = gives(lm, [(facts[i].prompt, wanted) for i, wanted in pairs])
    for (index, _), right in zip(pairs, given, strict=True):
        holds[index] = holds[index] or right
    # `gives` joins with a space, so other separators are read off the continuation.
    others = [index for index, fact in enumerate(facts) if fact.separator != " "]
    for index, text in zip(others, greedy(lm, [facts[i].prompt for i in others]), strict=True):
        fact = facts[index]
        starts = tuple(fact.separator + wanted for wanted in (fact.target, *fact.aliases))
        holds[index] = text.startswith(starts)
    return holds


def list_questions(facts: Sequence[Fact], *, chat: bool = False) -> list[Question]:
    """Return the prompts to ask about facts, fact by fact in the order of `Role`.

    Args:
        facts: The facts.
        chat: Whether to ask all of them again in the chat form, after the others.
    """
    return [
        Question(index, role, prompt, form)
        for form in ((False, True) if chat else (False,))
        for index, fact in enumerate(facts)
        for role, prompts in (
            (Role.PROMPT, (fact.prompt,)),
            (Role.PARAPHRASE, fact.paraphrases),
            (Role.NEIGHBOUR, fact.neighbours),
            (Role.SAME_SUBJECT, fact.same_subject),
        )
        for prompt in prompts
    ]


def ask_questions(lm: LanguageModel, questions: Sequence[Question]) -> list[str]:
    """Return the greedy answers to questions, in order.

    In the chat form a cloze is worded as `chat.word_turn` does, and the answer may be longer.
    """
    given: dict[int, str] = {}
    for chat in (False, True):
        places = [at for at, one in enumerate(questions) if one.chat is chat]
        prompts = [questions[at].prompt for at in places]
        if chat:
            turns = [word_turn(prompt).write(prompt) for prompt in prompts]
            answers = answer(lm, turns, max_new_tokens=_CHAT_TOKENS, chat=True)
        else:
            answers = answer(lm, prompts)
        given |= dict(zip(places, answers, strict=True))
    return [given[at] for at in range(len(questions))]


def asks_in_chat(lm: LanguageModel, chat: bool | None) -> bool:
    """Return whether to ask in the chat form too: as told, else where there is a template.

    Raises:
        BadConfig (CG502): `chat`, and the model has no chat template, or an unusable one.
    """
    if chat:
        write_turn(lm.tokenizer, "")
    return has_chat_template(lm.tokenizer) if chat is None else chat
