"""Fine-tuning of one down projection on facts, as a change added to weights that stay fixed.

Everything up to the input of the trained projection is the same in every step: it is computed once
and stored. A step runs only the later blocks (`corrigenda.lm.tail`), the head only where a label is
read, and its gradient is the sum over positions of (gradient of the output) x (input). The change
and Adam's moments have at least float32, whatever the model has.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear, pad

from corrigenda.errors import NonFinite
from corrigenda.lm.footprint import (
    FLOAT,
    USUAL_READS,
    USUAL_TOKENS,
    graph_bytes,
    graph_tokens,
    head_bytes,
    room_of,
)
from corrigenda.lm.kv_cache import batches, pad_id, widen
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens, key
from corrigenda.lm.tail import Tail, memory_budget
from corrigenda.patch.notes import EVEN_ODDS, EditStatus

TargetScoring = Literal["last-token", "teacher-forced"]

# Tokens stored together, and tokens run together with gradients.
_STORED_TOKENS = {"cpu": 4096, "cuda": 65536}
# The weight, its gradient, Adam's two moments.
_TRAINED_COPIES = 4
_STEP_TOKENS = {"cpu": 1024, "cuda": 16384}


class FineTuning(NamedTuple):
    """Settings of the training, in the units of the method cards.

    Attributes:
        objective: "last-token" scores all tokens of the target with the one distribution after
            the prompt; "teacher-forced" scores each after the tokens before it.
        epochs: Passes over all facts, at most.
        learning_rate: Of Adam (betas 0.9 and 0.999, eps 1e-8).
        batch_size: Facts in one step.
        box: Largest change of an entry of the weight; None for no bound.
        weight_decay: Strength of Adam's coupled decay of the edited weight (not of the change).
        stop_loss: A mini-batch whose loss is below this takes no step; an epoch whose average is
            below it is the last.
        shuffle: Seed of the order of facts, drawn anew each epoch from an order that depends on
            their content only; None takes them as they are given.
        bias: Whether the bias is trained along; a patch cannot hold it.
    """

    objective: TargetScoring
    epochs: int
    learning_rate: float
    batch_size: int
    box: float | None = None
    weight_decay: float = 0.0
    stop_loss: float = 0.01
    shuffle: int | None = None
    bias: bool = False


class FactTokens(NamedTuple):
    """One fact in tokens.

    Attributes:
        ids: Prompt and target, without the target's last token.
        prompt_last: Position of the prompt's last token.
        labels: The tokens of the target.
    """

    ids: tuple[int, ...]
    prompt_last: int
    labels: tuple[int, ...]


@dataclass
class FineTuned:
    """Result of fine-tuning one weight on facts; no gradients.

    Attributes:
        delta: The change of the weight, float32 or the model's dtype if that has more digits.
        bias: The change of the bias, if it was trained.
        losses: Loss of the objective by fact, one in each epoch, before the step it took part in.
        averages: Average of the losses of each epoch over all facts.
        final: Teacher-forced loss of each fact with the whole change in place.
        steps: Steps of Adam.
        stop: "loss" when an epoch's average fell below the stopping value, else "epochs".
        at_box: Share of the weight's entries that lie on the bounds of the box.
    """

    delta: Float[Tensor, "d_out d_in"]
    bias: Float[Tensor, " d_out"] | None
    losses: list[list[float]]
    averages: list[float] = field(default_factory=list)
    final: list[float] = field(default_factory=list)
    steps: int = 0
    stop: Literal["loss", "epochs"] = "epochs"
    at_box: float = 0.0

    @property
    def statuses(self) -> list[EditStatus]:
        """Whether each target has at least even odds (geometric mean over tokens), else why not."""
        failed: EditStatus = "clamped" if self.at_box else "not converged"
        return ["written" if loss <= EVEN_ODDS else failed for loss in self.final]


def fine_tune(
    lm: LanguageModel,
    site: Site,
    examples: Sequence[FactTokens],
    training: FineTuning,
    names: Sequence[str],
) -> FineTuned:
    """Train a change of one weight on facts, with the model as it is now.

    Minimises the mean over facts of the mean over target tokens of -log p, mini-batch by
    mini-batch, with Adam. After every mini-batch the change is put back into the box.

    Args:
        lm: The model; never changed.
        site: The down projection to train.
        examples: The facts in tokens, at least one.
        training: Settings of the training.
        names: How messages refer to each fact.

    Raises:
        NonFinite (CG201): a loss is not a number.
        UnknownSite (CG303): a mixture of experts, which has no one down projection.

    Reference: Zhu et al. 2020, equation 4 (the box); ROME (Meng et al. 2022), appendix E.1; the
        masked objective as in KnowEdit (Zhang et al. 2024). The authors' codes train the weights
        themselves and take the difference; here the change is the variable.
    """
    d_out, d_in = lm.shape(site)
    shape = (d_out, d_in + training.bias)
    dtype = torch.promote_types(lm.dtype, torch.float32)
    delta = torch.zeros(shape, dtype=dtype, device=lm.device_at(site), requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=training.learning_rate)
    origin = _initial_parameters(lm, site, delta) if training.weight_decay else None
    inputs = _ConstantsCache(lm, site, examples)
    tuned = FineTuned(delta, None, [[] for _ in examples])
    for epoch in range(training.epochs):
        total = 0.0
        for chosen in _draw_batches(examples, training, epoch):
            losses = _accumulate(lm, inputs, chosen, delta, training)
            _record(tuned, losses, names)
            loss = sum(losses.values()) / len(losses)
            if loss >= training.stop_loss:
                assert delta.grad is not None
                if origin is not None:
                    delta.grad.add_(origin + delta.detach(), alpha=training.weight_decay)
                optimiser.step()
                tuned.steps += 1
            optimiser.zero_grad()
            if training.box is not None:
                delta.data.clamp_(-training.box, training.box)
            total += sum(losses.values())
        tuned.averages.append(total / len(examples))
        if tuned.averages[-1] < training.stop_loss:
            tuned.stop = "loss"
            break
    return _measure_final(lm, inputs, tuned, training)


def _measure_final(
    lm: LanguageModel, inputs: _ConstantsCache, tuned: FineTuned, training: FineTuning
) -> FineTuned:
    """Measure the loss of every fact with the whole change in place."""
    delta = tuned.delta.detach()
    final = _accumulate(
        lm,
        inputs,
        range(len(tuned.losses)),
        delta,
        training._replace(objective="teacher-forced"),
    )
    tuned.final = [final[index] for index in range(len(final))]
    if training.bias:
        tuned.bias, delta = delta[:, -1].clone(), delta[:, :-1].clone()
    tuned.delta = delta
    if training.box is not None:
        inside = delta.abs() < torch.tensor(training.box, dtype=delta.dtype)
        tuned.at_box = 1.0 - float(inside.double().mean()) if tuned.steps else 0.0
    return tuned


def _initial_parameters(
    lm: LanguageModel, site: Site, delta: Float[Tensor, "d_out width"]
) -> Float[Tensor, "d_out width"]:
    """The tuned parameters before training, in the layout of the change."""
    weight, bias = lm.values(site).to(delta.dtype), lm.bias(site)
    if delta.shape == weight.shape:
        return weight
    assert bias is not None, "a bias that is trained exists"
    return torch.cat([weight, bias.to(delta.dtype)[:, None]], dim=1)


def _draw_batches(
    examples: Sequence[FactTokens], training: FineTuning, epoch: int
) -> Iterator[list[int]]:
    order = list(range(len(examples)))
    if training.shuffle is not None:
        order.sort(key=examples.__getitem__)
        random.Random(f"{training.shuffle}/{epoch}").shuffle(order)
    for begin in range(0, len(order), training.batch_size):
        yield order[begin : begin + training.batch_size]


def _record(tuned: FineTuned, losses: dict[int, float], names: Sequence[str]) -> None:
    for index, loss in losses.items():
        if not math.isfinite(loss):
            raise NonFinite(
                f"the loss of fine-tuning is {loss} in epoch {len(tuned.losses[index]) + 1}.",
                where=names[index],
                hint="The model gives no finite probabilities here: earlier edits may have broken "
                "it, the learning rate is too high, or its number format overflows (try float32).",
            )
        tuned.losses[index].append(loss)


@dataclass(eq=False)
class _FactConstants:
    """Facts of nearly equal length, with everything that training leaves fixed.

    Attributes:
        rows: Row of each fact, by its index.
        starts: First position that runs: 0, or in the last block the prompt's last token, since
            after that block no position sees another.
        tail: The later blocks.
        keys: Inputs of the trained projection from the starts on.
    """

    rows: dict[int, int]
    starts: Int[Tensor, " batch"]
    tail: Tail
    keys: Float[Tensor, "batch pos d_in"]


def training_memory(lm: LanguageModel, site: Site, num_facts: int, batch_size: int) -> int:
    """Estimate the bytes that training one weight takes, for facts of usual length."""
    stored = num_facts * USUAL_TOKENS * _stored_numbers(lm, site) * lm.dtype.itemsize
    above = lm.num_layers - site.layer - 1
    batch = min(num_facts, batch_size)
    tokens = min(batch * USUAL_TOKENS, graph_tokens(lm, above, _STEP_TOKENS))
    graph = graph_bytes(lm, above, tokens) + head_bytes(lm, batch * USUAL_READS)
    trained = _TRAINED_COPIES * FLOAT * math.prod(lm.shape(site))
    return trained + min(stored, memory_budget(lm)) + graph


def _stored_numbers(lm: LanguageModel, site: Site) -> int:
    """Count the numbers stored for each token: the weight's input, and that of later blocks."""
    return lm.shape(site)[1] + 3 * lm.d_model


class _ConstantsCache:
    """Computes the constants of the facts of a mini-batch; stores them where memory allows."""

    def __init__(self, lm: LanguageModel, site: Site, examples: Sequence[FactTokens]) -> None:
        self.examples = examples
        self._lm, self._site = lm, site
        self._lengths = [len(example.ids) for example in examples]
        # Asked once: the free memory changes while facts are stored.
        self._step_tokens = graph_tokens(lm, lm.num_layers - site.layer - 1, _STEP_TOKENS)
        needed = sum(self._lengths) * _stored_numbers(lm, site) * lm.dtype.itemsize
        self._stored: list[_FactConstants] | None = None
        if needed <= memory_budget(lm):
            together = batches(lm, self._lengths, _STORED_TOKENS[room_of(lm).kind])
            self._stored = [self.compute(indices) for indices in together]

    def split(self, chosen: Sequence[int]) -> list[tuple[_FactConstants | None, list[int]]]:
        """Split a mini-batch into parts that run together; None where constants are not stored."""
        if self._stored is None:
            lengths = [self._lengths[index] for index in chosen]
            step = self._step_tokens
            parts = batches(self._lm, lengths, step)
            return [(None, [chosen[i] for i in part]) for part in parts]
        found: list[tuple[_FactConstants | None, list[int]]] = []
        for held in self._stored:
            own = sorted((i for i in chosen if i in held.rows), key=held.rows.__getitem__)
            size = max(1, self._step_tokens // held.tail.width)
            found += [(held, own[begin : begin + size]) for begin in range(0, len(own), size)]
        return found

    @torch.no_grad()
    def compute(self, indices: Sequence[int]) -> _FactConstants:
        """Compute the constants of some facts."""
        lm, site = self._lm, self._site
        examples = [self.examples[index] for index in indices]
        is_last = site.layer == lm.num_layers - 1
        starts = torch.tensor([example.prompt_last if is_last else 0 for example in examples])
        tokens = Tokens.pad([example.ids for example in examples], pad_id(lm)).to(lm.device)
        tail = Tail.build(lm, tokens, site.layer, starts, role="value")
        window = tail.starts[:, None] + torch.arange(tail.width, device=lm.device)
        window = window.clamp_max(tokens.ids.shape[1] - 1)
        keys = lm.tap(tokens, [key(site)], positions=window)[key(site)]
        rows = {index: row for row, index in enumerate(indices)}
        return _FactConstants(rows, tail.starts, tail, keys)


def _accumulate(
    lm: LanguageModel,
    inputs: _ConstantsCache,
    chosen: Sequence[int],
    delta: Float[Tensor, "d_out width"],
    training: FineTuning,
) -> dict[int, float]:
    """Return losses of some facts; add the gradient of their mean to `delta.grad` if wanted."""
    losses: dict[int, float] = {}
    pieces = inputs.split(chosen)
    for stored, own in pieces:
        held = stored or inputs.compute(own)
        with torch.set_grad_enabled(delta.requires_grad):
            nll = _nll(lm, held, own, inputs.examples, delta, training)
            loss = nll.sum() / len(chosen)
        losses |= dict(zip(own, nll.tolist(), strict=True))
        # Below the stopping value no step follows; of several pieces only all together tell.
        if loss.requires_grad and (len(pieces) > 1 or loss.item() >= training.stop_loss):
            loss.backward()
    return losses


def _nll(
    lm: LanguageModel,
    held: _FactConstants,
    own: Sequence[int],
    examples: Sequence[FactTokens],
    delta: Float[Tensor, "d_out width"],
    training: FineTuning,
) -> Float[Tensor, " rows"]:
    """Return the mean of -log p over the target tokens of each fact."""
    device = held.keys.device
    chosen = [examples[index] for index in own]
    teacher_forced = training.objective == "teacher-forced"
    counts = torch.tensor([len(example.labels) for example in chosen], device=device)
    width = int(counts.max()) if teacher_forced else 1
    first = torch.tensor([example.prompt_last for example in chosen], device=device)
    steps = torch.arange(width, device=device)
    valid = (steps < counts[:, None]) if teacher_forced else (steps < 1).expand(len(chosen), 1)
    at = first[:, None] + steps * valid
    rows = torch.tensor([held.rows[index] for index in own], device=device)
    everything = len(own) == len(held.rows) and torch.equal(rows, torch.arange(len(own)).to(rows))
    picked_rows = None if everything else rows

    length = int((at - held.starts[rows][:, None]).max()) + 1
    keys = held.keys[:, :length] if everything else held.keys[rows, :length]
    keys = keys.to(delta.device, delta.dtype)
    if training.bias:
        keys = pad(keys, (0, 1), value=1.0)
    hidden = held.tail.run(linear(keys, delta), at, rows=picked_rows)[valid]
    log_p = torch.log_softmax(widen(lm.head(hidden)), dim=-1)

    owners = torch.arange(len(chosen), device=device).repeat_interleave(counts)
    labels = torch.tensor([label for example in chosen for label in example.labels], device=device)
    source = torch.arange(len(labels), device=device) if teacher_forced else owners
    nll = -log_p[source, labels] / counts[owners]
    return nll.new_zeros(len(chosen)).index_add(0, owners, nll)
