"""What methods that train adapters share: options, sites, the patch, and what is reported."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from corrigenda.editor import Edit, Editor, Requires, Supports
from corrigenda.engines.gradients import labelled_rows
from corrigenda.engines.locate import pipeline
from corrigenda.errors import MissingState
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.footprint import USUAL_TOKENS, graph_bytes, head_bytes
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.methods.lora.adapters import AdapterKind, Settings, Trained, require_peft, train
from corrigenda.patch import WeightPatch, header_for
from corrigenda.patch.runtime import added_at_run_time
from corrigenda.state import State

_EVEN_ODDS = math.log(2.0)


class AdapterEditor(AdapterKind, Editor):
    """Adam on adapters beside frozen weights; a method says what an adapter is."""

    requires: ClassVar[Requires] = Requires()
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

    def notes(self, lm: LanguageModel, trained: Trained) -> dict[str, object]:
        """What the method reports besides losses and ranks."""
        return {}

    @property
    def settings(self) -> Settings:
        """Settings of the training."""
        return Settings(
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            dropout=self.dropout,
            clip=self.clip,
            stop_loss=self.stop_loss,
            seed=self.seed,
        )

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """The weights to adapt, lowest first, and those that share a module with one of them.

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
        """Bytes of one graph behind the lowest adapter, over a mini-batch of usual facts."""
        tokens = min(num_facts, self.batch_size) * USUAL_TOKENS
        lowest = self.sites(lm)[0].layer
        return graph_bytes(lm, lm.num_layers - lowest, tokens) + head_bytes(lm, tokens)

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Train adapters on all facts together; the model is left as it is.

        If the model says every fact already, nothing is trained and the patch is empty.

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
        undone = {
            site: change for path in old for site, change in _split(lm, by_path[path], old[path])
        }
        names = [fact.label for fact in facts]
        with added_at_run_time(undone, lm) if undone else nullcontext():
            trained = train(lm, self, list(by_path), rows, names, self.settings, previous)
        changes: dict[Site, LowRank] = {}
        kept: dict[str, int] = {}
        for path, own in by_path.items():
            new = self.factors(trained.adapters[path])
            kept |= {str(site): new.rank if trained.ranks else 0 for site in own}
            if trained.ranks:
                whole = new + old[path] if path in old else new
                changes |= dict(_split(lm, own, whole))
        notes = self._notes(lm, facts, trained, kept)
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
        """Adapters of the state by module; empty where there are none or none are wanted."""
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
        self, lm: LanguageModel, facts: Sequence[Fact], trained: Trained, kept: Mapping[str, int]
    ) -> dict[str, object]:
        statuses = ["written" if loss <= _EVEN_ODDS else "not converged" for loss in trained.final]
        series = {
            "initial_losses": trained.initial,
            "final_losses": trained.final,
            "penalties": trained.penalties,
        }
        return {
            **pipeline.summarise(facts, statuses, ()),
            **pipeline.rounded(series),
            "losses": [pipeline.rounded({"": losses})[""] for losses in trained.losses],
            "steps": len(trained.ranks),
            "stop": trained.stop,
            "rank": dict(kept),
            "peft": importlib.metadata.version("peft"),
            **self.notes(lm, trained),
        }


def _module_path(lm: LanguageModel, site: Site) -> str | None:
    """Path of a site's module; None for experts, which have none of their own."""
    if site.part.startswith("mlp.") and lm.num_experts(site.layer):
        return None
    return lm.module_path(site)


def _split(lm: LanguageModel, sites: Sequence[Site], whole: LowRank) -> list[tuple[Site, LowRank]]:
    """The change of a module as one change for each site in it."""
    return [(site, LowRank(whole.left[lm.rows(site)], whole.right)) for site in sites]
