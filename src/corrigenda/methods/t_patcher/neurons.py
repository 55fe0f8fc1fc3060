"""Training of T-Patcher's neurons in the last feed-forward block, one for each wrong token.

Nothing before the outputs of that block depends on the neurons, so states are computed once and a
step runs from there: neurons, norms, head, at the positions read only.

Letters: q queries, inputs of the block (pos d) - k key, b bias, v value of a neuron - z = q k + b
its activation value - M queries of the memory (n d).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from corrigenda.errors import NonFinite
from corrigenda.lm.kv_cache import widen
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.tail import Tail

Stop = Literal["memory", "steps", "nothing to mend"]
Activation = Callable[[Tensor], Tensor]

_SAME_QUERY = 1e-3
_LEARNT = 1e-3


class NeuronTraining(NamedTuple):
    """Settings of the training of neurons, in the letters of the paper.

    Attributes:
        steps: Of Adam, at most.
        first_check: Step of the first check.
        check_every: Steps between checks.
        learning_rate: Of Adam, for queries of length one.
        weight_decay: Coupled decay of keys, values and amplifiers; biases have none.
        clip: Longest gradient of all parameters together.
        smoothing: Of the labels.
        activation_weight: a_c, weight of the activation loss.
        memory_weight: m_c, weight of the memory losses.
        activation_margin: alpha, how far above zero the neuron's own query should lie.
        memory_margin: beta_1, how far the own query should lie above those of the memory.
        silence: beta_2, below which queries of the memory should lie.
        top_own: Terms averaged in the activation loss.
        top_memory: Terms averaged in each memory loss.
        amplifier: First value of the factor of each coordinate of a value.
        value_noise: Standard deviation of values at the start, before amplification.
        gate: Share of its own activation value below which a neuron is silent afterwards.
    """

    steps: int
    first_check: int
    check_every: int
    learning_rate: float
    weight_decay: float
    clip: float
    smoothing: float
    activation_weight: float
    memory_weight: float
    activation_margin: float
    memory_margin: float
    silence: float
    top_own: int
    top_memory: int
    amplifier: float
    value_noise: float
    gate: float


class Neurons(NamedTuple):
    """Added neurons: FFN_p(q) = FFN(q) + sum_p act(q k_p + b_p) v_p.

    Attributes:
        keys: K_p, one row a neuron.
        biases: b_p.
        values: V_p.
    """

    keys: Float[Tensor, "n d_model"]
    biases: Float[Tensor, " n"]
    values: Float[Tensor, "n d_model"]

    def activations(self, queries: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows n"]:
        """Return the activation values Z = q K_p^T + b_p."""
        return queries @ self.keys.T + self.biases

    def __add__(self, other: object) -> Neurons:
        """Return these neurons followed by others."""
        assert isinstance(other, Neurons)
        return Neurons(*(torch.cat(parts) for parts in zip(self, other, strict=True)))


class QueryMemory(NamedTuple):
    """Queries on which neurons should be silent.

    Attributes:
        training: Queries in the losses.
        validation: Queries that decide when to stop.
    """

    training: Float[Tensor, "n d_model"]
    validation: Float[Tensor, "m d_model"]


class FactRun(NamedTuple):
    """One fact, run up to the outputs of the last feed-forward block.

    Attributes:
        tail: From those outputs on.
        reads: Positions whose distribution should give the labels.
        labels: The target's tokens.
        queries: Inputs of the block at the reads.
        added: Sum of the terms of earlier neurons of the same edit at the reads.
    """

    tail: Tail
    reads: Int[Tensor, " k"]
    labels: Int[Tensor, " k"]
    queries: Float[Tensor, "k d_model"]
    added: Float[Tensor, "k d_model"]


@dataclass
class TrainedNeurons:
    """Trained neurons, with the course of their training.

    Attributes:
        neurons: The neurons, no gradients.
        tokens: Which of the target's tokens each belongs to.
        losses: Whole loss at each check.
        memory_losses: On the validation memory, at each check at which the target was the answer.
        steps: Of Adam.
        stop: Why it ended.
    """

    neurons: Neurons
    tokens: list[int]
    losses: list[float] = field(default_factory=list)
    memory_losses: list[float] = field(default_factory=list)
    steps: int = 0
    stop: Stop = "steps"


class _Parameters(NamedTuple):
    """k = direction / ||q||, so that a step counts alike for queries of any length; v = a w."""

    direction: Float[Tensor, "n d_model"]
    bias: Float[Tensor, " n"]
    amplifier: Float[Tensor, "n d_model"]
    value: Float[Tensor, "n d_model"]
    length: Float[Tensor, "n 1"]

    def neurons(self) -> Neurons:
        return Neurons(self.direction / self.length, self.bias, self.amplifier * self.value)


def read_logits(
    lm: LanguageModel, one: FactRun, neurons: Neurons | None, act: Activation
) -> Float[Tensor, "k vocab"]:
    """Return the logits at the reads with some neurons added, at least float32."""
    added = one.added
    if neurons is not None:
        added = added + act(neurons.activations(one.queries)) @ neurons.values
    hidden = one.tail.run(added[None], one.reads[None])[0]
    return widen(lm.head(hidden))


@torch.no_grad()
def wrong_tokens(
    lm: LanguageModel, one: FactRun, neurons: Neurons | None, act: Activation
) -> list[int]:
    """Return the target's tokens, by index, that are not the likeliest at their positions."""
    wrong = read_logits(lm, one, neurons, act).argmax(1) != one.labels
    return wrong.nonzero().flatten().tolist()


def train(
    lm: LanguageModel,
    one: FactRun,
    memory: QueryMemory,
    training: NeuronTraining,
    *,
    act: Activation,
    most: int,
    seed: int,
    where: str,
) -> TrainedNeurons:
    """Give each wrong token of a target its neuron, and train them together.

    Minimises  l_e + a_c l_a + m_c (l_m1 + l_m2), see `losses_of_neurons`. Queries of the memory
    that equal an own query (the prompt was edited before) are left out: nothing can tell them
    apart.

    Args:
        lm: The model; never changed.
        one: The fact.
        memory: Queries to be silent on.
        training: Settings of the training.
        act: Of the neurons.
        most: Neurons at most; the first wrong tokens get them.
        seed: Of the values at the start.
        where: How messages refer to the fact.

    Raises:
        NonFinite (CG201): the loss is not a number.

    Reference: Huang et al. 2023, sections 3.2 and 3.3.
    """
    tokens = wrong_tokens(lm, one, None, act)[:most]
    queries = one.queries[tokens]
    parameters = _first_parameters(queries, training, seed)
    if not tokens:
        return TrainedNeurons(_detach(parameters), [], stop="nothing to mend")
    memory = QueryMemory(*(_drop_own_queries(part, queries) for part in memory))
    trained = TrainedNeurons(_detach(parameters), tokens)
    decayed = [parameters.direction, parameters.amplifier, parameters.value]
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": [parameters.bias], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.Adam(groups, lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=1)
    with torch.enable_grad():
        while trained.steps < training.steps:
            neurons = parameters.neurons()
            answer = cross_entropy(
                read_logits(lm, one, neurons, act), one.labels, label_smoothing=training.smoothing
            )
            own, quiet = losses_of_neurons(neurons, queries, memory.training, training)
            loss = answer + training.activation_weight * own + training.memory_weight * quiet
            if not math.isfinite(loss.item()):
                raise NonFinite(
                    f"the loss of the neurons is {loss.item()} at step {trained.steps + 1}.",
                    where=where,
                    hint="Lower the learning rate, or load the model in float32.",
                )
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*decayed, parameters.bias], training.clip)
            optimiser.step()
            trained.steps += 1
            since = trained.steps - training.first_check
            if since >= 0 and since % training.check_every == 0:
                trained.losses.append(loss.item())
                schedule.step(loss.item())
                trained.neurons = _detach(parameters)
                if _settled(lm, one, memory.validation, trained, training, queries, act):
                    trained.stop = "memory"
                    break
    trained.neurons = _detach(parameters)
    if act is torch.relu:
        trained.neurons = raise_gate(trained.neurons, queries, training.gate)
    return trained


def raise_gate(neurons: Neurons, own: Float[Tensor, "n d_model"], gate: float) -> Neurons:
    """Make neurons with relu silent below a share of their own activation value z.

    b becomes b - gate z and v becomes v / (1 - gate): the term at the own query stays, a query that
    excites the neuron by less than gate z adds nothing. Silence on other questions then has a
    margin of gate z, where a threshold of zero leaves it to the rounding of a processor. A neuron
    whose own value is not positive stays as it is.

    Args:
        neurons: The neurons.
        own: Query of each.
        gate: From 0 (nothing changes) to below 1.
    """
    z = ((own * neurons.keys).sum(1) + neurons.biases).clamp_min(0)
    scale = torch.where(z > 0, 1 / (1 - gate), 1.0)[:, None]
    return Neurons(neurons.keys, neurons.biases - gate * z, neurons.values * scale.to(z.dtype))


def losses_of_neurons(
    neurons: Neurons,
    own: Float[Tensor, "n d_model"],
    memory: Float[Tensor, "m d_model"],
    training: NeuronTraining,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the activation loss l_a and the memory loss l_m1 + l_m2, averaged over neurons.

    l_a = TopMean exp(-z + alpha) over the neuron's own queries; l_m1 = TopMean exp(z_m - z +
    beta_1) over memory and own queries; l_m2 = TopMean exp(z_m - beta_2) over the memory. TopMean
    takes the mean of the largest terms. Neuron i has the one own query `own[i]`.

    Reference: Huang et al. 2023, equations 8 to 12.
    """
    z = (own * neurons.keys).sum(1) + neurons.biases
    quiet = neurons.activations(memory)
    loud = _top_mean((training.activation_margin - z).exp()[None], training.top_own)
    apart = _top_mean((quiet - z + training.memory_margin).exp(), training.top_memory)
    below = _top_mean((quiet - training.silence).exp(), training.top_memory)
    return loud.mean(), (apart + below).mean()


def _top_mean(terms: Float[Tensor, "m n"], count: int) -> Float[Tensor, " n"]:
    if not len(terms):
        return terms.new_zeros(terms.shape[1])
    return terms.topk(min(count, len(terms)), dim=0).values.mean(0)


def _first_parameters(
    queries: Float[Tensor, "n d_model"], training: NeuronTraining, seed: int
) -> _Parameters:
    """Return K = q / ||q||^2, b = 0, v = a w, so that the own activation value is 1."""
    length = queries.norm(dim=1, keepdim=True).clamp_min(torch.finfo(queries.dtype).tiny)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(queries.shape, generator=generator, dtype=torch.float64)
    value = (training.value_noise * noise).to(queries)
    return _Parameters(
        _leaf(queries / length),
        _leaf(torch.zeros_like(length[:, 0])),
        _leaf(torch.full_like(queries, training.amplifier)),
        _leaf(value),
        length,
    )


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


@torch.no_grad()
def _settled(
    lm: LanguageModel,
    one: FactRun,
    validation: Float[Tensor, "m d_model"],
    trained: TrainedNeurons,
    training: NeuronTraining,
    own: Float[Tensor, "n d_model"],
    act: Activation,
) -> bool:
    """Return whether the target is the answer and the validation loss has stopped falling."""
    if wrong_tokens(lm, one, trained.neurons, act):
        return False
    best = min(trained.memory_losses, default=math.inf)
    _, loss = losses_of_neurons(trained.neurons, own, validation, training)
    trained.memory_losses.append(float(loss))
    return float(loss) > best - _LEARNT


def _drop_own_queries(
    memory: Float[Tensor, "m d_model"], own: Float[Tensor, "n d_model"]
) -> Float[Tensor, "m d_model"]:
    """Return the memory without the own queries."""
    keep: Bool[Tensor, " m"] = torch.ones(len(memory), dtype=torch.bool, device=memory.device)
    for query in own:
        keep &= (memory - query).norm(dim=1) > _SAME_QUERY * query.norm()
    return memory[keep]


def _detach(parameters: _Parameters) -> Neurons:
    return Neurons(*(tensor.detach().clone() for tensor in parameters.neurons()))
