"""Editors with a trained network: sites, training, state, notes, and normalisation of inputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple, cast

import torch
from jaxtyping import Float
from pydantic import Field, JsonValue
from torch import Tensor, nn

from corrigenda.editor import Edit, Editor, Requires, Supports
from corrigenda.engines.gradients import LabelledRow, by_length, labelled_rows, mean_losses
from corrigenda.errors import MissingState
from corrigenda.facts import Fact
from corrigenda.linalg.running import RunningStatistics
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, resolve_sites
from corrigenda.patch import Change, Header, WeightPatch, header_for
from corrigenda.patch.notes import EVEN_ODDS, round_values
from corrigenda.progress import Progress
from corrigenda.state import State
from corrigenda.training import QUIET, Schedule, TrainingJob, TrainingReport, Turn, train

_FAR = 4
_EPSILON = 1e-7

LayersByPart = tuple[int, ...] | dict[str, tuple[int, ...]]


class TrainingPlan(NamedTuple):
    """Optimiser, step, validation and schedule of a training; see `corrigenda.training.train`."""

    optimiser: torch.optim.Optimizer
    num_items: int
    step: Callable[[Turn], float]
    validate: Callable[[], Mapping[str, float]]
    schedule: Schedule


class Changes(NamedTuple):
    """Changes of weights that a network computes for facts, with notes.

    Attributes:
        changes: By site.
        notes: Notes of the method, besides those of all methods with a network.
        notices: Notices for the user, besides those on single facts.
        losses: Loss of the answer of each fact before the edit, in nats, where known already.
    """

    changes: Mapping[Site, Change]
    notes: Mapping[str, object] = {}
    notices: tuple[str, ...] = ()
    losses: Mapping[int, float] | None = None


class HypernetworkEditor(Editor):
    """Editor whose network, trained once for a model, turns gradients of facts into changes.

    A method sets `last_blocks` and `default_parts` (the weights that change by default) and
    implements `build_network`, `plan_training` and `compute_changes`.
    """

    requires: ClassVar[Requires] = Requires(training_set=True)
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, exact=False, order_free=True
    )
    required_match: ClassVar[tuple[str, ...]] = ()
    """Options, besides those that shapes determine, that must be equal in training and edit."""
    last_blocks: ClassVar[int]
    """How many of the last blocks change by default."""
    default_parts: ClassVar[tuple[str, ...]] = ("mlp.down",)
    """Parts of these blocks that change by default, of those that the model has."""

    layers: LayersByPart | None = Field(
        default=None,
        description="Blocks whose down projections change, or blocks by part; see the card for "
        "what is taken if not given.",
    )
    steps: int = Field(default=10_000, ge=1, description="Steps of training, at most.")
    validate_every: int = Field(default=500, ge=1, description="Steps between validations.")
    patience: int | None = Field(
        default=None, ge=1, description="Stop after so many steps without a better validation."
    )
    micro_batch: int = Field(default=32, ge=1, description="Rows of tokens in one pass.")
    seed: int = Field(default=0, description="Of the network's first values and of the training.")

    @abstractmethod
    def build_network(self, lm: LanguageModel) -> nn.Module:
        """Build the untrained network for a model, on the CPU."""

    @abstractmethod
    def plan_training(
        self,
        lm: LanguageModel,
        network: nn.Module,
        facts: tuple[Fact, ...],
        progress: Progress | None,
    ) -> TrainingPlan:
        """Plan the training of the untrained network on facts."""

    @abstractmethod
    def compute_changes(
        self, lm: LanguageModel, facts: Sequence[Fact], rows: Sequence[LabelledRow], state: State
    ) -> Changes:
        """Compute the changes for facts, at least one; each has its row."""

    def default_blocks(self, lm: LanguageModel) -> tuple[int, ...]:
        """Return the blocks that change by default: the last ones."""
        return tuple(range(max(0, lm.num_layers - self.last_blocks), lm.num_layers))

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return the weights that change, lowest first.

        Raises:
            UnknownSite (CG303): the model has no such block or part.
        """
        layers = self.layers
        if layers is None:
            parts = [part for part in self.default_parts if part in lm.family.slots]
            layers = dict.fromkeys(parts, self.default_blocks(lm))
        return resolve_sites(lm, layers, where=f"method {self.name}")

    def train(
        self,
        lm: LanguageModel,
        facts: tuple[Fact, ...],
        job: TrainingJob = QUIET,
    ) -> State:
        """Train the network; see `corrigenda.editor.Editor.train`."""
        network = self.build_network(lm).to(solve_device(lm))
        plan = self.plan_training(lm, network, facts, job.progress)
        report = train(
            network,
            plan.optimiser,
            num_items=plan.num_items,
            step=plan.step,
            validate=plan.validate,
            schedule=plan.schedule,
            job=job,
            key=f"{lm.recall_digest()} {self.model_dump_json()}",
        )
        return self.save_network(lm, network, report)

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Compute changes of weights with the trained network; the model is left as it is.

        Raises:
            MissingState (CG503): `fit` was not called, or with other settings.
            WrongBase (CG401): the state was trained on another model.
            PromptTooLong (CG105): a prompt and its target exceed the context.
            UnknownSite (CG303): see `sites`.
            NonFinite (CG201): inputs of weights or gradients are infinite or NaN.
        """
        if not facts:
            return Edit(WeightPatch({}, self.make_header(lm, facts, {})), state)
        state = state or State()
        rows = labelled_rows(lm, facts)
        computed = self.compute_changes(lm, facts, rows, state)
        notes = self.make_notes(lm, facts, rows, computed, state)
        return Edit(WeightPatch(computed.changes, self.make_header(lm, facts, notes)), state)

    def make_schedule(self, batch_size: int, clip: float | None, accumulate: int = 1) -> Schedule:
        """Make the schedule of the training from the options."""
        return Schedule(
            steps=self.steps,
            batch_size=batch_size,
            accumulate=accumulate,
            validate_every=self.validate_every,
            patience=self.patience,
            clip=clip,
            seed=self.seed,
        )

    def save_network(self, lm: LanguageModel, network: nn.Module, report: TrainingReport) -> State:
        """Return a state that holds a network and the report of its training."""
        tensors = {
            f"{self.name}/{name}": tensor.detach().cpu().clone()
            for name, tensor in network.state_dict().items()
        }
        sites: list[JsonValue] = [str(site) for site in self.sites(lm)]
        about: dict[str, JsonValue] = {
            "sites": sites,
            "config": self.model_dump(mode="json"),
            "training": report.to_json(),
        }
        return State(tensors, {self.name: about})

    def load_network(self, lm: LanguageModel, state: State) -> nn.Module:
        """Return the trained network that a state holds, ready for use.

        Raises:
            MissingState (CG503): there is none, or it was trained for other weights or sizes.
            WrongBase (CG401): it was trained on another model.
        """
        if self.name not in state.meta:
            raise MissingState(
                f"{self.name} edits with a network that has to be trained first.",
                where=f"method {self.name}",
                hint="Call `editor.fit(lm)` and pass its state.",
            )
        state.require_base(lm)
        network, prefix = self.build_network(lm), f"{self.name}/"
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.tensors.items()
            if name.startswith(prefix)
        }
        expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
        sites = cast("dict[str, JsonValue]", state.meta[self.name])["sites"]
        own = self.model_dump(mode="json")
        if (
            expected != {name: tensor.shape for name, tensor in tensors.items()}
            or sites != [str(site) for site in self.sites(lm)]
            or any(
                self.read_record(state, "config")[name] != own[name] for name in self.required_match
            )
        ):
            raise MissingState(
                "the network in this state was trained for other weights or with other settings.",
                where=f"method {self.name}; the state is for {sites}",
                hint="Fit with the same editor that edits.",
            )
        network.load_state_dict(tensors)
        return network.to(solve_device(lm)).eval().requires_grad_(False)

    def read_record(self, state: State, part: str) -> dict[str, JsonValue]:
        """Return `config` (options) or `training` (report) of the training from a state."""
        about = cast("dict[str, dict[str, JsonValue]]", state.meta[self.name])
        return about[part]

    def make_header(
        self, lm: LanguageModel, facts: Sequence[Fact], notes: Mapping[str, object]
    ) -> Header:
        """Make the header of a patch of this editor."""
        config = self.model_dump(mode="json")
        return header_for(lm, method=self.name, config=config, facts=facts, notes=notes)

    def make_notes(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        rows: Sequence[LabelledRow],
        computed: Changes,
        state: State,
    ) -> dict[str, object]:
        """Collect losses of the answers before and after, statuses of facts, and the training."""
        before = self._answer_losses(lm, rows) if computed.losses is None else computed.losses
        patch = WeightPatch(computed.changes, Header(method=self.name))
        with patch.apply(lm, mode="runtime"):
            after = self._answer_losses(lm, rows)
        pairs = [(before[row.fact], after[row.fact]) for row in rows]
        statuses = ["written" if late <= EVEN_ODDS else "not converged" for _, late in pairs]
        unwritten = [
            f"{fact.label}: {status}; the answer's loss went from {early:.2f} to {late:.2f}."
            for fact, status, (early, late) in zip(facts, statuses, pairs, strict=True)
            if status != "written"
        ]
        return {
            "status": statuses,
            "notices": [*computed.notices, *unwritten],
            "losses": [round_values(pair) for pair in pairs],
            "norms": {str(site): float(f"{norm:.6g}") for site, norm in patch.norms().items()},
            "layers": sorted({site.layer for site in computed.changes}),
            "training": {
                name: self.read_record(state, "training")[name]
                for name in ("steps", "best_step", "best_loss")
            },
            **computed.notes,
        }

    def _answer_losses(self, lm: LanguageModel, rows: Sequence[LabelledRow]) -> dict[int, float]:
        found: dict[int, float] = {}
        for batch in by_length(rows, self.micro_batch):
            losses = mean_losses(lm, batch)
            found |= {row.fact: loss for row, loss in zip(batch, losses, strict=True)}
        return found


def solve_device(lm: LanguageModel) -> torch.device:
    """Return the device of networks and solvers: the CPU for accelerators without float64."""
    return lm.device if lm.device.type == "cuda" else torch.device("cpu")


def differs_in_scale(trained: int, edited: int) -> bool:
    """Whether a number of facts differs more than fourfold from the one of the training."""
    return edited * _FAR < trained or edited > trained * _FAR


class RunningNorm(nn.Module):
    """Normalisation of inputs by running statistics that are frozen after training.

    Count, mean and spread of each coordinate are float64 buffers, so they are saved and resumed
    with the network. Rows may come in pieces of any size, one at a time as well.
    """

    def __init__(self, width: int) -> None:
        """Create empty statistics of rows of this width."""
        super().__init__()
        for name, tensor in RunningStatistics.empty(width).tensors().items():
            self.register_buffer(name, tensor.clone())

    @property
    def statistics(self) -> RunningStatistics:
        """Statistics of all rows so far, on the CPU."""
        names = ("count", "mean", "squares")
        return RunningStatistics.from_tensors({name: self.get_buffer(name).cpu() for name in names})

    @torch.no_grad()
    def update(self, rows: Float[Tensor, "n d"]) -> None:
        """Take rows into the statistics."""
        for name, tensor in self.statistics.with_samples(rows).tensors().items():
            self.get_buffer(name).copy_(tensor)

    def forward(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the rows less the mean, in units of the standard deviation; float64."""
        statistics = self.statistics
        rows = rows.double()
        return (rows - statistics.mean.to(rows.device)) / (
            statistics.std.to(rows.device) + _EPSILON
        )
