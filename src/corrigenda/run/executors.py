"""Who does the work: this process, or Ray workers on any number of machines.

Units depend on nothing but the unedited model, so it does not matter who does which, in what order,
or how often: rows are the same.
"""

from __future__ import annotations

# Ray has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
import importlib
import importlib.util
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch

from corrigenda.errors import BadConfig, MissingExtra, did_you_mean
from corrigenda.lm.model import LanguageModel
from corrigenda.progress import Progress
from corrigenda.run.plan import Block, Unit
from corrigenda.run.prober import Answer
from corrigenda.run.row_builder import Before
from corrigenda.run.spec import RunSpec
from corrigenda.run.store import Part
from corrigenda.run.worker import Worker

if TYPE_CHECKING:
    from types import ModuleType

NAMES = ("local", "ray")
"""Names for `executor`."""

Result = TypeVar("Result")


class Job(NamedTuple):
    """What every worker of a run knows.

    Attributes:
        spec: The run.
        run: Its id.
        base: Digest of the unedited model.
        batch_tokens: Most tokens in one batch of questions; None takes what suits the device.
        progress: Called with (stage, done, total) while a method is fitted in this process.
    """

    spec: RunSpec
    run: str
    base: str
    batch_tokens: int | None = None
    progress: Progress | None = None


class Executor(Protocol):
    """Does the work of a run; results come in any order."""

    def answers(self, job: Job, blocks: Sequence[Block]) -> Iterator[tuple[Block, list[Answer]]]:
        """Ask the unedited model."""
        ...

    def parts(
        self,
        job: Job,
        units: Sequence[Unit],
        before: Callable[[Unit], Before],
        done: Collection[str],
    ) -> Generator[Part, None, None]:
        """Do units, as far as their parts are not done."""
        ...


def executor(name: str, *, workers: int | None = None) -> Executor:
    """Make an executor.

    Args:
        name: "local", or "ray".
        workers: Number of Ray workers; None takes one for each GPU, else for each CPU.

    Raises:
        BadConfig (CG502): no executor by that name.
        MissingExtra (CG504): Ray is not installed.
    """
    if name == "local":
        return Local()
    if name == "ray":
        return Ray(workers)
    raise BadConfig(f'no executor "{name}".', hint=did_you_mean(name, NAMES))


def load_model(spec: RunSpec) -> LanguageModel:
    """The model of a run.

    Raises:
        UnknownModel (CG301): no such model.
        BadConfig (CG502): the device cannot be used.
    """
    try:
        torch.empty(0, device=spec.device)
    except (RuntimeError, AssertionError) as error:
        raise BadConfig(f'device "{spec.device}" cannot be used here: {error}') from error
    dtype = None if spec.dtype is None else getattr(torch, spec.dtype)
    return LanguageModel.load(spec.model, dtype=dtype, device=spec.device)


class Local:
    """Everything in this process, one after the other; the model is loaded when it is needed."""

    def __init__(self, lm: LanguageModel | None = None) -> None:
        """Work on a model in memory; None loads that of the run."""
        self._given = lm is not None
        self._lm = lm
        self._loaded: tuple[str, str | None, str] | None = None
        self._worker: tuple[Job, Worker] | None = None

    def model(self, spec: RunSpec) -> LanguageModel:
        """The model in memory, else that of the run."""
        wanted = (spec.model, spec.dtype, spec.device)
        if self._lm is None or not (self._given or self._loaded == wanted):
            self._lm = None
            self._lm = load_model(spec)
            self._loaded = wanted
        return self._lm

    def answers(self, job: Job, blocks: Sequence[Block]) -> Iterator[tuple[Block, list[Answer]]]:
        """Ask the unedited model."""
        for block in blocks:
            yield block, self._of(job).before(block)

    def parts(
        self,
        job: Job,
        units: Sequence[Unit],
        before: Callable[[Unit], Before],
        done: Collection[str],
    ) -> Generator[Part, None, None]:
        """Do units, as far as their parts are not done."""
        for unit in units:
            yield from self._of(job).work(unit, before(unit), done)

    def _of(self, job: Job) -> Worker:
        if self._worker is None or self._worker[0] != job:
            self._worker = (job, _worker(job, self.model(job.spec)))
        return self._worker[1]


class Ray:
    """Workers of a Ray cluster, each with a model of its own."""

    def __init__(self, workers: int | None = None) -> None:
        """Join the cluster of the environment, or start one on this machine.

        Args:
            workers: How many; None takes one for each GPU, else for each CPU.

        Raises:
            MissingExtra (CG504): Ray is not installed.
        """
        self._ray = _ray()
        if not self._ray.is_initialized():
            self._ray.init(log_to_driver=False, include_dashboard=False, num_cpus=workers)
        have = self._ray.cluster_resources()
        self._gpus = int(have.get("GPU", 0))
        self._count = workers or self._gpus or max(1, int(have.get("CPU", 1)))
        self._actors: list[Any] = []
        self._job: Job | None = None

    def answers(self, job: Job, blocks: Sequence[Block]) -> Iterator[tuple[Block, list[Answer]]]:
        """Ask the unedited model."""
        calls = [
            lambda actor, block=block: actor.before.remote(block)  # type: ignore[misc]  # of Ray
            for block in blocks
        ]
        for number, answers in self._each(job, calls):
            yield blocks[number], answers

    def parts(
        self,
        job: Job,
        units: Sequence[Unit],
        before: Callable[[Unit], Before],
        done: Collection[str],
    ) -> Generator[Part, None, None]:
        """Do units, as far as their parts are not done."""
        wanted = [unit for unit in units if not set(unit.parts) <= set(done)]
        calls = [
            lambda actor, unit=unit: actor.work.remote(  # type: ignore[misc]  # of Ray
                unit, before(unit), frozenset(done) & set(unit.parts)
            )
            for unit in wanted
        ]
        for _, parts in self._each(job, calls):
            yield from parts

    def _each(self, job: Job, calls: Sequence[Callable[[Any], Any]]) -> Iterator[tuple[int, Any]]:
        """Give every idle worker the next call; results as they come, with the call's number."""
        idle = list(self._of(job)) if calls else []
        running: dict[Any, tuple[int, Any]] = {}
        waiting = list(enumerate(calls))[::-1]
        while waiting or running:
            while waiting and idle:
                number, call = waiting.pop()
                actor = idle.pop()
                running[call(actor)] = (number, actor)
            (finished,), _ = self._ray.wait(list(running), num_returns=1)
            number, actor = running.pop(finished)
            idle.append(actor)
            yield number, self._ray.get(finished)

    def _of(self, job: Job) -> list[Any]:
        job = job._replace(progress=None)
        if self._job != job:
            for actor in self._actors:
                self._ray.kill(actor)
            share = 1.0 if self._gpus and job.spec.device.startswith("cuda") else 0.0
            kind = self._ray.remote(num_cpus=1, num_gpus=share)(_Actor)
            self._actors = [kind.remote(job, torch.get_num_threads()) for _ in range(self._count)]
            self._job = job
        return self._actors


class _Actor:
    """What lives in a Ray worker."""

    def __init__(self, job: Job, threads: int) -> None:
        # As many as where the run was started, so that sums are formed in the same order.
        torch.set_num_threads(threads)
        self._worker = _worker(job, load_model(job.spec))

    def before(self, block: Block) -> list[Answer]:
        """Ask the unedited model."""
        return self._worker.before(block)

    def work(self, unit: Unit, before: Before, done: Collection[str]) -> list[Part]:
        """Do a unit."""
        return list(self._worker.work(unit, before, done))


def _worker(job: Job, lm: LanguageModel) -> Worker:
    return Worker(
        job.spec,
        lm,
        job.run,
        base=job.base,
        progress=job.progress,
        batch_tokens=job.batch_tokens,
    )


def _ray() -> ModuleType:
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra(
            "the executor ray needs Ray.", hint="Install it: pip install 'corrigenda[ray]'."
        )
    return importlib.import_module("ray")
