"""Training of one low-rank block of MELO, at several layers, on the facts that will use it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.engines.answer_loss import AnswerPasses, group_by_length, require_finite
from corrigenda.engines.gradients import LabelledRow, loss_scale
from corrigenda.lm.hooks import Term
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site


class LowRankBlock(NamedTuple):
    """Low-rank term at one layer: x A B is added to the output.

    Attributes:
        a: A, float32.
        b: B, float32; zero in a new block.
    """

    a: Float[Tensor, "d_in p"]
    b: Float[Tensor, "p d_out"]


class BlockTraining(NamedTuple):
    """Settings of the training of blocks; see the options of `Melo`.

    Attributes:
        steps: Steps of Adam, at most.
        learning_rate: Of Adam (betas 0.9 and 0.999, eps 1e-8), at the beginning.
        decay_every: Steps after which the learning rate is multiplied by `decay`, repeatedly.
        decay: See there.
        stop_loss: The training ends once every fact has a lower loss and all tokens are the model's
            first choices.
        gain: Factor of the term.
    """

    steps: int
    learning_rate: float
    decay_every: int
    decay: float
    stop_loss: float
    gain: float


@dataclass
class TrainedBlocks:
    """Trained blocks, one a layer, with the course of their training.

    Attributes:
        blocks: By layer, on the CPU.
        losses: Mean loss of each fact's answer in each pass, the last one after the last step.
        right: Whether each fact is the model's answer in the end, token by token.
        stop: "loss" where the stopping value was reached, else "steps".
    """

    blocks: dict[Site, LowRankBlock]
    losses: list[list[float]] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    stop: str = "steps"


def new_block(d_in: int, d_out: int, rank: int, generator: torch.Generator) -> LowRankBlock:
    """Return a block that changes nothing yet: A uniform within 1 / sqrt(d_in), B zero."""
    a = torch.empty(d_in, rank).uniform_(-1.0, 1.0, generator=generator) / math.sqrt(d_in)
    return LowRankBlock(a, torch.zeros(rank, d_out))


def _term(block: LowRankBlock, gain: float) -> Term:
    def term(x: Float[Tensor, "batch pos d_in"], _: Tensor) -> Tensor:
        a, b = (part.to(x.device, x.dtype) for part in block)
        return gain * (x @ a) @ b

    return term


@torch.enable_grad()
def train_block(
    lm: LanguageModel,
    first: Mapping[Site, LowRankBlock],
    rows: Sequence[LabelledRow],
    training: BlockTraining,
    *,
    names: Sequence[str],
    suspended: Sequence[object] = (),
) -> TrainedBlocks:
    """Train a block on facts, all of them in each step, whichever block their prompts select.

    Minimises the mean of -log p over all tokens of the answers.

    Args:
        lm: The model, as it is now; never changed.
        first: By layer, the first values.
        rows: The facts in tokens.
        training: Settings of the training.
        names: How messages refer to each fact.
        suspended: Active patches that do nothing meanwhile.

    Raises:
        NonFinite (CG201): a loss is not a number.

    Reference: Yu et al. 2024, section 3.2; LoRA (Hu et al. 2022), section 4.1.
    """
    blocks = {
        site: LowRankBlock(*(part.to(lm.device, copy=True).requires_grad_() for part in block))
        for site, block in first.items()
    }
    trainable = [part for block in blocks.values() for part in block]
    optimiser = torch.optim.Adam(trainable, lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, training.decay_every, training.decay)
    lowest = min(site.layer for site in first)
    together = group_by_length(lm, rows)
    passes = [
        AnswerPasses(
            lm, [rows[i] for i in group], lowest, from_prompt_end=False, suspended=suspended
        )
        for group in together
    ]
    tokens = sum(len(row.labels) for row in rows)
    scale = loss_scale(lm)
    terms = {site: _term(block, training.gain) for site, block in blocks.items()}
    trained = TrainedBlocks({}, [[] for _ in rows], [False] * len(rows))
    for step in range(training.steps + 1):
        is_last = step == training.steps
        for group, one in zip(together, passes, strict=True):
            with lm.add(terms), torch.set_grad_enabled(not is_last):
                scores = one.scores()
            for index, loss, hit in zip(group, scores.means.tolist(), scores.right, strict=True):
                require_finite(loss, names[index])
                trained.losses[index].append(loss)
                trained.right[index] = hit
            if not is_last:
                (scores.losses.sum() / tokens * scale).backward()
        if all(trained.right) and max(own[-1] for own in trained.losses) < training.stop_loss:
            trained.stop = "loss"
            break
        if is_last:
            break
        for part in trainable:
            assert part.grad is not None, "every block is in the graph"
            part.grad /= scale
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    trained.blocks = {
        site: LowRankBlock(*(part.detach().cpu() for part in block))
        for site, block in blocks.items()
    }
    return trained
