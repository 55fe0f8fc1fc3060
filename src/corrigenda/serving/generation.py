"""From a checked request to its answers: jobs for the model's thread, and the reply they make."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from corrigenda.serving.jobs import (
    AnswerEnd,
    AnswerEvent,
    AnswerFailure,
    AnswerJob,
    AnswerPiece,
    Asked,
    ServedModel,
)
from corrigenda.serving.refusals import Refusal, refusal_of
from corrigenda.serving.replies import DONE, ReplyForm, WholeAnswer, to_event
from corrigenda.serving.requests import ChatRequest, CompletionRequest, GenerationRequest
from corrigenda.serving.scheduler import Scheduler
from corrigenda.serving.settings import Limits

_COMPLETION_TOKENS = 16
_CHAT_TOKENS = 512
# For logs and proxies; no client sees it.
_CLIENT_LEFT = 499

_Told = tuple[int, AnswerPiece | AnswerEnd]


def asked_by(request: CompletionRequest | ChatRequest, limits: Limits) -> list[Asked]:
    """Return what each answer to a request is to be given to.

    Raises:
        Refusal: it asks for more tokens or answers than the limits allow (400).
    """
    is_chat = isinstance(request, ChatRequest)
    chosen = request.max_tokens
    if is_chat and request.max_completion_tokens is not None:
        chosen = request.max_completion_tokens
    if chosen is not None and chosen > limits.max_tokens:
        raise Refusal(
            400,
            f"{chosen} new tokens are more than the {limits.max_tokens} that this server allows.",
            param="max_tokens",
            code="max_tokens_exceeded",
        )
    usual = _CHAT_TOKENS if is_chat else _COMPLETION_TOKENS
    max_tokens = chosen or min(usual, limits.max_tokens)
    seed = secrets.randbits(63) if request.seed is None else request.seed
    asked: list[Asked] = []
    for text, before, after, num_top in _texts(request):
        asked += [
            Asked(
                text=text,
                before=before,
                after=after,
                max_tokens=max_tokens,
                stop=request.stop,
                temperature=request.temperature,
                top_p=request.top_p,
                seed=seed,
                number=number,
                num_top=num_top,
            )
            for number in range(1, request.n + 1)
        ]
    if len(asked) > limits.max_waiting:
        raise Refusal(
            400,
            f"{len(asked)} answers in one request are more than {limits.max_waiting}.",
            param="n",
            code="too_many_answers",
        )
    return asked


Turns = tuple[dict[str, str], ...]


def _texts(
    request: CompletionRequest | ChatRequest,
) -> list[tuple[str, Turns | None, Turns, int | None]]:
    """Return text, turns before and after it, and how many likeliest tokens are reported."""
    if isinstance(request, CompletionRequest):
        return [(prompt, None, (), request.logprobs) for prompt in request.prompt]
    turns = [message.to_turn() for message in request.messages]
    last = max(place for place, turn in enumerate(turns) if turn["role"] == "user")
    num_top = (request.top_logprobs or 0) if request.logprobs else None
    return [(turns[last]["content"], tuple(turns[:last]), tuple(turns[last + 1 :]), num_top)]


async def answer(
    request: Request,
    asked: CompletionRequest | ChatRequest,
    model: ServedModel,
    scheduler: Scheduler,
    limits: Limits,
) -> Response:
    """Return the reply to a request, whole or as a stream.

    Where the client goes away, generation stops.

    Raises:
        Refusal: the limits do not allow it, or the answer failed before it began.
        CorrigendaError: of its kinds, such as PromptTooLong (CG105).
    """
    exchange = _Exchange(request, model, asked_by(asked, limits), scheduler)
    form = _form_of(asked, model)
    exchange.submit()
    try:
        # What fails at once, such as too long a prompt, is told by the status of a stream, too.
        first = await exchange.first() if asked.stream else await exchange.all()
    except BaseException:
        exchange.cancel()
        raise
    if exchange.is_left:
        return Response(status_code=_CLIENT_LEFT)
    if first is None:
        return JSONResponse(form.whole(exchange.answers))
    return _StreamedReply(exchange, form, first)


class _StreamedReply(StreamingResponse):
    """A stream of events; however it ends, generation stops."""

    def __init__(self, exchange: _Exchange, form: ReplyForm, first: _Told) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(
            _stream(exchange, form, first), media_type="text/event-stream", headers=headers
        )
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._exchange.cancel()


async def _stream(exchange: _Exchange, form: ReplyForm, first: _Told) -> AsyncIterator[str]:
    offsets = [0] * len(exchange.answers)

    def to_text(told: _Told) -> str:
        index, event = told
        text = form.event(index, event, offsets[index])
        if isinstance(event, AnswerPiece):
            offsets[index] += len(event.text)
        return text

    for index in range(len(exchange.answers)):
        if opening := form.opening(index):
            yield opening
    yield to_text(first)
    try:
        async with exchange.watched():
            async for told in exchange.events():
                yield to_text(told)
    except Exception as error:
        yield to_event(refusal_of(error).to_json()) + DONE
        return
    yield form.closing(exchange.answers)


def _form_of(asked: GenerationRequest, model: ServedModel) -> ReplyForm:
    is_chat = isinstance(asked, ChatRequest)
    digests = "-".join(patch.digest()[:12] for patch in model.patches)
    reported = asked.logprobs if isinstance(asked, CompletionRequest | ChatRequest) else None
    options = asked.stream_options
    return ReplyForm(
        id=f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}",
        model=model.name,
        created=int(time.time()),
        is_chat=is_chat,
        fingerprint=digests or "unedited",
        with_reports=reported is not None and reported is not False,
        with_usage=options is not None and options.include_usage,
        num_choices=asked.n,
    )


class _Exchange:
    """The answers to one request, on the way from the model's thread to the client."""

    def __init__(
        self, request: Request, model: ServedModel, asked: Sequence[Asked], scheduler: Scheduler
    ) -> None:
        self._request, self._scheduler = request, scheduler
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, AnswerEvent] | None] = asyncio.Queue()
        self._jobs = [
            AnswerJob(model, one, self._emitter(index)) for index, one in enumerate(asked)
        ]
        self.answers = [WholeAnswer() for _ in asked]
        self.is_left = False

    def submit(self) -> None:
        self._scheduler.submit(self._jobs)

    def cancel(self) -> None:
        self._scheduler.cancel(self._jobs)

    @asynccontextmanager
    async def watched(self) -> AsyncGenerator[None]:
        """Stop generation where the client goes away."""
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()

    async def first(self) -> _Told | None:
        """Return the first event; None where the client has gone."""
        async with self.watched():
            async for told in self.events():
                return told
        return None

    async def all(self) -> None:
        """Wait until all answers have ended, or the client has gone."""
        async with self.watched():
            async for _ in self.events():
                pass

    async def events(self) -> AsyncIterator[_Told]:
        """Yield events as they come, until all answers have ended or the client has gone."""
        while any(answer.end is None for answer in self.answers):
            found = await self._events.get()
            if found is None:
                return
            index, event = found
            if isinstance(event, AnswerFailure):
                raise event.error
            self.answers[index].add(event)
            yield index, event

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.is_left = True
        self.cancel()
        self._events.put_nowait(None)

    def _emitter(self, index: int) -> Callable[[AnswerEvent], None]:
        def emit(event: AnswerEvent) -> None:
            # A loop that is closed has no client to tell.
            try:
                self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
            except RuntimeError:
                return

        return emit
