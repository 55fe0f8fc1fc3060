"""What editors with a trained network share: sites, training, what is kept and what is reported."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, cast

import torch
from pydantic import Field, JsonValue
from torch import nn

from corrigenda.editor import Edit, Editor, Requires, Supports
from corrigenda.engines.gradients import LabelledRow, by_length, labelled_rows, mean_losses
from corrigenda.errors import MissingState
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, resolve_sites
from corrigenda.patch import Change, Header, WeightPatch, header_for
from corrigenda.progress import Progress
from corrigenda.state import State
from corrigenda.training import Schedule, Trained, Turn, train

_EVEN_ODDS = math.log(2.0)
_FAR = 4

Layers = tuple[int, ...] | dict[str, tuple[int, ...]]


class Course(NamedTuple):
    """What `corrigenda.training.train` runs for a network; see there."""

    optimiser: torch.optim.Optimizer
    num_items: int
    step: Callable[[Turn], float]
    validate: Callable[[], Mapping[str, float]]
    schedule: Schedule


class Made(NamedTuple):
    """What a network made of facts.

    Attributes:
        changes: By site.
        notes: What the method has to tell, besides what all tell.
        notices: What the user should know, besides what concerns a single fact.
        losses: Of the answer of each fact before the edit, in nats, where they are known already.
    """

    changes: Mapping[Site, Change]
    notes: Mapping[str, object] = {}
    notices: tuple[str, ...] = ()
    losses: Mapping[int, float] | None = None


class HypernetworkEditor(Editor):
    """A network, trained once for a model, turns the gradients of facts into changes of weights."""

    requires: ClassVar[Requires] = Requires(training_set=True)
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, exact=False, order_free=True
    )
    agreed: ClassVar[tuple[str, ...]] = ()
    """Settings, besides those that shapes tell, that an edit must share with the training."""

    layers: Layers | None = Field(
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
    def default_layers(self, lm: LanguageModel) -> Layers:
        """The blocks, by part or of the down projections, that change if none are given."""

    @abstractmethod
    def network(self, lm: LanguageModel) -> nn.Module:
        """The untrained network for a model, on the CPU."""

    @abstractmethod
    def course(
        self,
        lm: LanguageModel,
        network: nn.Module,
        facts: tuple[Fact, ...],
        progress: Progress | None,
    ) -> Course:
        """How the untrained network is trained on facts."""

    @abstractmethod
    def made(
        self, lm: LanguageModel, facts: Sequence[Fact], rows: Sequence[LabelledRow], state: State
    ) -> Made:
        """What the trained network makes of facts, at least one; each has its row."""

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """The weights that change, lowest first.

        Raises:
            UnknownSite (CG303): the model has no such block or part.
        """
        layers = self.default_layers(lm) if self.layers is None else self.layers
        return resolve_sites(lm, layers, where=f"method {self.name}")

    def train(
        self,
        lm: LanguageModel,
        facts: tuple[Fact, ...],
        *,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> State:
        """Train the network; see `corrigenda.editor.Editor.train`."""
        network = self.network(lm).to(home(lm))
        course = self.course(lm, network, facts, progress)
        trained = train(
            network,
            course.optimiser,
            num_items=course.num_items,
            step=course.step,
            validate=course.validate,
            schedule=course.schedule,
            checkpoint=checkpoint,
            key=f"{lm.digest()} {self.model_dump_json()}",
            progress=progress,
        )
        return self.learned(lm, network, trained)

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Change weights by what the network makes of the facts; the model is left as it is.

        Raises:
            MissingState (CG503): `fit` was not called, or with other settings.
            WrongBase (CG401): the state was trained on another model.
            PromptTooLong (CG105): a prompt and its target exceed the context.
            UnknownSite (CG303): see `sites`.
            NonFinite (CG201): inputs of weights or gradients are infinite or NaN.
        """
        if not facts:
            return Edit(WeightPatch({}, self.header(lm, facts, {})), state)
        state = state or State()
        rows = labelled_rows(lm, facts)
        made = self.made(lm, facts, rows, state)
        notes = self.notes(lm, facts, rows, made, state)
        return Edit(WeightPatch(made.changes, self.header(lm, facts, notes)), state)

    def schedule(self, batch_size: int, clip: float | None, accumulate: int = 1) -> Schedule:
        """How long the network is trained."""
        return Schedule(
            steps=self.steps,
            batch_size=batch_size,
            accumulate=accumulate,
            validate_every=self.validate_every,
            patience=self.patience,
            clip=clip,
            seed=self.seed,
        )

    def learned(self, lm: LanguageModel, network: nn.Module, trained: Trained) -> State:
        """A network and the story of its training as a state."""
        tensors = {
            f"{self.name}/{name}": tensor.detach().cpu().clone()
            for name, tensor in network.state_dict().items()
        }
        sites: list[JsonValue] = [str(site) for site in self.sites(lm)]
        about: dict[str, JsonValue] = {
            "sites": sites,
            "config": self.model_dump(mode="json"),
            "training": trained.to_json(),
        }
        return State(tensors, {self.name: about})

    def restored(self, lm: LanguageModel, state: State) -> nn.Module:
        """The trained network that a state holds, ready to be asked.

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
        network, prefix = self.network(lm), f"{self.name}/"
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
            or any(self.trained(state, "config")[name] != own[name] for name in self.agreed)
        ):
            raise MissingState(
                "the network in this state was trained for other weights or with other settings.",
                where=f"method {self.name}; the state is for {sites}",
                hint="Fit with the same editor that edits.",
            )
        network.load_state_dict(tensors)
        return network.to(home(lm)).eval().requires_grad_(False)

    def trained(self, state: State, part: str) -> dict[str, JsonValue]:
        """What a state tells of its training: `config`, the settings, or `training`, the story."""
        about = cast("dict[str, dict[str, JsonValue]]", state.meta[self.name])
        return about[part]

    def header(
        self, lm: LanguageModel, facts: Sequence[Fact], notes: Mapping[str, object]
    ) -> Header:
        """The header of a patch of this editor."""
        config = self.model_dump(mode="json")
        return header_for(lm, method=self.name, config=config, facts=facts, notes=notes)

    def notes(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        rows: Sequence[LabelledRow],
        made: Made,
        state: State,
    ) -> dict[str, object]:
        """Losses of the answers before and after, a status for each fact, and the training."""
        before = self._losses(lm, rows) if made.losses is None else made.losses
        patch = WeightPatch(made.changes, Header(method=self.name))
        with patch.apply(lm, mode="runtime"):
            after = self._losses(lm, rows)
        pairs = [(before[row.fact], after[row.fact]) for row in rows]
        statuses = ["written" if late <= _EVEN_ODDS else "not converged" for _, late in pairs]
        unwritten = [
            f"{fact.label}: {status}; the answer's loss went from {early:.2f} to {late:.2f}."
            for fact, status, (early, late) in zip(facts, statuses, pairs, strict=True)
            if status != "written"
        ]
        return {
            "status": statuses,
            "notices": [*made.notices, *unwritten],
            "losses": [[float(f"{loss:.6g}") for loss in pair] for pair in pairs],
            "norms": {str(site): float(f"{norm:.6g}") for site, norm in patch.norms().items()},
            "layers": sorted({site.layer for site in made.changes}),
            "training": {
                name: self.trained(state, "training")[name]
                for name in ("steps", "best_step", "best_loss")
            },
            **made.notes,
        }

    def _losses(self, lm: LanguageModel, rows: Sequence[LabelledRow]) -> dict[int, float]:
        found: dict[int, float] = {}
        for batch in by_length(rows, self.micro_batch):
            losses = mean_losses(lm, batch)
            found |= {row.fact: loss for row, loss in zip(batch, losses, strict=True)}
        return found


def home(lm: LanguageModel) -> torch.device:
    """Where networks are and systems are solved: other accelerators than CUDA have no float64."""
    return lm.device if lm.device.type == "cuda" else torch.device("cpu")


def far_from(trained: int, edited: int) -> bool:
    """Whether a number of facts is far from the one that a network was trained with."""
    return edited * _FAR < trained or edited > trained * _FAR
