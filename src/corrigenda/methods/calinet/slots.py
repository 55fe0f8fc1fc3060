"""CaliNET's calibration slots in feed-forward blocks, and their training on prompts and answers.

The model is frozen, so everything below the lowest slots is computed once: a step runs only the
blocks from there on, and the head only where a label is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.optimization import Adafactor

from corrigenda.engines.gradients import LabelledRow, by_length, loss_scale
from corrigenda.errors import NonFinite
from corrigenda.lm.activation import activation_of
from corrigenda.lm.hooks import Copies, Term
from corrigenda.lm.kv_cache import batches, pad_id, widen
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens, key
from corrigenda.lm.tail import Tail
from corrigenda.lm.term_bank import add_rows

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Slots:
    """Slots of one block: d_c more inner units of its feed-forward block, without biases.

    Attributes:
        keys: Kc; of a gated block the up weights Uc.
        values: Vc.
        gates: Gc of a gated block.
    """

    keys: Float[Tensor, "slots d_model"]
    values: Float[Tensor, "d_model slots"]
    gates: Float[Tensor, "slots d_model"] | None = None

    def branch(
        self, hidden: Float[Tensor, "*rows d_model"], activation: Activation
    ) -> Float[Tensor, "*rows d_model"]:
        """Return the slots' term act(h Kc^T) Vc^T, where gated (act(h Gc^T) * (h Uc^T)) Vc^T."""
        hidden = hidden.to(self.keys.dtype)
        inner = hidden @ self.keys.T
        inner = (
            activation(inner) if self.gates is None else activation(hidden @ self.gates.T) * inner
        )
        return inner @ self.values.T

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights by name, without gradients."""
        return {name: one.detach() for name, one in self.named().items()}

    def named(self) -> dict[str, Tensor]:
        """Return the weights by name."""
        every = {"keys": self.keys, "values": self.values, "gates": self.gates}
        return {name: one for name, one in every.items() if one is not None}


def is_gated(lm: LanguageModel) -> bool:
    """Return whether the feed-forward blocks of a model have a gate."""
    return "mlp.gate" in lm.family.slots


def new_slots(
    lm: LanguageModel, layers: Sequence[int], num_slots: int, seed: int
) -> dict[int, Slots]:
    """Return slots that change nothing yet: Kc (and Gc) normal with deviation d^-1/2, Vc zero.

    Raises:
        UnknownSite (CG303): no such block, or one of experts.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.promote_types(lm.dtype, torch.float32)
    width = lm.d_model

    def drawn() -> Tensor:
        return torch.randn(num_slots, width, generator=generator, dtype=dtype) * width**-0.5

    slots = {}
    for layer in sorted(set(layers)):
        lm.module_path(Site(layer, "mlp.up"))
        keys, gates = drawn(), drawn() if is_gated(lm) else None
        slots[layer] = Slots(keys, torch.zeros(width, num_slots, dtype=dtype), gates)
    return slots


def add_slots(lm: LanguageModel, slots: Mapping[int, Slots]) -> AbstractContextManager[None]:
    """Add slots to the outputs of their feed-forward blocks, until left.

    They read the input of the block, after its norm, and their sum is added to the output of the
    down projection.

    Raises:
        BadConfig (CG502): the model's configuration names no activation function.
        UnknownSite (CG303): no such block, or one of experts.
    """
    activation = activation_of(lm)
    terms = {Site(layer): _term(own, activation) for layer, own in slots.items()}
    return lm.add(terms, inputs={Site(layer): key(Site(layer, "mlp.up")) for layer in slots})


@contextmanager
def share_slots(lm: LanguageModel, slots: Mapping[int, Slots], kind: str) -> Generator[None]:
    """Add slots that are not trained, as one hook with all others of that kind, until left.

    Raises:
        BadConfig (CG502), UnknownSite (CG303): as `add_slots`.
    """
    activation = activation_of(lm)

    def term(rows: tuple[Tensor, ...], hidden: Tensor, output: Tensor) -> Tensor:
        keys, values, *gates = rows
        return Slots(keys, values.T, *gates).branch(hidden, activation).to(output.dtype)

    with ExitStack() as stack:
        for layer, own in slots.items():
            gates = () if own.gates is None else (own.gates,)
            point = key(Site(layer, "mlp.up"))
            rows = own.keys, own.values.T, *gates
            name = kind, len(rows)
            stack.enter_context(add_rows(lm, Site(layer), rows, kind=name, term=term, point=point))
        yield


def _term(slots: Slots, activation: Activation) -> Term:
    names, tensors = zip(*slots.named().items(), strict=True)
    copies = Copies(tensors)

    def term(hidden: Tensor, output: Tensor) -> Tensor:
        placed = Slots(**dict(zip(names, copies.like(hidden), strict=True)))
        return placed.branch(hidden, activation).to(output.dtype)

    return term


class SlotTraining(NamedTuple):
    """Settings of the training of slots; see the options of `Calinet`.

    Attributes:
        steps: Steps of the optimiser, at most.
        learning_rate: Constant.
        optimiser: "adam", or "adafactor" without relative steps and parameter scaling.
        batch_size: Prompts in one step; None for all of them.
        stop_loss: Mean loss at or below which prompts whose every label is the model's first choice
            take no step; a pass without a step is the last.
        seed: Of the order of batches.
    """

    steps: int
    learning_rate: float
    optimiser: Literal["adam", "adafactor"]
    batch_size: int | None
    stop_loss: float
    seed: int


@dataclass
class TrainedSlots:
    """Trained slots, with the course of their training; no gradients.

    Attributes:
        slots: By block, on the CPU.
        losses: Mean loss of the labels in each step, in nats.
        steps: Number of steps.
        stop: "true already" where there was none, "recall" where a whole pass had none, else
            "steps".
    """

    slots: dict[int, Slots]
    losses: list[float] = field(default_factory=list)
    steps: int = 0
    stop: Literal["true already", "recall", "steps"] = "steps"


def train(
    lm: LanguageModel,
    slots: Mapping[int, Slots],
    rows: Sequence[LabelledRow],
    training: SlotTraining,
    report: Callable[[int, int], object] | None = None,
) -> TrainedSlots:
    """Lower the mean -log p of the rows' labels over the slots' weights alone.

    The rows are put into an order of their own first, so theirs does not matter.

    Args:
        lm: The model, with whatever patches are active; left as it is.
        slots: Their first values.
        rows: Prompts with their labels.
        training: Settings of the training.
        report: Called with steps done and steps in all.

    Raises:
        NonFinite (CG201): the loss is infinite or NaN.
    """
    leaves = {
        layer: {
            name: one.to(lm.device, copy=True).requires_grad_()
            for name, one in own.tensors().items()
        }
        for layer, own in slots.items()
    }
    optimiser = _make_optimiser(training, [one for own in leaves.values() for one in own.values()])
    steps = _make_steps(lm, rows, min(slots), training.batch_size)
    order = torch.Generator().manual_seed(training.seed)
    trained, idle = TrainedSlots({}), 0
    queue: list[int] = []
    with add_slots(lm, {layer: Slots(**own) for layer, own in leaves.items()}), torch.enable_grad():
        while idle < len(steps):
            queue = queue or torch.randperm(len(steps), generator=order).tolist()
            optimiser.zero_grad()
            loss, right = _accumulate(lm, steps[queue.pop()])
            trained.losses.append(loss)
            if right and loss <= training.stop_loss:
                idle += 1
                continue
            idle = 0
            if trained.steps == training.steps:
                break
            optimiser.step()
            trained.steps += 1
            if report is not None:
                report(trained.steps, training.steps)
    if idle:
        trained.stop = "recall" if trained.steps else "true already"
    trained.slots = {
        layer: Slots(**{name: one.detach().cpu() for name, one in own.items()})
        for layer, own in leaves.items()
    }
    return trained


@dataclass(eq=False)
class _SlotGroup:
    """Rows of nearly equal length, with their states below the lowest slots."""

    tail: Tail
    at: Int[Tensor, "rows k"]
    real: Tensor  # (rows, k) bool: which of `at` are read
    labels: Int[Tensor, " labels"]
    zero: Float[Tensor, "rows d_model"]

    @classmethod
    def build(cls, lm: LanguageModel, rows: Sequence[LabelledRow], lowest: int) -> _SlotGroup:
        """Run the blocks below the slots once."""
        tokens = Tokens.pad([row.ids for row in rows], pad_id(lm)).to(lm.device)
        width = max(len(row.reads) for row in rows)
        at = torch.tensor(
            [[*row.reads, *row.reads[-1:] * (width - len(row.reads))] for row in rows]
        )
        real = torch.tensor([[j < len(row.reads) for j in range(width)] for row in rows])
        labels = torch.tensor([label for row in rows for label in row.labels])
        starts = torch.zeros(len(rows), dtype=torch.long, device=lm.device)
        tail = Tail.build(lm, tokens, lowest - 1, starts, role="state")
        return cls(
            tail,
            at.to(lm.device),
            real.to(lm.device),
            labels.to(lm.device),
            torch.zeros_like(tail.entry),
        )


def _make_steps(
    lm: LanguageModel, rows: Sequence[LabelledRow], lowest: int, batch_size: int | None
) -> list[list[_SlotGroup]]:
    """Return the groups of rows of each step, in an order independent of that of the rows."""
    if batch_size is not None:
        return [[_SlotGroup.build(lm, part, lowest)] for part in by_length(rows, batch_size)]
    (whole,) = by_length(rows, len(rows))
    parts = batches(lm, [len(row.ids) for row in whole], None)
    return [[_SlotGroup.build(lm, [whole[index] for index in part], lowest) for part in parts]]


def _accumulate(lm: LanguageModel, step: Sequence[_SlotGroup]) -> tuple[float, bool]:
    """Accumulate gradients; return the mean loss, and whether all labels are first choices."""
    total, right, count = 0.0, True, sum(len(group.labels) for group in step)
    scale = loss_scale(lm)
    for group in step:
        hidden = group.tail.run(group.zero, group.at)[group.real]
        logits = widen(lm.head(hidden))
        loss = cross_entropy(logits, group.labels, reduction="sum") / count
        if not math.isfinite(float(loss.detach())):
            raise NonFinite(
                f"the loss of the answers is {float(loss.detach())}.",
                where="training of calibration slots",
                hint="The model gives no finite probabilities here: earlier edits may have broken "
                "it, the learning rate is too high, or its number format overflows (try float32).",
            )
        (loss * scale).backward()
        total += float(loss.detach())
        right = right and bool((logits.argmax(-1) == group.labels).all())
    return total, right


def _make_optimiser(training: SlotTraining, weights: list[Tensor]) -> torch.optim.Optimizer:
    if training.optimiser == "adam":
        return torch.optim.Adam(weights, lr=training.learning_rate)
    return Adafactor(weights, lr=training.learning_rate, relative_step=False, scale_parameter=False)
