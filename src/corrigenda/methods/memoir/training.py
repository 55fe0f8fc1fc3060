"""Training of MEMOIR's residual memory: the inputs of one mask, for one fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrigenda.engines.answer_loss import AnswerPasses, require_finite
from corrigenda.engines.gradients import LabelledRow, backward_scaled
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site


class MemoryTraining(NamedTuple):
    """Settings of the training; see the options of `Memoir`."""

    steps: int
    learning_rate: float
    decay: float
    clip: float
    stop_loss: float


@dataclass
class MemoryTrace:
    """Course of the training for one fact.

    Attributes:
        losses: Mean over the rows of the mean loss of their labels, in each pass.
        right: Whether the last pass gave the target in the bare prompt, token by token.
    """

    losses: list[float] = field(default_factory=list)
    right: bool = False


@torch.enable_grad()
def train_columns(
    lm: LanguageModel,
    site: Site,
    rows: Sequence[LabelledRow],
    columns: Int[Tensor, " k"],
    first: Float[Tensor, "d_out k"],
    training: MemoryTraining,
    *,
    name: str,
    suspended: Sequence[object] = (),
) -> tuple[Float[Tensor, "d_out k"], MemoryTrace]:
    """Train the columns of the memory that a mask lets through, by plain gradient descent.

    Args:
        lm: The model, as it is now.
        site: The layer beside which the memory lies.
        rows: The fact in its contexts, the bare prompt first; all with the mask of that one.
        columns: Inputs of the mask.
        first: Columns of the memory so far.
        training: Settings.
        name: How messages refer to the fact.
        suspended: Active patches that do nothing meanwhile.

    Raises:
        NonFinite (CG201): a loss is not a number.
    """
    passes = AnswerPasses(lm, rows, site.layer, from_prompt_end=False, suspended=suspended)
    memory = first.to(lm.device_at(site), torch.float32, copy=True).requires_grad_()
    places = columns.to(memory.device)
    optimiser = torch.optim.SGD([memory], lr=training.learning_rate, weight_decay=training.decay)
    trace = MemoryTrace()

    def term(inputs: Tensor, _: Tensor) -> Tensor:
        return inputs[..., places].to(memory) @ memory.T

    for step in range(training.steps + 1):
        with lm.add({site: term}):
            scores = passes.scores()
        loss = scores.means.mean()
        reached = loss.item()
        require_finite(reached, name)
        trace.losses.append(reached)
        trace.right = scores.right[0]
        if step == training.steps or (trace.right and reached <= training.stop_loss):
            break
        optimiser.zero_grad()
        backward_scaled(lm, loss, [memory])
        torch.nn.utils.clip_grad_norm_([memory], training.clip)
        optimiser.step()
    return memory.detach().cpu(), trace
