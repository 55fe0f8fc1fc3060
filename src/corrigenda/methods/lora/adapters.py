"""Training of low-rank adapters through `peft`, which leaves the model as it was.

`peft` replaces modules of the model in place. Here that lasts as long as a training: the very
modules that were there are put back, with every flag, also when something raises.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from corrigenda.engines.gradients import LabelledRow, backward_scaled, predict
from corrigenda.errors import (
    CorrigendaError,
    MissingExtra,
    MissingState,
    NonFinite,
    QuantisedWeights,
    UnknownFamily,
)
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.kv_cache import batches
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.storage import is_transposed

NAME = "edit"
"""What `peft` calls the adapter while it is in the model."""


Adapter = Mapping[str, Tensor]
"""Tensors of one adapted module: A (r, d_in), B (d_out, r), and what else the method has."""


class AdapterTraining(Protocol):
    """Settings of the training of adapters; options of `AdapterEditor` have these names."""

    @property
    def steps(self) -> int:
        """Passes over all facts, at most."""
        ...

    @property
    def learning_rate(self) -> float:
        """Step size of Adam (betas 0.9 and 0.999, eps 1e-8)."""
        ...

    @property
    def batch_size(self) -> int:
        """Facts in one step."""
        ...

    @property
    def dropout(self) -> float:
        """Share of an adapter's inputs that is dropped."""
        ...

    @property
    def clip(self) -> float | None:
        """Longest gradient of a step; None for no bound."""
        ...

    @property
    def stop_loss(self) -> float:
        """Loss below which facts whose every token is the first choice take no step."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the first values and of the dropout."""
        ...


@dataclass
class TrainedAdapters:
    """Result of training adapters on facts; no gradients.

    Attributes:
        initial: Loss of each fact's answer before training, in nats.
        adapters: By module path, on the CPU.
        losses: Loss of each fact in each pass, before the step it took part in.
        final: Loss of each fact after training.
        penalties: What the method adds to the loss, in each step.
        ranks: Directions in use after each step, over all modules.
        stop: "true already" where no pass was made, "loss" where one took no step, else "steps".
    """

    initial: list[float]
    adapters: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    losses: list[list[float]] = field(default_factory=list)
    final: list[float] = field(default_factory=list)
    penalties: list[float] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    stop: Literal["true already", "loss", "steps"] = "steps"


class AdapterKind(ABC):
    """Form of an adapter: its parameters, first values, change of the weight and penalty."""

    @abstractmethod
    def attach(self, model: nn.Module, paths: Sequence[str], num_steps: int) -> nn.Module:
        """Insert adapters called `NAME`, without dropout; returns the `peft` tuner."""

    @abstractmethod
    def parameters(self, layer: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters to train of one adapted module."""

    @abstractmethod
    def first_values(self, parameters: Adapter, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw first values of an adapter, with a product of zero; CPU, float32."""

    @abstractmethod
    def factors(self, adapter: Adapter) -> LowRank:
        """Return the change of the whole module's weight, scale included, of rank at most r."""

    def penalty(self, adapters: Sequence[Adapter]) -> Float[Tensor, ""] | None:
        """Return what is added to the loss; None for nothing."""
        return None

    @abstractmethod
    def after_step(self, tuner: nn.Module, step: int) -> None:
        """Adjust adapters after a step of Adam, gradients in place; steps count from 1."""

    def is_settled(self, step: int, num_steps: int) -> bool:
        """Whether step `step` of `num_steps` may be left out if its facts hold."""
        return True


def train(
    lm: LanguageModel,
    kind: AdapterKind,
    paths: Sequence[str],
    rows: Sequence[LabelledRow],
    names: Sequence[str],
    training: AdapterTraining,
    previous: Mapping[str, Adapter],
) -> TrainedAdapters:
    """Train adapters on facts and take them out of the model again.

    Minimises the mean of -log p over the answers' tokens, plus the penalty, mini-batch by
    mini-batch in the order given, with Adam.

    Args:
        lm: The model.
        kind: The form of an adapter.
        paths: Modules to adapt.
        rows: The facts in tokens, at least one.
        names: How messages refer to each fact.
        training: Settings of the training.
        previous: Adapters to start from, by path; others start from values drawn with the seed.

    Raises:
        NonFinite (CG201): a loss is not a number.
        MissingState (CG503): `previous` has other shapes.
        UnknownFamily (CG302): the model holds adapters of `peft` already.

    Reference: LoRA (Hu et al. 2022), section 4.1; as an editor in KnowEdit (Zhang et al. 2024).
    """
    size = training.batch_size
    groups = [range(at, min(at + size, len(rows))) for at in range(0, len(rows), size)]
    num_steps = training.steps * len(groups)
    with inject(lm, kind, paths, num_steps) as (tuner, layers), torch.enable_grad():
        dropouts = initialise(lm, kind, layers, training, previous)
        adapters = {path: kind.parameters(layer) for path, layer in layers.items()}
        trainable = [one for adapter in adapters.values() for one in adapter.values()]
        optimiser = torch.optim.Adam(trainable, lr=training.learning_rate)
        initial, hold = measure(lm, rows, names)
        trained = TrainedAdapters(initial, losses=[[] for _ in rows])
        if hold and max(initial) < training.stop_loss:
            trained.stop = "true already"
        dropouts.train()
        step = 0
        for _ in range(training.steps if trained.stop == "steps" else 0):
            before = len(trained.ranks)
            for group in groups:
                step += 1
                scores = score(lm, [rows[index] for index in group])
                own = average_by_fact(scores.losses, rows, group, names)
                for index, loss in zip(group, own, strict=True):
                    trained.losses[index].append(loss)
                held = bool(scores.hits.all()) and max(own) < training.stop_loss
                if held and kind.is_settled(step, num_steps):
                    continue
                loss, penalty = scores.losses.mean(), kind.penalty(list(adapters.values()))
                if penalty is not None:
                    trained.penalties.append(float(penalty.detach()))
                    loss = loss + penalty.to(loss.device)
                _step(lm, optimiser, loss, training.clip)
                kind.after_step(tuner, step)
                optimiser.zero_grad()
                trained.ranks.append(sum(kind.factors(one).rank for one in adapters.values()))
            if len(trained.ranks) == before:
                trained.stop = "loss"
                break
        dropouts.eval()
        trained.final, _ = measure(lm, rows, names)
        trained.adapters = {
            path: {key: tensor.detach().cpu().clone() for key, tensor in adapter.items()}
            for path, adapter in adapters.items()
        }
    return trained


def initialise(
    lm: LanguageModel,
    kind: AdapterKind,
    layers: Mapping[str, nn.Module],
    training: AdapterTraining,
    previous: Mapping[str, Adapter],
) -> nn.ModuleList:
    """Set first values, in at least float32; returns the dropouts, switched off."""
    generator = torch.Generator().manual_seed(training.seed)
    dtype = torch.promote_types(lm.dtype, torch.float32)
    dropouts = nn.ModuleList()
    for path, layer in layers.items():
        parameters = kind.parameters(layer)
        values = previous.get(path) or kind.first_values(parameters, generator)
        for key, parameter in parameters.items():
            if values[key].shape != parameter.shape:
                raise MissingState(
                    f"the state holds adapters of another size: {key} is "
                    f"{tuple(values[key].shape)}, not {tuple(parameter.shape)}.",
                    where=f"module {path}",
                    hint="Continue with the same rank, or start without a state.",
                )
            parameter.data = values[key].to(parameter.device, dtype, copy=True)
        if training.dropout:
            one = _Dropout(training.dropout, generator)
            layer.get_submodule("lora_dropout").add_module(NAME, one)
            dropouts.append(one)
    return dropouts.eval()


def _step(
    lm: LanguageModel,
    optimiser: torch.optim.Optimizer,
    loss: Float[Tensor, ""],
    clip: float | None,
) -> None:
    parameters: list[nn.Parameter] = optimiser.param_groups[0]["params"]
    backward_scaled(lm, loss, parameters)
    if clip is not None:
        nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()


@contextmanager
def inject(
    lm: LanguageModel, kind: AdapterKind, paths: Sequence[str], num_steps: int
) -> Generator[tuple[nn.Module, dict[str, nn.Module]]]:
    """Insert adapters into a model until the context is left.

    Yields the `peft` tuner and the adapted modules by path.

    Whatever happens, the model gets back the modules it had, which parameters want gradients, and
    its attributes. The global random state stays as it is.

    Raises:
        UnknownFamily (CG302): it holds adapters of `peft` already.
        QuantisedWeights (CG304): `peft` has no adapter for modules that store weights so.
    """
    model = lm.model
    _require_no_adapters(lm)
    modules = {path: model.get_submodule(path) for path in paths}
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    attributes = set(vars(model))
    try:
        with torch.random.fork_rng([lm.device] if lm.device.type == "cuda" else []):
            tuner = _attach(lm, kind, modules, num_steps)
        yield tuner, {path: model.get_submodule(path) for path in paths}
    finally:
        for path, module in modules.items():
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, module)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for name in set(vars(model)) - attributes:
            delattr(model, name)


def _attach(
    lm: LanguageModel, kind: AdapterKind, modules: Mapping[str, nn.Module], num_steps: int
) -> nn.Module:
    try:
        return kind.attach(lm.model, list(modules), num_steps)
    except CorrigendaError:
        raise
    except (ValueError, AttributeError, TypeError) as error:
        if not lm.is_quantised:
            raise
        names = sorted({type(one).__name__ for one in modules.values()})
        raise QuantisedWeights(
            f"peft has no adapter for modules of type {', '.join(names)}.",
            where=f"{lm.name}: {error}",
            hint="Load the model unquantised or quantised otherwise, or choose another method.",
        ) from error


class _Dropout(nn.Module):
    """Dropout whose masks come from a generator of its own: the same ones on every device."""

    def __init__(self, rate: float, generator: torch.Generator) -> None:
        super().__init__()
        self.rate, self.generator = rate, generator

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_in"]:
        if not self.training:
            return x
        mask = torch.rand(x.shape, generator=self.generator) >= self.rate
        return x * mask.to(x.device) / (1.0 - self.rate)


class AnswerScores(NamedTuple):
    """Losses and hits of the labels, one entry a label, row after row.

    Attributes:
        losses: -log p of the label, in nats.
        hits: Whether the label is the most likely token.
    """

    losses: Float[Tensor, " labels"]
    hits: Bool[Tensor, " labels"]


def score(lm: LanguageModel, rows: Sequence[LabelledRow]) -> AnswerScores:
    """Score the answers' tokens of some rows in one pass; gradients flow to what is trained."""
    logits, labels = predict(lm, rows)
    return AnswerScores(
        cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels
    )


@torch.no_grad()
def measure(
    lm: LanguageModel, rows: Sequence[LabelledRow], names: Sequence[str]
) -> tuple[list[float], bool]:
    """Measure each fact's mean loss, and whether every token is the model's first choice."""
    found, hold = [0.0] * len(rows), True
    for group in batches(lm, [len(row.ids) for row in rows], None):
        scores = score(lm, [rows[index] for index in group])
        hold = hold and bool(scores.hits.all())
        for index, loss in zip(
            group, average_by_fact(scores.losses, rows, group, names), strict=True
        ):
            found[index] = loss
    return found, hold


def average_by_fact(
    losses: Float[Tensor, " labels"],
    rows: Sequence[LabelledRow],
    group: Sequence[int],
    names: Sequence[str],
) -> list[float]:
    """Average the losses of each fact of a group.

    Raises:
        NonFinite (CG201): one is not a number.
    """
    parts = losses.detach().split([len(rows[index].labels) for index in group])
    means = [float(part.mean()) for part in parts]
    for index, mean in zip(group, means, strict=True):
        if not math.isfinite(mean):
            raise NonFinite(
                f"the loss of an answer is {mean}.",
                where=names[index],
                hint="The model gives no finite probabilities here: earlier edits may have broken "
                "it, the learning rate is too high, or its number format overflows (try float32).",
            )
    return means


def require_peft(method: str) -> None:
    """Check that adapters can be trained.

    Raises:
        MissingExtra (CG504): `peft` is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingExtra(
            f"the method {method} needs the package peft.", hint="pip install 'corrigenda[peft]'"
        )


def _require_no_adapters(lm: LanguageModel) -> None:
    layer = importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer
    held = next((path for path, one in lm.model.named_modules() if isinstance(one, layer)), None)
    if held is not None:
        raise UnknownFamily(
            "the model holds adapters of peft already.",
            where=f"{lm.name}, module {held}",
            hint="Merge them into the weights or unload them first.",
        )


def is_transposed_at(model: nn.Module, paths: Sequence[str]) -> bool:
    """Whether the modules store their weights as (d_in, d_out)."""
    return any(is_transposed(model.get_submodule(path)) for path in paths)
