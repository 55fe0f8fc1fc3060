"""Training of GRACE's values: vectors that replace a layer's output, one for each fact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corrigenda.engines.answer_loss import AnswerPasses, group_by_length, require_finite
from corrigenda.engines.gradients import LabelledRow, backward_scaled
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, value

Replace = Literal["last", "prompt", "all"]
"""Tokens whose output is replaced: the prompt's last one, all before it, or every token, also those
of the answer."""


class ValueTraining(NamedTuple):
    """Settings of the training of values; see the options of `Grace`.

    Attributes:
        steps: Steps of Adam, at most.
        learning_rate: Of Adam (betas 0.9 and 0.999, eps 1e-8).
        stop_loss: A fact with a lower loss whose tokens are all first choices takes no step.
        replace: Tokens whose output the vectors replace.
    """

    steps: int
    learning_rate: float
    stop_loss: float
    replace: Replace


@dataclass
class ValueTrace:
    """Course of the training for one fact.

    Attributes:
        losses: Mean loss of the answer's tokens in each pass, in nats.
        stop: "loss" where it fell below the stopping value, "right already" where the first vector
            gave the answer, else "steps".
        right: Whether the vector that was chosen gives the answer, token by token.
    """

    losses: list[float] = field(default_factory=list)
    stop: Literal["loss", "right already", "steps"] = "steps"
    right: bool = False


class TrainedValues(NamedTuple):
    """Trained vectors, float32 on the CPU, and the course of their training."""

    values: Float[Tensor, "n d_out"]
    traces: list[ValueTrace]


def replaced_at(
    columns: Int[Tensor, "batch pos"], ends: Int[Tensor, "batch 1"], replace: Replace
) -> Bool[Tensor, "batch pos"]:
    """Return the columns at which the output is replaced; `ends` are the prompts' last tokens."""
    if replace == "last":
        return columns == ends
    return columns < ends if replace == "prompt" else torch.ones_like(columns, dtype=torch.bool)


def train_values(
    lm: LanguageModel,
    site: Site,
    rows: Sequence[LabelledRow],
    first: Float[Tensor, "n d_out"],
    training: ValueTraining,
    *,
    continued: Sequence[bool],
    names: Sequence[str],
    suspended: Sequence[object] = (),
) -> TrainedValues:
    """Train one vector for each fact; the result does not depend on the other facts of a batch.

    Minimises the mean of -log p over the answer's tokens. Where the stopping value is not reached,
    the vector with the lowest loss is returned.

    Args:
        lm: The model, as it is now.
        site: Layer whose output is replaced.
        rows: The facts in tokens.
        first: First vector of each fact.
        training: Settings of the training.
        continued: Of each fact, whether its vector is in use already: if it gives the answer, it is
            left as it is.
        names: How messages refer to each fact.
        suspended: Active patches that do nothing meanwhile.

    Raises:
        NonFinite (CG201): a loss is not a number.

    Reference: Hartvigsen et al. 2023, section 3.
    """
    traces = [ValueTrace() for _ in rows]
    values = first.float().clone()
    for group in group_by_length(lm, rows):
        one = _FactGroup(
            AnswerPasses(
                lm,
                [rows[index] for index in group],
                site.layer,
                from_prompt_end=training.replace == "last",
                suspended=suspended,
            ),
            site,
            training.replace,
            lm,
        )
        values[group] = one.train(
            values[group],
            training,
            [traces[index] for index in group],
            [continued[index] for index in group],
            [names[index] for index in group],
        )
    return TrainedValues(values, traces)


@dataclass(eq=False)
class _FactGroup:
    """Facts of similar length that run together."""

    passes: AnswerPasses
    site: Site
    replace: Replace
    lm: LanguageModel

    @torch.enable_grad()
    def train(
        self,
        first: Float[Tensor, "n d_out"],
        training: ValueTraining,
        traces: Sequence[ValueTrace],
        continued: Sequence[bool],
        names: Sequence[str],
    ) -> Float[Tensor, "n d_out"]:
        values = first.to(self.lm.device, copy=True).requires_grad_()
        optimiser = torch.optim.Adam([values], lr=training.learning_rate)
        kept = first.clone()
        running = list(range(len(traces)))
        for step in range(training.steps + 1):
            means, right = self._run(values, running)
            stays = []
            for row, loss, hit in zip(running, means.tolist(), right, strict=True):
                trace = traces[row]
                require_finite(loss, names[row])
                if loss < min(trace.losses, default=math.inf):
                    kept[row], trace.right = values[row].detach().cpu(), hit
                trace.losses.append(loss)
                if step == 0 and continued[row] and hit:
                    trace.stop = "right already"
                elif hit and loss < training.stop_loss:
                    trace.stop = "loss"
                else:
                    stays.append(row)
                    continue
                kept[row], trace.right = values[row].detach().cpu(), hit
            if not stays or step == training.steps or not means.requires_grad:
                break
            chosen = [running.index(row) for row in stays]
            optimiser.zero_grad()
            backward_scaled(self.lm, means[chosen].sum(), [values])
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
            where = replaced_at(columns, ends, self.replace).to(output.device)
            own = values[list(running), None].to(output)
            return torch.where(where[..., None], own, output)

        with self.lm.swap({value(self.site): put}):
            scores = self.passes.scores(running)
        return scores.means, scores.right
