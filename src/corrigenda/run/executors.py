"""Where units run: in this process, or on Ray workers of any number of machines.

Units depend on the unedited model alone, so rows are the same wherever, in whatever order and
however often they are done.
"""

from __future__ import annotations

# Ray has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
import importlib
import importlib.util
import os
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from corrigenda.errors import BadConfig, MissingExtra, did_you_mean
from corrigenda.lm.model import LanguageModel
from corrigenda.progress import Progress
from corrigenda.run.plan import QueryBlock, Unit
from corrigenda.run.queries import Answer
from corrigenda.run.row_builder import BaselineAnswers
from corrigenda.run.spec import RunSpec
from corrigenda.run.store import RunPart
from corrigenda.run.worker import Worker

if TYPE_CHECKING:
    from types import ModuleType

NAMES = ("local", "ray")
"""Names for `executor`."""

# How often a worker is started again, and how long the cluster may take to make room.
_RESTARTS, _RESERVING_SECONDS = 3, 300.0
# Of a cluster that is started here; units and answers are small.
_OWN_CLUSTER = {"include_dashboard": False, "object_store_memory": 256 << 20}


class RunJob(NamedTuple):
    """What every worker of a run is given.

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
    """Runs the units of a run; results come in any order."""

    def ask_unedited(
        self, job: RunJob, blocks: Sequence[QueryBlock]
    ) -> Iterator[tuple[QueryBlock, list[Answer]]]:
        """Ask the unedited model, block by block."""
        ...

    def run_units(
        self,
        job: RunJob,
        units: Sequence[Unit],
        baseline: Callable[[Unit], BaselineAnswers],
        done: Collection[str],
    ) -> Generator[RunPart, None, None]:
        """Do units, as far as their parts are not recorded."""
        ...


def make_executor(name: str, *, workers: int | None = None) -> Executor:
    """Return an executor by its name.

    Args:
        name: "local", or "ray".
        workers: Number of Ray workers; None takes one for each GPU, else for each CPU.

    Raises:
        BadConfig (CG502): no executor by that name.
        MissingExtra (CG504): Ray is not installed.
    """
    if name == "local":
        return LocalExecutor()
    if name == "ray":
        return RayExecutor(workers)
    raise BadConfig(f'no executor "{name}".', hint=did_you_mean(name, NAMES))


def load_model(spec: RunSpec) -> LanguageModel:
    """Load the model of a run.

    Raises:
        UnknownModel (CG301): no such model.
        BadConfig (CG502): the device cannot be used.
    """
    spread = spec.device == "auto"
    try:
        torch.empty(0, device="cpu" if spread else spec.device)
    except (RuntimeError, AssertionError) as error:
        raise BadConfig(f'device "{spec.device}" cannot be used here: {error}') from error
    dtype = None if spec.dtype is None else getattr(torch, spec.dtype)
    return LanguageModel.load(
        spec.model,
        dtype=dtype,
        device="cpu" if spread else spec.device,
        device_map="auto" if spread else None,
        quantization_config=spec.quantization,
        attn_implementation=spec.attention,
    )


def name_loading(spec: RunSpec) -> tuple[str | None, ...]:
    """Return all that decides which model a run loads, and how."""
    return spec.model, spec.dtype, spec.device, spec.quantization, spec.attention


class LocalExecutor:
    """Runs units in this process, one after the other; the model is loaded when it is needed."""

    def __init__(self, lm: LanguageModel | None = None) -> None:
        """Bind to a model in memory; None loads that of the run."""
        self._given = lm is not None
        self._lm = lm
        self._loaded: tuple[str | None, ...] | None = None
        self._worker: tuple[RunJob, Worker] | None = None

    def model(self, spec: RunSpec) -> LanguageModel:
        """Return the model in memory, else that of the run."""
        wanted = name_loading(spec)
        if self._lm is None or not (self._given or self._loaded == wanted):
            self._lm = None
            self._lm = load_model(spec)
            self._loaded = wanted
        return self._lm

    def ask_unedited(
        self, job: RunJob, blocks: Sequence[QueryBlock]
    ) -> Iterator[tuple[QueryBlock, list[Answer]]]:
        """Ask the unedited model."""
        for block in blocks:
            yield block, self._find_worker(job).ask_unedited(block)

    def run_units(
        self,
        job: RunJob,
        units: Sequence[Unit],
        baseline: Callable[[Unit], BaselineAnswers],
        done: Collection[str],
    ) -> Generator[RunPart, None, None]:
        """Do units, as far as their parts are not recorded."""
        for unit in units:
            yield from self._find_worker(job).run_unit(unit, baseline(unit), done)

    def _find_worker(self, job: RunJob) -> Worker:
        if self._worker is None or self._worker[0] != job:
            self._worker = (job, _make_worker(job, self.model(job.spec)))
        return self._worker[1]


class RayExecutor:
    """Runs units on workers of a Ray cluster, each with a model of its own.

    A worker loads a model once, for all methods of a recipe. One that is lost, with its process or
    its machine, is started again, also elsewhere, and what it was doing is done again.
    """

    def __init__(self, workers: int | None = None) -> None:
        """Join the cluster of the environment (`RAY_ADDRESS`), or start one on this machine.

        Args:
            workers: How many; None takes one for each GPU, else for each CPU.

        Raises:
            MissingExtra (CG504): Ray is not installed.
        """
        self._ray = _import_ray()
        if not self._ray.is_initialized():
            own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, **_OWN_CLUSTER}
            self._ray.init(log_to_driver=False, **own)
        have = self._ray.cluster_resources()
        self._gpus = int(have.get("GPU", 0))
        self._cpus = int(have.get("CPU", 1))
        self._count = workers or self._gpus or max(1, self._cpus)
        self._actors: list[Any] = []
        self._group: Any = None
        self._share = -1

    def ask_unedited(
        self, job: RunJob, blocks: Sequence[QueryBlock]
    ) -> Iterator[tuple[QueryBlock, list[Answer]]]:
        """Ask the unedited model."""
        sent = self._ray.put(job._replace(progress=None))
        calls = [
            lambda actor, block=block: actor.ask_unedited.remote(sent, block)  # type: ignore[misc]  # of Ray
            for block in blocks
        ]
        for number, answers in self._run_calls(job, calls):
            yield blocks[number], answers

    def run_units(
        self,
        job: RunJob,
        units: Sequence[Unit],
        baseline: Callable[[Unit], BaselineAnswers],
        done: Collection[str],
    ) -> Generator[RunPart, None, None]:
        """Do units, as far as their parts are not recorded."""
        sent = self._ray.put(job._replace(progress=None))
        wanted = [unit for unit in units if not set(unit.parts) <= set(done)]
        calls = [
            lambda actor, unit=unit: actor.run_unit.remote(  # type: ignore[misc]  # of Ray
                sent, unit, baseline(unit), frozenset(done) & set(unit.parts)
            )
            for unit in wanted
        ]
        for _, parts in self._run_calls(job, calls):
            yield from parts

    def processes(self, job: RunJob) -> list[int]:
        """Return the process of each worker, on the machine that it is on."""
        return self._ray.get([actor.process.remote() for actor in self._find_workers(job)])

    def _run_calls(
        self, job: RunJob, calls: Sequence[Callable[[Any], Any]]
    ) -> Iterator[tuple[int, Any]]:
        """Give every idle worker the next call; yield results with the numbers of their calls."""
        idle = list(self._find_workers(job)) if calls else []
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

    def _find_workers(self, job: RunJob) -> list[Any]:
        share = gpu_share(job.spec.device, self._gpus, self._count)
        if self._share != share:
            self._release()
            strategy = self._reserve({"CPU": 1, **({"GPU": share} if share else {})})
            kind = self._ray.remote(
                num_cpus=1,
                num_gpus=share,
                max_restarts=_RESTARTS,
                max_task_retries=_RESTARTS,
                scheduling_strategy=strategy,
            )(_RayWorker)
            self._actors = [kind.remote(torch.get_num_threads()) for _ in range(self._count)]
            self._share = share
        return self._actors

    def _release(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._group is not None:
            importlib.import_module("ray.util.placement_group").remove_placement_group(self._group)
        self._actors, self._group, self._share = [], None, -1

    def _reserve(self, bundle: Mapping[str, int]) -> object:
        """Return the placement of all workers: a bundle of one machine for each.

        Raises:
            BadConfig (CG502): the cluster has no room for them.
        """
        groups = importlib.import_module("ray.util.placement_group")
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        group = groups.placement_group([dict(bundle)] * self._count, strategy="SPREAD")
        if not group.wait(_RESERVING_SECONDS):
            groups.remove_placement_group(group)
            raise BadConfig(
                f"the cluster has no room for {self._count} workers of {dict(bundle)}: "
                f"{self._cpus} CPUs and {self._gpus} GPUs in all.",
                where="executor ray",
                hint="Ask for fewer workers (--workers), or start more machines.",
            )
        self._group = group
        return strategies.PlacementGroupSchedulingStrategy(placement_group=group)


def gpu_share(device: str, gpus: int, workers: int) -> int:
    """Return how many GPUs each worker gets, all on one machine.

    Example:
        >>> [gpu_share(one, 8, 2) for one in ("cpu", "cuda", "auto")]
        [0, 1, 4]
    """
    if device == "auto":
        return gpus // workers
    return 1 if device.startswith("cuda") else 0


class _RayWorker:
    """A worker in a process of Ray; it keeps its model for as long as runs ask for the same."""

    def __init__(self, threads: int) -> None:
        # As many as where the run was started, so that sums are formed in the same order.
        torch.set_num_threads(threads)
        self._loading: tuple[str | None, ...] | None = None
        self._lm: LanguageModel | None = None
        self._worker: tuple[str, Worker] | None = None

    def process(self) -> int:
        """Return the id of this process."""
        return os.getpid()

    def ask_unedited(self, job: RunJob, block: QueryBlock) -> list[Answer]:
        """Ask the unedited model."""
        return self._find_worker(job).ask_unedited(block)

    def run_unit(
        self, job: RunJob, unit: Unit, baseline: BaselineAnswers, done: Collection[str]
    ) -> list[RunPart]:
        """Do a unit."""
        return list(self._find_worker(job).run_unit(unit, baseline, done))

    def _find_worker(self, job: RunJob) -> Worker:
        if self._worker is None or self._worker[0] != job.run:
            if self._lm is None or self._loading != name_loading(job.spec):
                self._lm = self._worker = None
                self._lm = load_model(job.spec)
                self._loading = name_loading(job.spec)
            self._worker = job.run, _make_worker(job, self._lm)
        return self._worker[1]


def _make_worker(job: RunJob, lm: LanguageModel) -> Worker:
    return Worker(
        job.spec,
        lm,
        job.run,
        base=job.base,
        progress=job.progress,
        batch_tokens=job.batch_tokens,
    )


def _import_ray() -> ModuleType:
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra(
            "the executor ray needs Ray.", hint="Install it: pip install 'corrigenda[ray]'."
        )
    return importlib.import_module("ray")
