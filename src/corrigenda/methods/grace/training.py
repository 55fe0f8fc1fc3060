"""Training of vectors that take the place of a layer's output, one for each fact, model frozen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corrigenda.engines.answer_loss import LOSS_SCALE, AnswerPasses
from corrigenda.engines.gradients import LabelledRow
from corrigenda.errors import NonFinite
from corrigenda.lm.kv_cache import batches
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, value

Replace = Literal["last", "prompt", "all"]
"""Whose output is replaced: the prompt's last token's, that of all tokens before it, or every
token's, those of the answer included."""

# Tokens run together with gradients.
_TOKENS = {"cpu": 1024, "cuda": 16384}


class Settings(NamedTuple):
    """Settings of the training.

    Attributes:
        steps: Steps of Adam, at most.
        learning_rate: Of Adam (betas 0.9 and 0.999, eps 1e-8).
        stop_loss: A fact below it whose every token is the model's first choice takes no step.
        replace: Where the vectors stand.
    """

    steps: int
    learning_rate: float
    stop_loss: float
    replace: Replace


@dataclass
class Trace:
    """What the training did for one fact.

    Attributes:
        losses: Mean loss of the answer's tokens in each pass, in nats.
        stop: "loss" where it fell below the stopping value, "right already" where the vector it
            began with gave the answer, else "steps".
        right: Whether the vector that was kept gives the answer, token by token.
    """

    losses: list[float] = field(default_factory=list)
    stop: Literal["loss", "right already", "steps"] = "steps"
    right: bool = False


class Trained(NamedTuple):
    """Vectors, float32 on the CPU, and how they came to be."""

    values: Float[Tensor, "n d_out"]
    traces: list[Trace]


def replaced(
    columns: Int[Tensor, "batch pos"], ends: Int[Tensor, "batch 1"], replace: Replace
) -> Bool[Tensor, "batch pos"]:
    """At which columns the output is replaced; `ends` are those of the prompts' last tokens."""
    if replace == "last":
        return columns == ends
    return columns < ends if replace == "prompt" else torch.ones_like(columns, dtype=torch.bool)


def train_values(
    lm: LanguageModel,
    site: Site,
    rows: Sequence[LabelledRow],
    first: Float[Tensor, "n d_out"],
    settings: Settings,
    *,
    continued: Sequence[bool],
    names: Sequence[str],
    suspended: Sequence[object] = (),
) -> Trained:
    """Train one vector a fact; rows are independent under Adam, so company changes nothing.

    Minimises the mean of -log p over the answer's tokens. Of the vectors seen, the one with the
    lowest loss is kept where the stopping value is not reached.

    Args:
        lm: The model, as it is now.
        site: Whose output is replaced.
        rows: The facts in tokens.
        first: What each training begins with.
        settings: Of the training.
        continued: Of each fact, whether its vector is in use already: if it gives the answer, it
            stays.
        names: How messages refer to each fact.
        suspended: Active patches that do nothing meanwhile.

    Raises:
        NonFinite (CG201): a loss is not a number.

    Reference: Hartvigsen et al. 2023, section 3.
    """
    traces = [Trace() for _ in rows]
    values = first.float().clone()
    for group in batches(lm, [len(row.ids) for row in rows], _TOKENS[_kind(lm)]):
        one = _Group(
            AnswerPasses(
                lm,
                [rows[index] for index in group],
                site.layer,
                from_prompt_end=settings.replace == "last",
                suspended=suspended,
            ),
            site,
            settings.replace,
            lm,
        )
        values[group] = one.train(
            values[group],
            settings,
            [traces[index] for index in group],
            [continued[index] for index in group],
            [names[index] for index in group],
        )
    return Trained(values, traces)


def _kind(lm: LanguageModel) -> str:
    return "cpu" if lm.device.type == "cpu" else "cuda"


@dataclass(eq=False)
class _Group:
    """Facts that run together."""

    passes: AnswerPasses
    site: Site
    replace: Replace
    lm: LanguageModel

    @torch.enable_grad()
    def train(
        self,
        first: Float[Tensor, "n d_out"],
        settings: Settings,
        traces: Sequence[Trace],
        continued: Sequence[bool],
        names: Sequence[str],
    ) -> Float[Tensor, "n d_out"]:
        values = first.to(self.lm.device, copy=True).requires_grad_()
        optimiser = torch.optim.Adam([values], lr=settings.learning_rate)
        kept = first.clone()
        running = list(range(len(traces)))
        scale = LOSS_SCALE.get(self.lm.dtype, 1.0)
        for step in range(settings.steps + 1):
            means, right = self._run(values, running)
            stays = []
            for row, loss, hit in zip(running, means.tolist(), right, strict=True):
                trace = traces[row]
                _require_finite(loss, names[row])
                if loss < min(trace.losses, default=math.inf):
                    kept[row], trace.right = values[row].detach().cpu(), hit
                trace.losses.append(loss)
                if step == 0 and continued[row] and hit:
                    trace.stop = "right already"
                elif hit and loss < settings.stop_loss:
                    trace.stop = "loss"
                else:
                    stays.append(row)
                    continue
                kept[row], trace.right = values[row].detach().cpu(), hit
            if not stays or step == settings.steps or not means.requires_grad:
                break
            chosen = [running.index(row) for row in stays]
            optimiser.zero_grad()
            (means[chosen].sum() * scale).backward()
            assert values.grad is not None, "the vectors are in the graph"
            values.grad /= scale
            optimiser.step()
            running = stays
        return kept

    def _run(
        self, values: Float[Tensor, "n d_out"], running: Sequence[int]
    ) -> tuple[Float[Tensor, " rows"], list[bool]]:
        starts = self.passes.starts[list(running), None]
        ends = self.passes.ends[list(running), None]

        def put(output: Float[Tensor, "batch pos d_out"]) -> Tensor:
            columns = starts + torch.arange(output.shape[1], device=starts.device)
            where = replaced(columns, ends, self.replace).to(output.device)
            own = values[list(running), None].to(output)
            return torch.where(where[..., None], own, output)

        with self.lm.swap({value(self.site): put}):
            scores = self.passes.scores(running)
        return scores.means, scores.right


def _require_finite(loss: float, name: str) -> None:
    if not math.isfinite(loss):
        raise NonFinite(
            f"the loss of an answer is {loss}.",
            where=name,
            hint="The model gives no finite probabilities here: earlier edits may have broken it, "
            "the learning rate is too high, or its number format overflows (try float32).",
        )
