"""From what is asked to batches of token rows, with the patches that rewrite or answer."""

from __future__ import annotations

from collections.abc import Sequence

from corrigenda.errors import CorrigendaError
from corrigenda.lm.decoding import encode_chat, encode_prompts
from corrigenda.lm.interception import answer_directly, ask_rewritten
from corrigenda.lm.kv_cache import Decoder, batches
from corrigenda.lm.model import LanguageModel
from corrigenda.serving.batch import AnswerBatch, GrowingAnswer
from corrigenda.serving.jobs import AnswerFailure, AnswerJob, Asked


def prepare(lm: LanguageModel, jobs: Sequence[AnswerJob], application: int) -> list[AnswerBatch]:
    """Return the batches that answer jobs, with the patches that are active on the model.

    Jobs that a patch answers in the model's place are answered at once; those that cannot be
    answered, such as one with too long a prompt, fail by themselves.
    """
    fitting: list[AnswerJob] = []
    for job in jobs:
        try:
            encode_asked(lm, job.asked, job.asked.text)
        except CorrigendaError as error:
            job.emit(AnswerFailure(error))
        else:
            fitting.append(job)
    if not fitting:
        return []
    try:
        return _prepare(lm, fitting, application)
    except CorrigendaError as error:
        if len(fitting) == 1:
            fitting[0].emit(AnswerFailure(error))
            return []
    return [batch for job in fitting for batch in prepare(lm, [job], application)]


def encode_asked(lm: LanguageModel, asked: Asked, text: str) -> list[int]:
    """Return the token ids of what is asked, with a text in the place of its own.

    Raises:
        PromptTooLong (CG105): it exceeds the context.
        BadConfig (CG502): a conversation, and the model has no chat template, or it refuses.
    """
    if asked.before is None:
        return encode_prompts(lm, [text], chat=False)[0]
    return encode_chat(lm, [*asked.before, {"role": "user", "content": text}, *asked.after])


def _prepare(lm: LanguageModel, jobs: Sequence[AnswerJob], application: int) -> list[AnswerBatch]:
    answers = answer_directly(lm, [job.asked.text for job in jobs])
    found: list[AnswerBatch] = []
    left = [job for job, text in zip(jobs, answers, strict=True) if text is None]

    def ask(model: LanguageModel, places: list[int], texts: list[str]) -> list[None]:
        decode = Decoder(model)
        growing = [
            GrowingAnswer(left[place], encode_asked(model, left[place].asked, text), decode)
            for place, text in zip(places, texts, strict=True)
        ]
        for batch in batches(model, [len(answer.prompt) for answer in growing], None):
            rows = [growing[place] for place in batch]
            found.append(AnswerBatch(model, rows, application=application))
        return [None] * len(places)

    ask_rewritten(lm, [job.asked.text for job in left], ask)
    for job, text in zip(jobs, answers, strict=True):
        if text is not None:
            _give(lm, job, text)
    return found


def _give(lm: LanguageModel, job: AnswerJob, text: str) -> None:
    """Emit an answer that a patch gives in the model's place, within the limits of the job."""
    asked = job.asked
    given = text if asked.is_chat else f" {text}"
    tokens: list[int] = lm.tokenizer(given, add_special_tokens=False).input_ids
    answer = GrowingAnswer(job, encode_asked(lm, asked, asked.text), Decoder(lm))
    # The context is not what bounds it: the model reads nothing of it.
    room = len(answer.prompt) + len(tokens)
    if all(answer.add(token, room=room) for token in tokens):
        answer.end()
