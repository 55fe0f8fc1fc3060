"""One training loop for every learned method: same seed, same result, also across interruptions."""

from __future__ import annotations

import hashlib
import math
import random
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from corrigenda.errors import BadConfig, CorruptFile, NewerFormat, NonFinite, WriteFailed
from corrigenda.state import State
from corrigenda.training.job import QUIET, TrainingJob

Stopped = Literal["steps", "patience"]

_NOW, _BEST, _OPTIMISER = "now/", "best/", "optimiser/"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length, batch size, validation and seed of a training.

    Attributes:
        steps: Optimiser steps, at most.
        batch_size: Items that each call of `step` gets.
        accumulate: Calls of `step` whose gradients are averaged into one optimiser step.
        validate_every: Steps between validations; the last step is always validated.
        patience: Stop after so many steps without a better validation; never if None.
        clip: Gradients are scaled down to this norm, all parameters taken together; not if None.
        checkpoint_seconds: Time between checkpoints.
        seed: Seed of everything that is drawn.

    Raises:
        BadConfig (CG502): a number that is not positive.
    """

    steps: int
    batch_size: int = 1
    accumulate: int = 1
    validate_every: int = 100
    patience: int | None = None
    clip: float | None = None
    checkpoint_seconds: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value <= 0 and name not in ("seed", "checkpoint_seconds"):
                raise BadConfig(f"{name} must be positive, got {value}.", where="training")


class Turn(NamedTuple):
    """Input of one call of `step`: its number, its items and a generator.

    Attributes:
        step: Number of the optimiser step, from 0.
        items: Numbers of the items to learn from. All items come up before one comes again.
        chance: Generator for everything else that is drawn. It depends on the seed and the number
            of the call only, and so does the state of torch's generators when `step` begins.
    """

    step: int
    items: tuple[int, ...]
    chance: random.Random


class TrainingReport(NamedTuple):
    """Course of a training in plain values, for notes and metadata.

    Attributes:
        steps: Optimiser steps made.
        best_step: Steps after which the validation was best; the module is restored to it.
        best_loss: Its loss.
        stopped: Why it ended: all "steps" made, or out of "patience".
        skipped: Steps left out since a gradient was infinite or NaN.
        trace: For each validation: `step`, `training_loss` (mean since the one before; absent if
            every step was skipped), and what `validate` returned.
    """

    steps: int
    best_step: int
    best_loss: float
    stopped: Stopped
    skipped: int
    trace: list[dict[str, float]]

    def to_json(self) -> dict[str, JsonValue]:
        """Return plain dictionaries and lists; numbers rounded to six digits."""
        rounded = [{key: float(f"{one:.6g}") for key, one in row.items()} for row in self.trace]
        about = {**self._asdict(), "best_loss": float(f"{self.best_loss:.6g}"), "trace": rounded}
        return cast("dict[str, JsonValue]", about)


def train(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    *,
    num_items: int,
    step: Callable[[Turn], float],
    validate: Callable[[], Mapping[str, float]],
    schedule: Schedule,
    job: TrainingJob = QUIET,
    key: str = "",
) -> TrainingReport:
    """Train a module; when it returns, the module holds what validated best.

    Everything that is learned or counted must be a parameter or a buffer of the module (running
    statistics, multipliers). Between two calls nothing else may change, and then a run that was
    killed and started again with the same arguments ends with the same result, to the bit where the
    machine computes alike.

    Args:
        module: What is trained; in training mode during `step`, in evaluation mode otherwise.
        optimiser: Over parameters of the module; its state is part of the checkpoints.
        num_items: Number of items to learn from.
        step: Adds to the gradients (`.grad`) of the parameters, as `backward` does, and returns a
            loss for the trace.
        validate: Figures of the module as it is. "loss" decides which is best: the lower.
        schedule: How long, how often, which seed.
        job: File for checkpoints, which the caller removes, and progress, reported as ("training",
            steps done, steps in all).
        key: What else the result depends on; a checkpoint with another key is ignored.

    Raises:
        NonFinite (CG201): no validation gave a finite loss.
    """
    run = _TrainingRun(module, optimiser, schedule, num_items, key)
    if job.checkpoint is not None:
        run.resume(job.checkpoint)
    devices = {one.device for one in module.parameters() if one.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(sorted(devices, key=str)))
        saved = time.monotonic()
        while run.stopped is None:
            if job.progress is not None:
                job.progress("training", run.steps, schedule.steps)
            run.advance(step)
            if run.steps % schedule.validate_every == 0 or run.steps == schedule.steps:
                run.judge(validate)
            due = time.monotonic() - saved >= schedule.checkpoint_seconds
            if job.checkpoint is not None and run.stopped is None and due:
                run.save(job.checkpoint)
                saved = time.monotonic()
    if job.progress is not None:
        job.progress("training", schedule.steps, schedule.steps)
    if not run.best:
        raise NonFinite(
            f"the training of {run.steps} steps never reached a finite loss.",
            where=f"{run.skipped} steps had gradients that are infinite or NaN",
            hint="Lower the learning rate, or load the model in float32.",
        )
    module.load_state_dict(run.best)
    module.eval()
    assert run.stopped is not None
    return TrainingReport(
        run.steps, run.best_step, run.best_loss, run.stopped, run.skipped, list(run.trace)
    )


@dataclass
class _TrainingRun:
    """Where a training is; `save` and `resume` carry all of it over."""

    module: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: Schedule
    num_items: int
    key: str
    steps: int = 0
    skipped: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    trace: list[dict[str, float]] = field(default_factory=list)

    @property
    def stopped(self) -> Stopped | None:
        """Why no further step is due; None while one is."""
        if self.steps >= self.schedule.steps:
            return "steps"
        patience = self.schedule.patience
        if patience is not None and self.trace and self.steps - self.best_step >= patience:
            return "patience"
        return None

    def advance(self, step: Callable[[Turn], float]) -> None:
        """Make one optimiser step."""
        schedule = self.schedule
        self.module.train()
        self.optimiser.zero_grad(set_to_none=True)
        losses = []
        for part in range(schedule.accumulate):
            number = self.steps * schedule.accumulate + part
            losses.append(float(step(self._next_turn(number))))
        parameters = [one for one in self.module.parameters() if one.grad is not None]
        gradients = [one.grad for one in parameters if one.grad is not None]
        for gradient in gradients:
            gradient.div_(schedule.accumulate)
        self.steps += 1
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            self.skipped += 1
            return
        if schedule.clip is not None:
            nn.utils.clip_grad_norm_(parameters, schedule.clip)
        self.optimiser.step()
        self.losses.append(sum(losses) / len(losses))

    def _next_turn(self, number: int) -> Turn:
        schedule, count = self.schedule, self.num_items
        first = number * schedule.batch_size
        orders: dict[int, list[int]] = {}
        items = []
        for place in range(first, first + schedule.batch_size):
            epoch, at = divmod(place, count)
            if epoch not in orders:
                orders[epoch] = shuffle_epoch(schedule.seed, epoch, count)
            items.append(orders[epoch][at])
        torch.manual_seed(_seed_from(f"step/{schedule.seed}/{number}"))
        chance = random.Random(f"turn/{schedule.seed}/{number}")
        return Turn(number // schedule.accumulate, tuple(items), chance)

    def judge(self, validate: Callable[[], Mapping[str, float]]) -> None:
        """Validate, and copy the module where it is the best so far."""
        self.module.eval()
        torch.manual_seed(_seed_from(f"validation/{self.schedule.seed}"))
        figures = {name: float(one) for name, one in validate().items()}
        row = {"step": float(self.steps)}
        if self.losses:
            row["training_loss"] = sum(self.losses) / len(self.losses)
        self.losses.clear()
        self.trace.append({**row, **figures})
        if figures["loss"] < self.best_loss:
            self.best_loss, self.best_step = figures["loss"], self.steps
            self.best = _copy_to_cpu(self.module.state_dict())

    def save(self, path: Path) -> None:
        """Write a checkpoint; where that fails, warn and continue without."""
        optimiser = self.optimiser.state_dict()
        tensors = {_NOW + name: one for name, one in self.module.state_dict().items()}
        tensors |= {_BEST + name: one for name, one in self.best.items()}
        for index, moments in optimiser["state"].items():
            tensors |= {f"{_OPTIMISER}{index}/{name}": one for name, one in moments.items()}
        groups: list[JsonValue] = [
            {str(name): one for name, one in group.items() if isinstance(one, int | float)}
            for group in optimiser["param_groups"]
        ]
        meta: dict[str, JsonValue] = {
            "key": self._identity(),
            "steps": self.steps,
            "skipped": self.skipped,
            "best_step": self.best_step,
            "best_loss": self.best_loss,
            "losses": list(self.losses),
            "trace": [dict(row) for row in self.trace],
            "groups": groups,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            State(_copy_to_cpu(tensors), meta).save(path)
        except (OSError, WriteFailed) as error:
            warnings.warn(f"The training has no checkpoint to resume from: {error}", stacklevel=3)

    def resume(self, path: Path) -> None:
        """Resume from a checkpoint where there is an undamaged one of this training."""
        if not path.is_file():
            return
        try:
            state = State.load(path)
        except (CorruptFile, NewerFormat) as error:
            warnings.warn(f"{error.message} The training starts anew.", stacklevel=3)
            return
        if state.meta.get("key") != self._identity():
            return
        meta = cast("dict[str, object]", dict(state.meta))
        self.steps, self.skipped = cast("int", meta["steps"]), cast("int", meta["skipped"])
        self.best_step = cast("int", meta["best_step"])
        self.best_loss = cast("float", meta["best_loss"])
        self.losses = cast("list[float]", meta["losses"])
        self.trace = cast("list[dict[str, float]]", meta["trace"])
        self.best = _select_prefix(state.tensors, _BEST)
        self.module.load_state_dict(_select_prefix(state.tensors, _NOW))
        self._load_optimiser(
            _select_prefix(state.tensors, _OPTIMISER),
            cast("list[dict[str, float]]", meta["groups"]),
        )

    def _load_optimiser(
        self, tensors: Mapping[str, Tensor], groups: list[dict[str, float]]
    ) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, _, kind = name.partition("/")
            state.setdefault(int(index), {})[kind] = tensor
        own = self.optimiser.state_dict()["param_groups"]
        complete = [{**mine, **saved} for mine, saved in zip(own, groups, strict=True)]
        self.optimiser.load_state_dict({"state": state, "param_groups": complete})

    def _identity(self) -> str:
        settings = asdict(self.schedule)
        del settings["checkpoint_seconds"]
        shapes = {name: list(one.shape) for name, one in self.module.state_dict().items()}
        text = f"{self.key}/{sorted(settings.items())}/{self.num_items}/{sorted(shapes.items())}"
        return hashlib.sha256(text.encode()).hexdigest()


def shuffle_epoch(seed: int, epoch: int, count: int) -> list[int]:
    """Return the order in which the items of an epoch come up."""
    items = list(range(count))
    random.Random(f"epoch/{seed}/{epoch}").shuffle(items)
    return items


def _seed_from(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _copy_to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: one.detach().to("cpu", copy=True) for name, one in tensors.items()}


def _select_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)
    }
