"""What editors with a trained network share: sites, keeping what was learned, what is reported."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from pydantic import Field, JsonValue
from torch import nn

from corrigenda.editor import Editor, Needs
from corrigenda.errors import MissingState, UnknownSite
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods._gradients import Labelled, by_length, mean_losses
from corrigenda.patch import Change, Header, WeightPatch, header_for
from corrigenda.state import State
from corrigenda.training import Schedule, Trained

_EVEN_ODDS = math.log(2.0)
_FAR = 4

Layers = tuple[int, ...] | dict[str, tuple[int, ...]]


class HyperEditor(Editor):
    """A network, trained once for a model, turns the gradients of facts into changes of weights."""

    needs: ClassVar[Needs] = Needs(training_set=True)
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

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """The weights that change, lowest first.

        Raises:
            UnknownSite (CG303): the model has no such block or part.
        """
        layers = self.default_layers(lm) if self.layers is None else self.layers
        if not isinstance(layers, dict):
            layers = {"mlp.down": layers}
        sites = [Site.parse(f"{layer}.{part}") for part, own in layers.items() for layer in own]
        for site in sites:
            if site.layer >= lm.num_layers:
                raise UnknownSite(
                    f"there is no block {site.layer} in {lm.name}: it has {lm.num_layers}, from 0.",
                    where=f"method {self.name}",
                    hint=f"Choose from 0 to {lm.num_layers - 1}.",
                )
        return tuple(sorted(set(sites)))

    def schedule(self, batch_size: int, clip: float | None) -> Schedule:
        """How the network is trained."""
        return Schedule(
            steps=self.steps,
            batch_size=batch_size,
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
        return State(tensors, {self.name: {**self._about(lm), "training": trained.to_json()}})

    def restored(self, lm: LanguageModel, state: State | None) -> nn.Module:
        """The trained network that a state holds, ready to be asked.

        Raises:
            MissingState (CG503): there is none, or it was trained for other weights or sizes.
            WrongBase (CG401): it was trained on another model.
        """
        if state is None or self.name not in state.meta:
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
        config, own = self.trained(state, "config"), self._about(lm)["config"]
        assert isinstance(own, dict)
        sites = cast("dict[str, JsonValue]", state.meta[self.name])["sites"]
        if (
            sites != self._about(lm)["sites"]
            or any(config[name] != own[name] for name in self.agreed)
            or expected != {name: tensor.shape for name, tensor in tensors.items()}
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

    def _about(self, lm: LanguageModel) -> dict[str, JsonValue]:
        sites = [str(site) for site in self.sites(lm)]
        return {"sites": list(sites), "config": self.model_dump(mode="json")}

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
        rows: Sequence[Labelled],
        changes: Mapping[Site, Change],
        state: State,
    ) -> dict[str, object]:
        """Losses of the answers before and after, a status for each fact, and the training."""
        before = self._losses(lm, rows)
        with WeightPatch(changes, Header(method=self.name)).apply(lm, mode="runtime"):
            after = self._losses(lm, rows)
        pairs = list(zip(before, after, strict=True))
        statuses = ["written" if late <= _EVEN_ODDS else "not converged" for _, late in pairs]
        return {
            "status": statuses,
            "notices": [
                f"{fact.label}: {status}; the answer's loss went from {early:.2f} to {late:.2f}."
                for fact, status, (early, late) in zip(facts, statuses, pairs, strict=True)
                if status != "written"
            ],
            "losses": [[float(f"{loss:.6g}") for loss in pair] for pair in pairs],
            "layers": sorted({site.layer for site in changes}),
            "training": {
                name: self.trained(state, "training")[name]
                for name in ("steps", "best_step", "best_loss")
            },
        }

    def _losses(self, lm: LanguageModel, rows: Sequence[Labelled]) -> list[float]:
        found: dict[int, float] = {}
        for batch in by_length(rows, self.micro_batch):
            losses = mean_losses(lm, batch)
            found |= {row.fact: loss for row, loss in zip(batch, losses, strict=True)}
        return [found[row.fact] for row in rows]


def home(lm: LanguageModel) -> torch.device:
    """Where networks are and systems are solved: other accelerators than CUDA have no float64."""
    return lm.device if lm.device.type == "cuda" else torch.device("cpu")


def far_from(trained: int, edited: int) -> bool:
    """Whether a number of facts is far from the one that a network was trained with."""
    return edited * _FAR < trained or edited > trained * _FAR
