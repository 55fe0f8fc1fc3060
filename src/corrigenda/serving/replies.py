"""Replies in the form of OpenAI's: whole ones, and the events of a stream."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from corrigenda.serving.jobs import AnswerEnd, AnswerPiece, TokenReport

DONE = "data: [DONE]\n\n"


@dataclass
class WholeAnswer:
    """An answer as far as it has come.

    Attributes:
        pieces: Its pieces of text.
        reports: Of its tokens, where asked for.
        end: Its end, once it has come.
    """

    pieces: list[str] = field(default_factory=list)
    reports: list[TokenReport] = field(default_factory=list)
    end: AnswerEnd | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.pieces)

    def add(self, event: AnswerPiece | AnswerEnd) -> None:
        """Add a piece, or the end."""
        if isinstance(event, AnswerEnd):
            self.end = event
        else:
            self.pieces.append(event.text)
            self.reports += event.reports


@dataclass(frozen=True)
class ReplyForm:
    """The form of the replies to one request.

    Attributes:
        id: Name of the reply.
        model: Name of the served model.
        created: Seconds since 1970.
        is_chat: Whether it is a chat completion.
        fingerprint: Which weights and patches answer.
        with_reports: Whether log-probabilities are reported.
        with_usage: Whether a stream ends with the numbers of tokens.
        num_choices: How many answers there are to each prompt.
    """

    id: str
    model: str
    created: int
    is_chat: bool
    fingerprint: str
    with_reports: bool
    with_usage: bool
    num_choices: int

    def whole(self, answers: Sequence[WholeAnswer]) -> dict[str, object]:
        """Return the reply to a request that is no stream."""
        return self._frame(streamed=False) | {
            "choices": [self._choice(index, answer) for index, answer in enumerate(answers)],
            "usage": self._usage(answers),
        }

    def opening(self, index: int) -> str:
        """Return the first event of an answer in a stream; empty for completions."""
        if not self.is_chat:
            return ""
        return self._event(index, {"delta": {"role": "assistant", "content": ""}}, None)

    def event(self, index: int, event: AnswerPiece | AnswerEnd, offset: int) -> str:
        """Return an event of a stream.

        Args:
            index: Which answer it belongs to.
            event: A piece of it, or its end.
            offset: Characters of the answer before the piece.
        """
        if isinstance(event, AnswerEnd):
            return self._event(index, {"delta": {}} if self.is_chat else {"text": ""}, event.reason)
        text = {"delta": {"content": event.text}} if self.is_chat else {"text": event.text}
        return self._event(index, text | self._reports(event.reports, offset), None)

    def closing(self, answers: Sequence[WholeAnswer]) -> str:
        """Return the last events of a stream."""
        if not self.with_usage:
            return DONE
        usage = {"choices": [], "usage": self._usage(answers)}
        return to_event(self._frame(streamed=True) | usage) + DONE

    def _frame(self, *, streamed: bool) -> dict[str, object]:
        if self.is_chat:
            kind = "chat.completion.chunk" if streamed else "chat.completion"
        else:
            kind = "text_completion"
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _event(self, index: int, content: dict[str, object], reason: str | None) -> str:
        choice = {"index": index, "logprobs": None, "finish_reason": reason} | content
        usage: dict[str, object] = {"usage": None} if self.with_usage else {}
        return to_event(self._frame(streamed=True) | {"choices": [choice]} | usage)

    def _choice(self, index: int, answer: WholeAnswer) -> dict[str, object]:
        assert answer.end is not None, "the answer has ended"
        content: dict[str, object] = (
            {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
            if self.is_chat
            else {"text": answer.text}
        )
        return {
            "index": index,
            "finish_reason": answer.end.reason,
            "logprobs": None,
            **content,
            **self._reports(answer.reports, 0),
        }

    def _usage(self, answers: Sequence[WholeAnswer]) -> dict[str, int]:
        """Count tokens; a prompt with several answers counts once."""
        ends = [answer.end for answer in answers if answer.end is not None]
        read = sum(end.num_prompt for end in ends[:: self.num_choices])
        added = sum(end.num_new for end in ends)
        return {"prompt_tokens": read, "completion_tokens": added, "total_tokens": read + added}

    def _reports(self, reports: Sequence[TokenReport], offset: int) -> dict[str, object]:
        if not self.with_reports:
            return {}
        if self.is_chat:
            tokens = [
                _token(one.text, one.chances.chosen)
                | {"top_logprobs": [_token(text, value) for text, value in one.top]}
                for one in reports
            ]
            return {"logprobs": {"content": tokens, "refusal": None}}
        offsets: list[int] = []
        for one in reports:
            offsets.append(offset)
            offset += len(one.text)
        return {
            "logprobs": {
                "tokens": [one.text for one in reports],
                "token_logprobs": [one.chances.chosen for one in reports],
                "top_logprobs": [dict(one.top) for one in reports],
                "text_offset": offsets,
            }
        }


def to_event(data: object) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _token(text: str, log_prob: float) -> dict[str, object]:
    known = "\ufffd" not in text
    return {
        "token": text,
        "logprob": log_prob,
        "bytes": list(text.encode()) if known else None,
    }
