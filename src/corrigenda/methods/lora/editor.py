"""LoRA and AdaLoRA: low-rank terms of a few projections, trained on the facts and merged."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from corrigenda.editor import Edit, Editor, Requires, Supports
from corrigenda.engines.gradients import labelled_rows
from corrigenda.errors import BadConfig, MissingState
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.footprint import USUAL_TOKENS, graph_bytes, head_bytes
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods.lora.adapters import (
    NAME,
    Adapter,
    AdapterKind,
    TrainedAdapters,
    is_transposed_at,
    require_peft,
    train,
)
from corrigenda.patch import WeightPatch, header_for
from corrigenda.patch.notes import EVEN_ODDS, round_series, round_values, summarise
from corrigenda.patch.runtime import added_at_run_time
from corrigenda.state import State

_SPREAD = 0.02
_RANK_OFFSET = 1e-5
# The step that chooses uses the scores of the steps before it.
_STEPS_TO_SCORE = 2


class AdapterEditor(AdapterKind, Editor):
    """Adam on adapters of frozen weights; a method defines the form of an adapter."""

    requires: ClassVar[Requires] = Requires()
    learns_rows: ClassVar[bool] = True
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, exact=False, order_free=False
    )

    parts: tuple[str, ...] = Field(
        default=("attn.q", "attn.v"), min_length=1, description="Parts of a block to adapt."
    )
    layers: tuple[int, ...] | None = Field(
        default=None, description="Blocks to adapt; all of them if not given."
    )
    alpha: float = Field(default=32.0, gt=0, description="Scale of the adapter, times its rank.")
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Share of an adapter's inputs dropped in training."
    )
    steps: int = Field(default=70, ge=1, description="Passes over all facts, at most.")
    learning_rate: float = Field(default=5e-3, gt=0, description="Of Adam.")
    batch_size: int = Field(default=1, ge=1, description="Facts in one step.")
    clip: float | None = Field(
        default=None, gt=0, description="Longest gradient of a step; no bound if not given."
    )
    stop_loss: float = Field(
        default=0.02,
        ge=0,
        description="Loss below which facts whose every token is the model's first choice take no "
        "step; a pass without a step is the last. 0 runs all passes.",
    )
    continued: bool = Field(
        default=False,
        description="Train on from the adapters of the earlier edit in the state, instead of "
        "putting new ones on top.",
    )
    seed: int = Field(default=0, description="Of the adapters' first values and of the dropout.")

    def notes(self, lm: LanguageModel, trained: TrainedAdapters) -> dict[str, object]:
        """Return what the method reports besides losses and ranks."""
        return {}

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return the weights to adapt, lowest first, and those that share a module with one.

        Raises:
            UnknownSite (CG303): the model has no such block or part, or it belongs to experts.
        """
        layers = range(lm.num_layers) if self.layers is None else self.layers
        wanted = {lm.module_path(Site(layer, part)) for layer in layers for part in self.parts}
        return tuple(
            site
            for layer in sorted(set(layers))
            for site in sorted(Site(layer, part) for part in lm.family.slots)
            if _module_path(lm, site) in wanted
        )

    def working_memory(self, lm: LanguageModel, num_facts: int) -> int:
        """Estimate the bytes of one graph above the lowest adapter, over a mini-batch of facts."""
        tokens = min(num_facts, self.batch_size) * USUAL_TOKENS
        lowest = self.sites(lm)[0].layer
        return graph_bytes(lm, lm.num_layers - lowest, tokens) + head_bytes(lm, tokens)

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Train adapters on all facts together; the model is left as it is.

        If the model gives every answer already, nothing is trained and the patch is empty.

        Raises:
            MissingExtra (CG504): `peft` is not installed.
            PromptTooLong (CG105): a fact does not fit into the context.
            NonFinite (CG201): the model gives no finite loss.
            MissingState (CG503): `continued`, and the state holds other adapters.
            WrongBase (CG401): the state comes from another model.
            UnknownSite (CG303): see `sites`.
            UnknownFamily (CG302): the model holds adapters of `peft` already.
        """
        state = state or State()
        config = self.model_dump(mode="json")
        if not facts:
            header = header_for(lm, method=self.name, config=config)
            return Edit(WeightPatch({}, header), state)
        require_peft(self.name)
        state.require_base(lm)
        rows = labelled_rows(lm, facts)
        by_path: dict[str, list[Site]] = {}
        for site in self.sites(lm):
            by_path.setdefault(lm.module_path(site), []).append(site)
        previous = self._previous(state, list(by_path))
        old = {path: -self.factors(adapter) for path, adapter in previous.items()}
        removed = {
            site: change for path in old for site, change in _split(lm, by_path[path], old[path])
        }
        names = [fact.label for fact in facts]
        with added_at_run_time(removed, lm) if removed else nullcontext():
            trained = train(lm, self, list(by_path), rows, names, self, previous)
        changes: dict[Site, LowRank] = {}
        ranks: dict[str, int] = {}
        for path, own in by_path.items():
            new = self.factors(trained.adapters[path])
            ranks |= {str(site): new.rank if trained.ranks else 0 for site in own}
            if trained.ranks:
                whole = new + old[path] if path in old else new
                changes |= dict(_split(lm, own, whole))
        notes = self._notes(lm, facts, trained, ranks)
        header = header_for(lm, method=self.name, config=config, facts=facts, notes=notes)
        if self.continued:
            tensors = {
                f"{self.name}/{path}/{key}": tensor
                for path, adapter in trained.adapters.items()
                for key, tensor in adapter.items()
            }
            base = {"base_digest": header.base_digest, "base_name": header.base_name}
            state = state.updated(tensors, base)
        return Edit(WeightPatch(changes, header), state)

    def _previous(self, state: State, paths: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """Return the adapters of the state by module; none unless training is continued."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.tensors.items():
            if self.continued and name.startswith(f"{self.name}/"):
                _, path, key = name.split("/")
                found.setdefault(path, {})[key] = tensor
        if found and set(found) != set(paths):
            raise MissingState(
                "the state holds adapters of other modules than those to be trained on.",
                where=f"method {self.name}",
                hint="Continue with the same `parts` and `layers`, or start without a state.",
            )
        return found

    def _notes(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        trained: TrainedAdapters,
        ranks: Mapping[str, int],
    ) -> dict[str, object]:
        statuses = ["written" if loss <= EVEN_ODDS else "not converged" for loss in trained.final]
        series = {
            "initial_losses": trained.initial,
            "final_losses": trained.final,
            "penalties": trained.penalties,
        }
        return {
            **summarise(facts, statuses, ()),
            **round_series(series),
            "losses": [round_values(losses) for losses in trained.losses],
            "steps": len(trained.ranks),
            "stop": trained.stop,
            "rank": dict(ranks),
            "peft": importlib.metadata.version("peft"),
            **self.notes(lm, trained),
        }


class Lora(AdapterEditor):
    """Low-rank adaptation: W + (alpha / rank) B A with A and B trained, W frozen.

    Reference: Hu et al. 2022, section 4.1; as an editor in KnowEdit (Zhang et al. 2024). See the
    card, `lora.md`.
    """

    name: ClassVar[str] = "lora"

    rank: int = Field(default=8, ge=1, le=65536, description="Directions of each adapter, r.")

    @property
    def scale(self) -> float:
        """Factor of the product B A."""
        return self.alpha / self.rank

    def attach(self, model: nn.Module, paths: Sequence[str], num_steps: int) -> nn.Module:
        """Insert adapters into modules; returns the `peft` tuner."""
        from peft import LoraConfig, LoraModel

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]  # any number will do
            target_modules=list(paths),
            fan_in_fan_out=is_transposed_at(model, paths),
        )
        return LoraModel(model, config, NAME)

    def parameters(self, layer: nn.Module) -> dict[str, nn.Parameter]:
        """Return A (rank, d_in) and B (d_out, rank) of an adapted module."""
        return {
            key: layer.get_submodule(f"lora_{key}").get_submodule(NAME).get_parameter("weight")
            for key in "AB"
        }

    def first_values(self, parameters: Adapter, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw A uniform within 1 / sqrt(d_in), as for linear layers; B is zero."""
        a = torch.empty(parameters["A"].shape)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        return {"A": a, "B": torch.zeros(parameters["B"].shape)}

    def after_step(self, tuner: nn.Module, step: int) -> None:
        """Do nothing: all directions stay."""

    def factors(self, adapter: Adapter) -> LowRank:
        """Return (alpha / rank) B A."""
        return LowRank(adapter["B"].detach() * self.scale, adapter["A"].detach().T)


class AdaLora(AdapterEditor):
    """Low-rank adaptation W + s P diag(L) Q, where a budget limits the non-zero entries of L.

    Letters: P (d_out, r), L (r, 1), Q (r, d_in); `peft` calls them B, E and A.

    Reference: Zhang et al. 2023, sections 3.1 to 3.3; as an editor in KnowEdit (Zhang et al. 2024).
    See the card, `adalora.md`.
    """

    name: ClassVar[str] = "adalora"

    initial_rank: int = Field(
        default=12, ge=1, le=65536, description="Directions of an adapter at first."
    )
    target_rank: int = Field(
        default=8, ge=1, description="Directions of an adapter at the end, on average."
    )
    pruning: bool = Field(
        default=True, description="Spend the budget; otherwise every adapter keeps `initial_rank`."
    )
    warm_up: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the steps before the budget falls."
    )
    final: float = Field(
        default=0.2, ge=0, lt=1, description="Share of the steps with the final directions."
    )
    interval: int = Field(default=1, ge=1, description="Steps between two allocations.")
    smoothing: float = Field(
        default=0.85, gt=0, lt=1, description="Of importance and of its uncertainty."
    )
    orthogonality: float = Field(
        default=0.5, ge=0, description="Price of directions that are not orthonormal."
    )

    @model_validator(mode="after")
    def _has_a_schedule(self) -> Self:
        if self.pruning and self.target_rank >= self.initial_rank:
            raise ValueError("target_rank must be below initial_rank, or pruning false")
        if self.warm_up + self.final >= 1:
            raise ValueError("warm_up and final leave no step in which the budget falls")
        return self

    @property
    def scale(self) -> float:
        """Factor of the product P diag(L) Q; pruning does not change it."""
        return self.alpha / (self.initial_rank + _RANK_OFFSET)

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Train adapters on all facts together; see `AdapterEditor.edit`.

        Raises:
            BadConfig (CG502): `pruning`, and the adapters would be on several devices, whose
                importances `peft` cannot compare.
        """
        modules = [lm.module(site) for site in self.sites(lm)]
        devices = {str(one.device) for module in modules for one in module.parameters()}
        if self.pruning and len(devices) > 1:
            raise BadConfig(
                f"peft prunes adapters on one device only, these are on {sorted(devices)}.",
                where=f"method {self.name}, model {lm.name}",
                hint="Load the model on one device, set pruning=False, or take lora.",
            )
        return super().edit(lm, facts, state)

    def settled_after(self, num_steps: int) -> int:
        """Return the step at which the directions that stay are chosen; steps count from 1."""
        return num_steps - int(self.final * num_steps)

    def attach(self, model: nn.Module, paths: Sequence[str], num_steps: int) -> nn.Module:
        """Insert adapters into modules, with a schedule of the budget over `num_steps`.

        Raises:
            BadConfig (CG502): too few steps: directions would be chosen before any has a score.
        """
        from peft import AdaLoraConfig, AdaLoraModel

        if self.pruning and self.settled_after(num_steps) < _STEPS_TO_SCORE:
            raise BadConfig(
                f"of {num_steps} steps in all, the directions that stay would be chosen before "
                "there is a score to choose by.",
                where=f"method {self.name}",
                hint="Raise `steps`, lower `final`, or set `pruning` to false.",
            )
        config = AdaLoraConfig(
            init_r=self.initial_rank,
            target_r=self.target_rank,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]  # any number will do
            target_modules=list(paths),
            fan_in_fan_out=is_transposed_at(model, paths),
            total_step=num_steps,
            tinit=int(self.warm_up * num_steps),
            tfinal=int(self.final * num_steps),
            deltaT=self.interval,
            beta1=self.smoothing,
            beta2=self.smoothing,
            orth_reg_weight=self.orthogonality,
        )
        return AdaLoraModel(model, config, NAME)

    def parameters(self, layer: nn.Module) -> dict[str, nn.Parameter]:
        """Return Q as "A" (r, d_in), L as "E" (r, 1), P as "B" (d_out, r)."""
        return {key: layer.get_submodule(f"lora_{key}").get_parameter(NAME) for key in "AEB"}

    def first_values(self, parameters: Adapter, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw P and Q normal with standard deviation 0.02; L is zero."""
        return {
            "A": _SPREAD * torch.randn(parameters["A"].shape, generator=generator),
            "E": torch.zeros(parameters["E"].shape),
            "B": _SPREAD * torch.randn(parameters["B"].shape, generator=generator),
        }

    def factors(self, adapter: Adapter) -> LowRank:
        """Return s P diag(L) Q, of the directions whose entry of L is not zero."""
        a, e, b = (adapter[key].detach() for key in "AEB")
        used = e[:, 0] != 0
        return LowRank(b[:, used] * (self.scale * e[used, 0]), a[used].T)

    def penalty(self, adapters: Sequence[Adapter]) -> Float[Tensor, ""] | None:
        """Return `orthogonality` times the mean of ||P^T P - I|| and ||Q Q^T - I||."""
        if not self.orthogonality:
            return None
        grams = [
            gram
            for adapter in adapters
            for gram in (adapter["A"] @ adapter["A"].T, adapter["B"].T @ adapter["B"])
        ]
        one = torch.eye(self.initial_rank, dtype=grams[0].dtype)
        norms = [torch.linalg.matrix_norm(gram - one.to(gram.device)) for gram in grams]
        return self.orthogonality * torch.stack([norm.to(norms[0].device) for norm in norms]).mean()

    def after_step(self, tuner: nn.Module, step: int) -> None:
        """Update importances and keep as many directions as the budget of this step allows."""
        if self.pruning:
            tuner.update_and_allocate(step)  # pyright: ignore[reportCallIssue]  # of AdaLoraModel

    def is_settled(self, step: int, num_steps: int) -> bool:
        """Whether the directions that stay have been chosen, so that steps may be left out."""
        return not self.pruning or step > self.settled_after(num_steps)

    def notes(self, lm: LanguageModel, trained: TrainedAdapters) -> dict[str, object]:
        """Return the directions in use after each step, over all modules."""
        return {"ranks": trained.ranks}


def _module_path(lm: LanguageModel, site: Site) -> str | None:
    """Return the path of a site's module; None for experts, which share one."""
    if site.part.startswith("mlp.") and lm.num_experts(site.layer):
        return None
    return lm.module_path(site)


def _split(lm: LanguageModel, sites: Sequence[Site], whole: LowRank) -> list[tuple[Site, LowRank]]:
    """Split the change of a module into one change for each site in it."""
    return [(site, LowRank(whole.left[lm.rows(site)], whole.right)) for site in sites]
