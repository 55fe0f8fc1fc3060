"""One batch of answers of one model, continued a token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor

from corrigenda.lm.kv_cache import Decoder, RunningRows, end_ids
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sampling import row_generator
from corrigenda.serving.added_text import AddedText
from corrigenda.serving.draws import draw, token_chances
from corrigenda.serving.jobs import (
    AnswerEnd,
    AnswerFailure,
    AnswerJob,
    AnswerPiece,
    StopReason,
    TokenReport,
)


class GrowingAnswer:
    """An answer with its tokens, which emits its pieces as they become certain."""

    def __init__(self, job: AnswerJob, prompt: list[int], decode: Decoder) -> None:
        """Begin an answer to a prompt of given tokens."""
        asked = job.asked
        self.job, self.prompt = job, prompt
        self.new: list[int] = []
        self._decode = decode
        self._text = AddedText(partial(decode, prompt), asked.stop)
        self._reports: list[TokenReport] = []
        self._generator = row_generator(asked.seed, asked.number, asked.text)

    def choose(self, logits: Float[Tensor, " vocab"]) -> int:
        """Return the next token, and note its log-probabilities where they are asked for."""
        asked = self.job.asked
        token = draw(
            logits,
            temperature=asked.temperature,
            top_p=asked.top_p,
            generator=self._generator,
        )
        if asked.num_top is not None:
            chances = token_chances(logits, token, asked.num_top)
            top = tuple((self._text_of(id), value) for id, value in chances.top)
            self._reports.append(TokenReport(self._text_of(token), chances, top))
        return token

    def add(self, token: int, *, room: int) -> bool:
        """Add a token; return whether the answer continues.

        Args:
            token: The token.
            room: Tokens that the context has for prompt and answer.
        """
        self.new.append(token)
        full = len(self.new) >= self.job.asked.max_tokens or (
            len(self.prompt) + len(self.new) > room
        )
        self._emit(self._text.piece(self.new, last=full))
        if self._text.stopped or full:
            self._close("stop" if self._text.stopped else "length")
            return False
        return True

    def end(self) -> None:
        """End the answer at an end-of-sequence token, which is not part of it."""
        if self.job.asked.num_top is not None and len(self._reports) > 0:
            self._reports.pop()
        self._emit(self._text.piece(self.new, last=True))
        self._close("stop")

    def _close(self, reason: StopReason) -> None:
        self.job.emit(AnswerEnd(reason, len(self.prompt), len(self.new)))

    def _emit(self, piece: str) -> None:
        if piece:
            self.job.emit(AnswerPiece(piece, tuple(self._reports)))
            self._reports.clear()

    def _text_of(self, token: int) -> str:
        return self._decode(self.prompt, [token])


class AnswerBatch:
    """Answers that are generated together; those that end or are cancelled leave it.

    Attributes:
        lm: The model that continues: the served one, or another that a patch hands prompts to.
        answers: The answers that continue.
        application: Which application of patches it last ran under.
    """

    def __init__(
        self, lm: LanguageModel, answers: Sequence[GrowingAnswer], *, application: int
    ) -> None:
        """Begin with prompts that are not read yet."""
        self.lm = lm
        self.answers = list(answers)
        self.application = application
        self._running = RunningRows(lm, [answer.prompt for answer in answers])
        self._ends = end_ids(lm)

    def step(self) -> int:
        """Add one token to each answer; return how many tokens were added."""
        logits = self._running.logits()
        chosen = logits.argmax(1).tolist()
        left: list[int] = []
        num_added = 0
        for place, answer in enumerate(self.answers):
            asked = answer.job.asked
            if answer.job.cancelled:
                continue
            if asked.temperature > 0 or asked.num_top is not None:
                chosen[place] = answer.choose(logits[place])
            if chosen[place] in self._ends:
                answer.end()
                continue
            num_added += 1
            if answer.add(chosen[place], room=self.lm.context_length):
                left.append(place)
        self._running.advance(chosen, left)
        self.answers = [self.answers[place] for place in left]
        return num_added

    def read_again(self) -> None:
        """Read prompts and answers anew: what patches noted about them is gone."""
        self._running.read_again()

    def fail(self, error: Exception) -> None:
        """End all answers by an error."""
        for answer in self.answers:
            answer.job.emit(AnswerFailure(error))
        self.answers = []
