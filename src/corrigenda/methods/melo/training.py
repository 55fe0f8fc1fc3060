"""Training of one low-rank block beside several layers, for the facts that will switch it on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.engines.answer_loss import LOSS_SCALE, AnswerPasses
from corrigenda.engines.gradients import LabelledRow
from corrigenda.errors import NonFinite
from corrigenda.lm.hooks import Term
from corrigenda.lm.kv_cache import batches
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site

_TOKENS = {"cpu": 1024, "cuda": 16384}


class Block(NamedTuple):
    """A low-rank term beside one layer: x A B.

    Attributes:
        a: What is read from the input, float32.
        b: What is added to the output, float32; zero in a new block.
    """

    a: Float[Tensor, "d_in p"]
    b: Float[Tensor, "p d_out"]


class Settings(NamedTuple):
    """Settings of the training.

    Attributes:
        steps: Steps of Adam, at most.
        learning_rate: Of Adam (betas 0.9 and 0.999, eps 1e-8), at the beginning.
        decay_every: Steps after which the learning rate is multiplied by `decay`, again and again.
        decay: See there.
        stop_loss: Once every fact is below it with every token the model's first choice, it is
            done.
        gain: What the term is multiplied by.
    """

    steps: int
    learning_rate: float
    decay_every: int
    decay: float
    stop_loss: float
    gain: float


@dataclass
class Trained:
    """What a training made.

    Attributes:
        blocks: By layer, on the CPU.
        losses: Mean loss of each fact's answer in each pass, the last behind the last step.
        right: Whether each fact is the model's answer in the end, token by token.
        stop: "loss" where the stopping value was reached, else "steps".
    """

    blocks: dict[Site, Block]
    losses: list[list[float]] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    stop: str = "steps"


def new_block(d_in: int, d_out: int, rank: int, generator: torch.Generator) -> Block:
    """A block that does nothing yet: A uniform within 1 / sqrt(d_in), B zero."""
    a = torch.empty(d_in, rank).uniform_(-1.0, 1.0, generator=generator) / math.sqrt(d_in)
    return Block(a, torch.zeros(rank, d_out))


def _term(block: Block, gain: float) -> Term:
    def term(x: Float[Tensor, "batch pos d_in"], _: Tensor) -> Tensor:
        a, b = (part.to(x.device, x.dtype) for part in block)
        return gain * (x @ a) @ b

    return term


@torch.enable_grad()
def train_block(
    lm: LanguageModel,
    first: Mapping[Site, Block],
    rows: Sequence[LabelledRow],
    settings: Settings,
    *,
    names: Sequence[str],
    suspended: Sequence[object] = (),
) -> Trained:
    """Train a block on facts, all of them in each step, whatever their prompts switch on.

    Minimises the mean of -log p over all tokens of the answers.

    Args:
        lm: The model, as it is now; never changed.
        first: By layer, what the training begins with.
        rows: The facts in tokens.
        settings: Of the training.
        names: How messages refer to each fact.
        suspended: Active patches that do nothing meanwhile.

    Raises:
        NonFinite (CG201): a loss is not a number.

    Reference: Yu et al. 2024, section 3.2; LoRA (Hu et al. 2022), section 4.1.
    """
    blocks = {
        site: Block(*(part.to(lm.device, copy=True).requires_grad_() for part in block))
        for site, block in first.items()
    }
    trainable = [part for block in blocks.values() for part in block]
    optimiser = torch.optim.Adam(trainable, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, settings.decay_every, settings.decay)
    lowest = min(site.layer for site in first)
    together = list(batches(lm, [len(row.ids) for row in rows], _TOKENS[_kind(lm)]))
    passes = [
        AnswerPasses(
            lm, [rows[i] for i in group], lowest, from_prompt_end=False, suspended=suspended
        )
        for group in together
    ]
    tokens = sum(len(row.labels) for row in rows)
    scale = LOSS_SCALE.get(lm.dtype, 1.0)
    terms = {site: _term(block, settings.gain) for site, block in blocks.items()}
    trained = Trained({}, [[] for _ in rows], [False] * len(rows))
    for step in range(settings.steps + 1):
        is_last = step == settings.steps
        for group, one in zip(together, passes, strict=True):
            with lm.add(terms), torch.set_grad_enabled(not is_last):
                scores = one.scores()
            for index, loss, hit in zip(group, scores.means.tolist(), scores.right, strict=True):
                if not math.isfinite(loss):
                    raise _not_finite(loss, names[index])
                trained.losses[index].append(loss)
                trained.right[index] = hit
            if not is_last:
                (scores.losses.sum() / tokens * scale).backward()
        if all(trained.right) and max(own[-1] for own in trained.losses) < settings.stop_loss:
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
        site: Block(*(part.detach().cpu() for part in block)) for site, block in blocks.items()
    }
    return trained


def _kind(lm: LanguageModel) -> str:
    return "cpu" if lm.device.type == "cpu" else "cuda"


def _not_finite(loss: float, name: str) -> NonFinite:
    return NonFinite(
        f"the loss of an answer is {loss}.",
        where=name,
        hint="The model gives no finite probabilities here: earlier edits may have broken it, the "
        "learning rate is too high, or its number format overflows (try float32).",
    )
