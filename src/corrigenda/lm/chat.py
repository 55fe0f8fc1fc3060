"""Chat templates: a prompt as a user's turn, and where the assistant's answer begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from corrigenda.errors import BadConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Ends of a prompt that is a sentence by itself: a question, a request.
_ENDS = ("?", ".", "!", ":", "\uff1f", "\u3002", "\u061f", "____")
# Words that no template holds and no template changes.
_USER, _ASSISTANT = "QUESTION7f3a", "ANSWER7f3a"


class ChatForm(NamedTuple):
    """Text of a chat template around a user's turn, special tokens included.

    Attributes:
        before: Text before what the user says.
        after: Text between that and the assistant's answer.
        separator: White space with which the template begins an answer; mostly none.
    """

    before: str
    after: str
    separator: str


class Wording(NamedTuple):
    """Text around a prompt that makes it a user's turn.

    Attributes:
        lead: Text before the prompt.
        tail: Text after it.
    """

    lead: str
    tail: str

    def write(self, prompt: str) -> str:
        """Return what the user says."""
        return f"{self.lead}{prompt}{self.tail}"


def word_turn(prompt: str) -> Wording:
    """Return how a user asks a prompt: a question as it is, a cloze as a blank to fill in.

    Example:
        >>> word_turn("The capital of France is").write("The capital of France is")
        'Fill in the blank: The capital of France is ____.'
        >>> word_turn("Who is it?").write("Who is it?")
        'Who is it?'
    """
    asks = prompt.rstrip().endswith(_ENDS)
    return Wording("", "") if asks else Wording("Fill in the blank: ", " ____.")


def count_template_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens a chat template puts around a user's turn; 0 where there is none."""
    if not has_chat_template(tokenizer):
        return 0
    form = chat_form(tokenizer)
    text = f"{form.before}{form.after}"
    return len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def write_turn(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """Return the text in which a user says the prompt and the assistant is about to answer.

    The text holds every special token itself, so it is tokenised without adding any.

    Raises:
        BadConfig (CG502): there is no chat template, or it refuses a single turn of a user.
    """
    return write_turns(tokenizer, [{"role": "user", "content": prompt}])


def chat_form(tokenizer: PreTrainedTokenizerBase) -> ChatForm:
    """Return the text that a chat template puts around a user's turn.

    Raises:
        BadConfig (CG502): there is no chat template, or it refuses a single turn of a user, or
            leaves out what the user says.
    """
    before, found, after = write_turn(tokenizer, _USER).partition(_USER)
    if not found:
        raise _refuse("leaves out what the user says")
    turns = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}]
    told = write_turns(tokenizer, turns, asks=False).partition(_USER)[2].partition(_ASSISTANT)[0]
    extra = told.removeprefix(after)
    separator = extra if told.startswith(after) and not extra.strip() else ""
    return ChatForm(before, after, separator)


class UserTurn(NamedTuple):
    """The last turn of a user in the text of a dialogue, the assistant about to answer.

    Attributes:
        before: Text before what the user says, earlier turns included.
        prompt: What the user says.
        after: Text after it.
        separator: White space with which the template begins an answer.
    """

    before: str
    prompt: str
    after: str
    separator: str

    def write(self, prompt: str) -> str:
        """Return the text with another prompt."""
        return f"{self.before}{prompt}{self.after}"


def find_turn(tokenizer: PreTrainedTokenizerBase, text: str) -> UserTurn | None:
    """Return the user's turn that a text written by the chat template ends with; None if none.

    Args:
        tokenizer: A fast tokenizer.
        text: The text, special tokens included.
    """
    if not has_chat_template(tokenizer):
        return None
    form = chat_form(tokenizer)
    turns = [
        {"role": "user", "content": _USER},
        {"role": "assistant", "content": _ASSISTANT},
        {"role": "user", "content": _USER},
    ]
    try:
        later = write_turns(tokenizer, turns).partition(_ASSISTANT)[2].partition(_USER)[0]
    except BadConfig:
        later = form.before
    # What the first and later turns of a user have in common opens a turn.
    pairs = zip(reversed(form.before), reversed(later), strict=False)
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    opening = later[len(later) - shared :]
    start = text.rfind(opening) + len(opening)
    if not opening.strip() or opening not in text or not text.endswith(form.after):
        return None
    end = len(text) - len(form.after)
    return (
        UserTurn(text[:start], text[start:end], form.after, form.separator)
        if start <= end
        else None
    )


def write_turns(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, str]], *, asks: bool = True
) -> str:
    """Return the text of a conversation in the chat template.

    Args:
        tokenizer: Its chat template is used.
        turns: Turns, each with `role` and `content`.
        asks: Whether the assistant is about to answer.

    Raises:
        BadConfig (CG502): there is no chat template, or it refuses the turns.
    """
    from jinja2 import TemplateError

    if not has_chat_template(tokenizer):
        raise BadConfig(
            "the tokenizer has no chat template.",
            hint="Ask without `chat` (--no-chat), or load a model tuned for conversation.",
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(turn) for turn in turns], tokenize=False, add_generation_prompt=asks
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise _refuse(f"refuses these turns ({error})") from error
    return str(text)


def _refuse(reason: str) -> BadConfig:
    return BadConfig(
        f"the chat template {reason}.",
        hint="Ask without `chat` (--no-chat), or mend `tokenizer.chat_template`.",
    )
