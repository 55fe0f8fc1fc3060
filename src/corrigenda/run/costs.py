"""Cost of a piece of work: time, memory, and passes through the model."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from corrigenda.errors import CorrigendaError
from corrigenda.lm.interception import PromptRewriter, rewrite_prompts
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.spans import encode
from corrigenda.patch.protocols import Patch
from corrigenda.rows import Measurement

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Cost:
    """Time, memory and passes of a piece of work, filled in by `count_cost`.

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
        """Begin at zero."""
        self.seconds = 0.0
        self.peak_bytes: int | None = None
        self.peak_bytes_above: int | None = None
        self.forward_passes = 0
        self.forward_tokens = 0
        self.backward_tokens = 0
        self.steps = 0


def build_costs(
    run: str, case: str, spent: Sequence[Cost], patches: Sequence[Patch], facts: int, edits: int
) -> list[Measurement]:
    """Return the cost of all edits of a unit of work, as measurements `cost/<name>`.

    Args:
        run: Id of the run.
        case: Name of the unit in measurements.
        spent: Cost of each edit.
        patches: Patches that were made.
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
        build_cost(run, case, name, value, facts, edits)
        for name, value in found.items()
        if value is not None
    ]


def build_cost(
    run: str, case: str, name: str, value: float, facts: int, edits: int = 0
) -> Measurement:
    """Return the measurement `cost/<name>` of one unit of work."""
    return Measurement(
        run=run, case=case, name=f"cost/{name}", values=[float(value), float(facts)], edits=edits
    )


def count_added_tokens(lm: LanguageModel, prompts: Sequence[str]) -> float | None:
    """Return the mean number of tokens that active edits add to prompts; 0 where none rewrites any.

    Returns:
        None where no prompt can be asked.
    """
    if not lm.interceptors.of_kind(PromptRewriter):
        return 0.0
    added: list[int] = []
    for prompt in prompts:
        try:
            (asked,) = rewrite_prompts(lm, [prompt])
            model = asked.lm or lm
            added.append(len(encode(model, asked.prompt).ids) - len(encode(lm, prompt).ids))
        except CorrigendaError:
            continue
    return sum(added) / len(added) if added else None


@contextmanager
def count_cost(lm: LanguageModel, cost: Cost) -> Generator[None]:
    """Measure what is done with a model until left, and write it into a record."""
    start_memory = _reset_peak(lm.device)
    with _count_passes(lm, cost):
        begin = read_clock(lm.device)
        try:
            yield
        finally:
            cost.seconds = read_clock(lm.device) - begin
    cost.peak_bytes = _read_peak(lm.device)
    if cost.peak_bytes is not None and start_memory is not None:
        cost.peak_bytes_above = max(0, cost.peak_bytes - start_memory)


def read_clock(device: torch.device) -> float:
    """Return the seconds on a steady clock, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _count_passes(lm: LanguageModel, cost: Cost) -> Generator[None]:
    """Count passes of the model, and passes of its last block outside of those."""
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
            tokens = int(hidden.shape[:-1].numel())
            hidden.register_hook(  # pyright: ignore[reportUnknownMemberType]  # torch has no type
                partial(add_backward, tokens)
            )

    def add_backward(tokens: int, _: Tensor) -> None:
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


def _reset_peak(device: torch.device) -> int | None:
    """Reset the peak, and return what is in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        _RESET.write_text("5")
    except OSError:
        return None
    return _read_status("VmRSS")


def _read_peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _read_status("VmHWM")


def _read_status(name: str) -> int | None:
    """Return a number of bytes from the kernel's status of this process; None on other systems."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(f"{name}:")), None)
    return None if found is None else int(found.split()[1]) * 1024
