"""MEMOIR: a residual memory at one layer, used through sparse masks that the prompt chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from corrigenda.editor import Edit, Editor, Requires, StageWork, Supports
from corrigenda.engines.gradients import labelled_rows
from corrigenda.engines.locate.contexts import Contexts, generate_contexts
from corrigenda.engines.ordinary_text import draw_rows, tap_tokens
from corrigenda.engines.shared_memory import SharedMemory, join, memory_of, suspend
from corrigenda.facts import Fact
from corrigenda.lm.footprint import (
    FLOAT,
    USUAL_READS,
    USUAL_TOKENS,
    graph_bytes,
    head_bytes,
    head_flops,
    pass_flops,
)
from corrigenda.lm.hooks import TensorMap
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Point, Site, key, value
from corrigenda.methods.memoir.masks import (
    choose_permutation,
    find_mask,
    mask_features,
    pack_masks,
    unpack_masks,
)
from corrigenda.methods.memoir.training import MemoryTraining, train_columns
from corrigenda.patch import ModulePatch, header_for
from corrigenda.patch.changes import digest_of
from corrigenda.progress import Progress
from corrigenda.settings import select
from corrigenda.state import State
from corrigenda.training.dataset import TrainingSet, text_only

_DEPTH = 27 / 32
_USUAL_SHARE = 0.286
_ROW_OF_TEXT = 16
_MEAN, _CONTEXTS = "memoir/mean", "memoir/contexts"


class Routing(NamedTuple):
    """Place and rule of a memory; patches with the same share one.

    Attributes:
        layer: Block.
        active: Inputs of a mask, k.
        threshold: Least share of them in common, tau.
        seed: Of the permutation.
        background: Hash of the mean input of ordinary text.
    """

    layer: int
    active: int
    threshold: float
    seed: int
    background: str

    @classmethod
    def of(cls, config: Mapping[str, object]) -> Routing:
        """Return the routing of a configuration."""
        names = ("layer", "active", "seed")
        layer, active, seed = (int(str(config[name])) for name in names)
        threshold = float(str(config["threshold"]))
        return cls(layer, active, threshold, seed, str(config["background"]))


class MemoirPatch(ModulePatch):
    """Change of the memory by some edits, and the masks of their prompts."""

    kind: ClassVar[str] = "memoir"
    forms = MappingProxyType(
        {
            "change": "float d_out columns",
            "columns": "int columns",
            "masks": "bytes facts packed",
            "mean": "float d_in",
        }
    )
    options = MappingProxyType(
        {"layer": int, "active": int, "threshold": float, "seed": int, "background": str}
    )

    def require_sound(self) -> None:
        """Refuse columns and masks that the layer does not have."""
        super().require_sound()
        if not self.stored:
            return
        width, columns = len(self.stored["mean"]), self.stored["columns"]
        if not 0 <= int(columns.min()) <= int(columns.max()) < width:
            raise ValueError("a column of the memory is none of the layer's inputs")
        if self.stored["masks"].shape[1] != -(-width // 8):
            raise ValueError("the masks have another width than the layer's inputs")
        if not 0 < self.routing.active <= width:
            raise ValueError("a mask cannot have that many inputs")

    def sizes_in(self, lm: LanguageModel) -> dict[str, int]:
        """Return the widths of its site in a model."""
        d_out, d_in = lm.shape(Site(self.routing.layer))
        return {"d_in": d_in, "d_out": d_out}

    @property
    def routing(self) -> Routing:
        """Return place and rule of the memory."""
        return Routing.of(self.header.config)

    def hooks(self, lm: LanguageModel) -> AbstractContextManager[object]:
        """Add the change to the memory of the model, until left."""
        routing = self.routing
        return join(lm, self, ("memoir", routing), lambda: _ActiveMemory(lm, routing))


class _ActiveMemory(SharedMemory[MemoirPatch]):
    """Memory of all active patches with one routing, with the hooks that choose a mask and add."""

    def __init__(self, lm: LanguageModel, routing: Routing) -> None:
        super().__init__(lm)
        self.routing = routing
        self.site = Site(routing.layer)
        self._route: Int[Tensor, " batch"] | None = None
        self._inputs: Float[Tensor, "batch pos d_in"] | None = None

    @cached_property
    def weights(self) -> Float[Tensor, "d_out d_in"]:
        """Return the sum of all changes."""
        with torch.inference_mode(False):
            total = torch.zeros(self.lm.shape(self.site))
            for patch in self.patches:
                total[:, patch.stored["columns"].long()] += patch.stored["change"].float()
            return total.to(self.lm.device_at(self.site))

    @cached_property
    def masks(self) -> Float[Tensor, "entries d_in"]:
        """Return the stored masks as zeros and ones."""
        width = self.lm.shape(self.site)[1]
        with torch.inference_mode(False):
            packed = torch.cat([patch.stored["masks"] for patch in self.patches])
            return unpack_masks(packed, width).to(self.weights)

    @cached_property
    def _permutation(self) -> Int[Tensor, " d_in"]:
        return choose_permutation(self.lm.shape(self.site)[1], self.routing.seed)

    def forget(self) -> None:
        for name in ("weights", "masks"):
            if name in self.__dict__:
                delattr(self, name)

    def transforms(self) -> Mapping[Point, TensorMap]:
        return {key(self.site): self._read, value(self.site): self._write}

    def _read(self, inputs: Float[Tensor, "batch pos d_in"]) -> Tensor:
        self._route = self._inputs = None
        if self.suspended:
            return inputs

        def decide(ends: Int[Tensor, " batch"]) -> Tensor:
            real = self.lm.prompt_ends.mask.to(inputs.device)
            columns = torch.arange(inputs.shape[1], device=inputs.device)
            real = real & (columns <= ends.to(inputs.device)[:, None])
            features = average_inputs(inputs.detach(), real) - self._mean.to(inputs.device)
            masks = mask_features(features, self._permutation, self.routing.active)
            return find_mask(masks, self.masks, self.routing.active, self.routing.threshold)

        route = self.lm.prompt_ends.decide_once(self, decide)
        if bool((route >= 0).any()):
            self._route, self._inputs = route, inputs
        return inputs

    @property
    def _mean(self) -> Float[Tensor, " d_in"]:
        return self.patches[0].stored["mean"].float()

    def _write(self, output: Float[Tensor, "batch pos d_out"]) -> Tensor:
        if self._route is None or self._inputs is None:
            return output
        rows = (self._route >= 0).nonzero().squeeze(1).to(output.device)
        masks = self.masks[self._route.to(self.masks.device)[rows.to(self.masks.device)]]
        seen = self._inputs[rows].to(self.weights) * masks[:, None]
        output = output.clone()
        output[rows] = output[rows] + (seen @ self.weights.T).to(output)
        self._inputs = None
        return output


class Memoir(Editor):
    """Lifelong edits in a residual memory that each prompt sees through a sparse mask of its own.

    Reference: Wang et al. 2025, section 3. See the card, `card.md`.
    """

    name: ClassVar[str] = "memoir"
    requires: ClassVar[Requires] = Requires()
    learns_rows: ClassVar[bool] = True
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, contained=True
    )

    layer: int | None = Field(
        default=None, ge=0, description="Block with the memory; at 27/32 of the depth if not given."
    )
    active: int | None = Field(
        default=None, ge=1, description="Inputs of a mask, k; 0.286 of the layer's if not given."
    )
    threshold: float = Field(
        default=0.4, gt=0, description="Least share of inputs in common with a stored mask, tau."
    )
    steps: int = Field(default=30, ge=1, description="Steps for each fact, at most.")
    learning_rate: float = Field(default=1.0, gt=0, description="Of gradient descent.")
    decay: float = Field(
        default=0.0, ge=0, description="Weight decay of the inputs that a step trains."
    )
    clip: float = Field(default=1.0, gt=0, description="Largest norm of a gradient.")
    stop_loss: float = Field(default=0.02, ge=0, description="Loss at which a training ends.")
    contexts: Contexts | None = Field(
        default=None, description="Prefixes of prompts; ten that the model writes if not given."
    )
    background_texts: int = Field(
        default=100, ge=1, description="Texts whose mean input is taken off a prompt's."
    )
    seed: int = Field(default=0, description="Of the permutation, texts and prefixes.")

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return no sites: no weight changes; `site` is the layer with the memory."""
        return ()

    def site(self, lm: LanguageModel) -> Site:
        """Return the layer with the memory.

        Raises:
            UnknownSite (CG303): the model has no such layer, or it belongs to experts.
        """
        usual = max(0, min(int(_DEPTH * lm.num_layers), lm.num_layers - 2))
        site = Site(usual if self.layer is None else self.layer)
        lm.module(site)
        return site

    def working_memory(self, lm: LanguageModel, num_facts: int) -> int:
        """Estimate the bytes of the memory, of the masks, and of one graph above the layer."""
        site = self.site(lm)
        tokens = (1 + 10) * USUAL_TOKENS
        graph = graph_bytes(lm, lm.num_layers - site.layer, tokens) + head_bytes(lm, USUAL_READS)
        return self.patch_bytes(lm, num_facts) + graph

    def patch_bytes(self, lm: LanguageModel, num_facts: int) -> int:
        """Estimate the bytes of the memory, all of it, and of a mask for each fact."""
        d_out, d_in = lm.shape(self.site(lm))
        return FLOAT * d_out * d_in + num_facts * (d_in // 8 + 1)

    def editing_work(self, lm: LanguageModel, num_facts: int) -> tuple[StageWork, ...]:
        """Estimate the operations of all steps: two passes of the later blocks each."""
        rows = 11 * num_facts
        one = pass_flops(lm, rows * USUAL_TOKENS, self.site(lm).layer)
        one += head_flops(lm, rows * USUAL_READS)
        return (StageWork("training", 2 * self.steps * one),)

    def fit(
        self,
        lm: LanguageModel,
        corpus: TrainingSet | None = None,
        *,
        progress: Progress | None = None,
    ) -> State:
        """Measure the mean input of ordinary text, and let the model write prefixes.

        Args:
            lm: The model, before any edit.
            corpus: The text; see `corrigenda.statistics.Corpus`.
            progress: Called while the model writes text.

        Raises:
            EmptyCorpus (CG602): the text holds no tokens.
        """
        rows = draw_rows(
            lm,
            text_only(corpus, where=self.name),
            count=self.background_texts,
            length=_ROW_OF_TEXT,
            seed=self.seed,
            progress=progress,
        )
        inputs = tap_tokens(lm, rows, key(self.site(lm)))
        mean = torch.stack([one.mean(0) for one in inputs]).mean(0).float().cpu()
        contexts = self.contexts or _write_prefixes(lm, self.seed)
        header = header_for(lm, method=self.name)
        meta = {"base_digest": header.base_digest, "base_name": header.base_name}
        return State({_MEAN: mean}, {**meta, _CONTEXTS: contexts.to_json()})

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Write facts into the memory, one after the other; the model is left as it is.

        Training continues from the memory of the active patches. The state stays as it is.

        Raises:
            PromptTooLong (CG105): a fact does not fit into the context.
            WrongBase (CG401): the state belongs to another model.
            NonFinite (CG201): the model gives no finite loss.
            UnknownSite (CG303): see `site`.
        """
        site = self.site(lm)
        d_out, d_in = lm.shape(site)
        active = min(d_in, self.active or max(1, round(_USUAL_SHARE * d_in)))
        config = {**self.model_dump(mode="json"), "layer": site.layer, "active": active}
        if not facts:
            made = MemoirPatch.make(lm, {}, method=self.name, config=config)
            return Edit(made, state or State())
        given = state or State()
        rows = labelled_rows(lm, facts)
        if _MEAN not in given.tensors:
            given = self.fit(lm)
        given.require_base(lm)
        mean = given.tensors[_MEAN]
        config["background"] = digest_of({"mean": mean})
        memory = memory_of(lm, _ActiveMemory, ("memoir", Routing.of(config)))
        prompts = [row.ids[: row.reads[0] + 1] for row in rows]
        with suspend(memory):
            inputs = tap_tokens(lm, prompts, key(site))
            features = torch.stack([one.float().mean(0) for one in inputs]).cpu() - mean
            masks = mask_features(features, choose_permutation(d_in, self.seed), active)
            weights = torch.zeros(d_out, d_in) if memory is None else memory.weights.cpu().clone()
            before = weights.clone()
            traces = []
            contexts = self.contexts or Contexts.from_json(str(given.meta[_CONTEXTS]))
            for fact, mask in zip(facts, masks, strict=True):
                columns = mask.nonzero().flatten()
                weights[:, columns], trace = train_columns(
                    lm,
                    site,
                    labelled_rows(lm, _in_contexts(fact, contexts)),
                    columns,
                    weights[:, columns],
                    select(MemoryTraining, self),
                    name=fact.label,
                    suspended=() if memory is None else memory.patches,
                )
                traces.append(trace)
        changed = masks.any(0).nonzero().flatten()
        stored = {
            "change": (weights - before)[:, changed],
            "columns": changed,
            "masks": pack_masks(masks),
            "mean": mean.clone(),
        }
        notes = {
            "status": ["written" if one.right else "not converged" for one in traces],
            "notices": [
                f"{fact.label}: not converged; the answer's loss is {one.losses[-1]:.2f}."
                for fact, one in zip(facts, traces, strict=True)
                if not one.right
            ],
            "losses": [[float(f"{loss:.6g}") for loss in one.losses] for one in traces],
        }
        patch = MemoirPatch.make(
            lm, stored, method=self.name, config=config, facts=facts, notes=notes
        )
        return Edit(patch, given if state is None else state)


def average_inputs(
    inputs: Float[Tensor, "batch pos d"], real: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch d"]:
    """Return the mean over the tokens of each prompt; float32."""
    chosen = torch.where(real[..., None], inputs.float(), torch.zeros((), device=inputs.device))
    return chosen.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp_min(1)


def _write_prefixes(lm: LanguageModel, seed: int) -> Contexts:
    """Return the empty prefix and ten that the model writes, five short ones and five long."""
    written = generate_contexts(lm, "rome", seed=seed).prefixes
    return Contexts(("", *written[1::2]))


def _in_contexts(fact: Fact, contexts: Contexts) -> list[Fact]:
    """Return a fact behind every prefix; a user's turn in the chat template has none."""
    if fact.chat:
        return [fact]
    bare = replace(fact, subject=None, subject_start=None)
    prefixed = [replace(bare, prompt=prefix + fact.prompt) for prefix in contexts.prefixes[1:]]
    return [bare, *prefixed]
