"""The one thread that owns a model: it takes requests in turns and switches patches between them.

Answers of one served model are generated together, in small batches that take one step after the
other; answers of several take turns, so that a long answer of one keeps no other from beginning.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar
from weakref import WeakKeyDictionary

from corrigenda.errors import CorrigendaError
from corrigenda.lm.model import LanguageModel
from corrigenda.serving.batch import AnswerBatch
from corrigenda.serving.jobs import AnswerFailure, AnswerJob, ServedModel
from corrigenda.serving.preparation import prepare
from corrigenda.serving.refusals import Refusal, stopping, too_busy
from corrigenda.serving.settings import Limits
from corrigenda.serving.switch import PatchSwitch

_LOG = logging.getLogger(__name__)

# A turn lasts so long while others wait, and longer where switching is slow: a fifth of the time
# at most goes into it.
_TURN_SECONDS = 0.2
_SWITCHES_A_TURN = 4

Result = TypeVar("Result")


class Scheduler:
    """Generates answers for several served models on one set of weights, in its own thread.

    Attributes:
        num_tokens: New tokens so far, by name of the served model.
        switch: The patches that are applied; belongs to the thread.
    """

    def __init__(self, lm: LanguageModel, limits: Limits, *, force: bool = False) -> None:
        """Prepare for a model; `start` begins."""
        self._lm, self._limits = lm, limits
        self.switch = PatchSwitch(lm, force=force)
        self.num_tokens: dict[str, int] = {}
        self._waiting: dict[ServedModel, deque[AnswerJob]] = {}
        self._running: dict[ServedModel, list[AnswerBatch]] = {}
        self._calls: deque[Callable[[Refusal | None], None]] = deque()
        self._last_turns: WeakKeyDictionary[ServedModel, int] = WeakKeyDictionary()
        self._num_turns = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="corrigenda-model", daemon=True)

    def start(self) -> None:
        """Begin to take requests."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether answers are being generated or would be."""
        return self._thread.is_alive() and not self._closing

    @property
    def num_waiting(self) -> int:
        """Answers that have not begun."""
        with self._changed:
            return sum(len(jobs) for jobs in self._waiting.values())

    @property
    def num_running(self) -> int:
        """Answers that have begun and not ended."""
        with self._changed:
            return sum(len(one.answers) for own in self._running.values() for one in own)

    def submit(self, jobs: Sequence[AnswerJob]) -> None:
        """Let jobs wait for their turn; all of them or none.

        Raises:
            Refusal: too many wait already (429), or the server is shutting down (503).
        """
        with self._changed:
            if self._closing:
                raise stopping()
            waiting = sum(len(own) for own in self._waiting.values())
            if waiting + len(jobs) > self._limits.max_waiting:
                raise too_busy(waiting, self._limits.max_waiting)
            for job in jobs:
                self._waiting.setdefault(job.model, deque()).append(job)
            self._changed.notify()

    def cancel(self, jobs: Sequence[AnswerJob]) -> None:
        """Stop the generation of jobs; those that have ended already are left alone."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            gone = set(map(id, jobs))
            for model in {job.model for job in jobs} & self._waiting.keys():
                left = deque(one for one in self._waiting[model] if id(one) not in gone)
                self._waiting[model] = left

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Run a function on the thread that owns the model, between two steps."""
        future: Future[Result] = Future()

        def run(refusal: Refusal | None) -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if refusal is not None:
                    raise refusal
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        with self._changed:
            if self._closing:
                raise stopping()
            self._calls.append(run)
            self._changed.notify()
        return future

    def check(self, model: ServedModel) -> Future[None]:
        """Put the patches of a model on once, so that what is wrong with them shows now."""
        return self.call(lambda: self.switch.to(model))

    def close(self, *, timeout: float = 30.0) -> None:
        """End the thread: answers are broken off, and all patches taken off."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is None:
            self.switch.close()
        else:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while self._take_turn():
                pass
        finally:
            self._stop()

    def _take_turn(self) -> bool:
        """Run one turn of one served model, or wait; return whether to continue."""
        with self._changed:
            while not (self._closing or self._calls or self._with_work()):
                self._changed.wait()
            if self._closing:
                return False
            calls = [*self._calls]
            self._calls.clear()
        for call in calls:
            call(None)
        with self._changed:
            models = self._with_work()
        if models:
            self._serve(models[0])
        return True

    def _with_work(self) -> list[ServedModel]:
        """Return the models that have work, the one whose last turn is longest ago first."""
        models = list(dict.fromkeys([*self._running, *self._waiting]))
        busy = [one for one in models if self._running.get(one) or self._waiting.get(one)]
        return sorted(busy, key=lambda one: self._last_turns.get(one, 0))

    def _serve(self, model: ServedModel) -> None:
        """Let one model answer until it is done, or its turn is over and others wait."""
        self._num_turns += 1
        self._last_turns[model] = self._num_turns
        try:
            self.switch.to(model)
        except CorrigendaError as error:
            self._fail_all(model, error)
            return
        turn = max(_TURN_SECONDS, _SWITCHES_A_TURN * self.switch.seconds)
        end = time.monotonic() + turn
        while True:
            self._admit(model)
            self._step(model)
            with self._changed:
                if not (self._running.get(model) or self._waiting.get(model)):
                    self._running.pop(model, None)
                    self._waiting.pop(model, None)
                    return
                others = len(self._with_work()) > 1
                if self._closing or self._calls or (others and time.monotonic() >= end):
                    return

    def _admit(self, model: ServedModel) -> None:
        """Begin answers that wait, as many as may run together."""
        with self._changed:
            waiting = self._waiting.get(model, deque[AnswerJob]())
            running = self._running.setdefault(model, [])
            room = self._limits.max_rows - sum(len(batch.answers) for batch in running)
            jobs = [waiting.popleft() for _ in range(min(room, len(waiting)))]
        if not jobs:
            return
        try:
            found = prepare(self._lm, jobs, self.switch.application)
        except Exception as error:
            _LOG.exception("answers could not begin")
            for job in jobs:
                job.emit(AnswerFailure(error))
            return
        with self._changed:
            running += found

    def _step(self, model: ServedModel) -> None:
        """Add a token to every answer of a model that has begun."""
        for batch in self._running[model]:
            try:
                if batch.application != self.switch.application:
                    batch.application = self.switch.application
                    if self.switch.works_at_run_time:
                        batch.read_again()
                added = batch.step()
            except Exception as error:
                _LOG.exception("a batch of %d answers failed", len(batch.answers))
                batch.fail(error)
            else:
                self.num_tokens[model.name] = self.num_tokens.get(model.name, 0) + added
        with self._changed:
            self._running[model] = [batch for batch in self._running[model] if batch.answers]

    def _fail_all(self, model: ServedModel, error: Exception) -> None:
        with self._changed:
            batches = self._running.pop(model, [])
            jobs = self._waiting.pop(model, deque[AnswerJob]())
        for batch in batches:
            batch.fail(error)
        for job in jobs:
            job.emit(AnswerFailure(error))

    def _stop(self) -> None:
        with self._changed:
            self._closing = True
            calls = [*self._calls]
            models = list(dict.fromkeys([*self._running, *self._waiting]))
        for call in calls:
            call(stopping())
        for model in models:
            self._fail_all(model, stopping())
        self.switch.close()
