"""What a piece of work costs: time, memory, and passes through the model, counted."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from corrigenda.lm.model import LanguageModel
from corrigenda.patch.protocols import Patch
from corrigenda.rows import Measurement

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Cost:
    """What happened between entering and leaving `counted`.

    Attributes:
        seconds: Time, with the device idle at both ends.
        peak_bytes: Peak memory of the device; on a CPU, of the process. None where unknown.
        peak_bytes_above: The same less what was there at the beginning.
        forward_passes: Passes of the model, and of its later blocks alone.
        forward_tokens: Tokens in them, padding included.
        backward_tokens: Tokens of backward passes through the last block, padding included.
        steps: Steps of optimisers.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.seconds = 0.0
        self.peak_bytes: int | None = None
        self.peak_bytes_above: int | None = None
        self.forward_passes = 0
        self.forward_tokens = 0
        self.backward_tokens = 0
        self.steps = 0


def measurements(
    run: str, case: str, spent: Sequence[Cost], patches: Sequence[Patch], facts: int, edits: int
) -> list[Measurement]:
    """What all edits of a unit of work cost together, as measurements `cost/<name>`.

    Args:
        run: Id of the run.
        case: What measurements call the unit.
        spent: Cost of each edit.
        patches: What was made.
        facts: Number of facts edited.
        edits: Edits of the sequence in force.
    """
    stored = sum(
        tensor.numel() * tensor.element_size()
        for patch in patches
        for tensor in patch.tensors().values()
    )
    peaks = [one.peak_bytes for one in spent if one.peak_bytes is not None]
    above = [one.peak_bytes_above for one in spent if one.peak_bytes_above is not None]
    found = {
        "edit_seconds": sum(one.seconds for one in spent),
        "stored_bytes": stored,
        "forward_passes": sum(one.forward_passes for one in spent),
        "forward_tokens": sum(one.forward_tokens for one in spent),
        "backward_tokens": sum(one.backward_tokens for one in spent),
        "steps": sum(one.steps for one in spent),
        "peak_bytes": max(peaks, default=None),
        "peak_bytes_above_model": max(above, default=None),
    }
    return [
        cost_of(run, case, name, value, facts, edits)
        for name, value in found.items()
        if value is not None
    ]


def cost_of(
    run: str, case: str, name: str, value: float, facts: int, edits: int = 0
) -> Measurement:
    """The measurement `cost/<name>` of one unit of work."""
    return Measurement(
        run=run, case=case, name=f"cost/{name}", values=[float(value), float(facts)], edits=edits
    )


@contextmanager
def counted(lm: LanguageModel) -> Generator[Cost]:
    """Measure what is done with a model until left."""
    cost = Cost()
    start_memory = _begin_peak(lm.device)
    with _passes(lm, cost):
        begin = now(lm.device)
        try:
            yield cost
        finally:
            cost.seconds = now(lm.device) - begin
    cost.peak_bytes = _peak(lm.device)
    if cost.peak_bytes is not None and start_memory is not None:
        cost.peak_bytes_above = max(0, cost.peak_bytes - start_memory)


def now(device: torch.device) -> float:
    """Seconds on a steady clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _passes(lm: LanguageModel, cost: Cost) -> Generator[None]:
    """Count passes of the model, and passes of its last block that nobody started above."""
    inside = 0

    def count(tokens: int) -> None:
        cost.forward_passes += 1
        cost.forward_tokens += tokens

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal inside
        inside += 1
        given = kwargs.get("input_ids")
        if given is None:
            given = args[0] if args else kwargs["inputs_embeds"]
        count(int(given.shape[0] * given.shape[1]))

    def leave(*_: object) -> None:
        nonlocal inside
        inside -= 1

    def last(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not inside:
            hidden = args[0] if args else kwargs["hidden_states"]
            count(int(hidden.shape[:-1].numel()))

    def follow(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        if hidden.requires_grad:
            hidden.register_hook(lambda _: add_backward(int(hidden.shape[:-1].numel())))

    def add_backward(tokens: int) -> None:
        cost.backward_tokens += tokens

    def step(*_: object) -> None:
        cost.steps += 1

    with ExitStack() as stack:
        hooks = (
            lm.blocks[-1].register_forward_hook(follow),
            register_optimizer_step_post_hook(step),
            lm.model.register_forward_pre_hook(enter, with_kwargs=True),
            lm.model.register_forward_hook(leave, always_call=True),
            lm.blocks[-1].register_forward_pre_hook(last, with_kwargs=True),
        )
        for hook in hooks:
            stack.callback(hook.remove)
        yield


def _begin_peak(device: torch.device) -> int | None:
    """Start to follow the peak; what is in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        _RESET.write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(name: str) -> int | None:
    """A number of bytes the kernel knows of this process; None on other systems."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(f"{name}:")), None)
    return None if found is None else int(found.split()[1]) * 1024
