"""CaliNET: adds a few slots to frozen feed-forward blocks, trained on phrasings of the facts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from corrigenda.editor import Edit, Editor, Requires, Supports
from corrigenda.engines.gradients import LabelledRow, predict
from corrigenda.engines.locate.contexts import Contexts
from corrigenda.facts import Fact
from corrigenda.lm.activation import activation_of
from corrigenda.lm.kv_cache import batches
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, require_layers
from corrigenda.lm.spans import encode
from corrigenda.methods.calinet.slots import (
    Slots,
    SlotTraining,
    TrainedSlots,
    add_slots,
    is_gated,
    new_slots,
    share_slots,
    train,
)
from corrigenda.patch import ModulePatch
from corrigenda.patch import notes as edit_notes
from corrigenda.settings import select
from corrigenda.state import State

_EVEN_ODDS = math.log(2.0)


class CalinetPatch(ModulePatch):
    """One group of slots: `<block>/keys`, `<block>/values`, and `<block>/gates` where gated.

    Several groups add up, in any order; taking one off leaves the others.
    """

    kind: ClassVar[str] = "calinet"
    forms = MappingProxyType(
        {
            "*/keys": "float slots d_model",
            "*/values": "float d_model slots",
            "*/gates?": "float slots d_model",
        }
    )

    def require_sound(self) -> None:
        """Refuse names that are no blocks."""
        super().require_sound()
        _ = self.slots

    @property
    def is_empty(self) -> bool:
        """Return whether there are no slots."""
        return not self.stored

    @property
    def slots(self) -> dict[int, Slots]:
        """Return the slots by block."""
        found: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.stored.items():
            layer, _, part = name.partition("/")
            found.setdefault(int(layer), {})[part] = tensor
        return {layer: Slots(**parts) for layer, parts in sorted(found.items())}

    def hooks(self, lm: LanguageModel) -> AbstractContextManager[None]:
        """Add the slots to the outputs of their feed-forward blocks, until left."""
        return share_slots(lm, self.slots, self.kind)


class Calinet(Editor):
    """Calibrates many facts at once with d_c slots added to a few feed-forward blocks.

    Reference: Dong et al. 2022, section 4. See the card, `calinet.md`.
    """

    name: ClassVar[str] = "calinet"
    requires: ClassVar[Requires] = Requires()
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, exact=False, order_free=True
    )

    layers: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="Blocks with slots; the last two if not given."
    )
    slots: int = Field(default=64, ge=1, description="Slots of each block, d_c.")
    steps: int = Field(default=500, ge=1, description="Steps of the optimiser, at most.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Of the optimiser, constant.")
    optimiser: Literal["adam", "adafactor"] = Field(
        default="adam", description="`adafactor` is the published one, without relative steps."
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="Prompts in one step; all of them if not given."
    )
    stop_loss: float = Field(
        default=0.05,
        ge=0,
        description="Loss at or below which prompts whose every token is the model's first choice "
        "take no step; a pass without a step is the last.",
    )
    held_out: int | None = Field(
        default=None,
        ge=2,
        description="Hold every n-th paraphrase of a fact out of training, and measure it.",
    )
    contexts: Contexts = Field(
        default=Contexts(), description="Prefixes of the prompt of a fact, also trained on."
    )
    seed: int = Field(default=0, description="Of the slots' first values and of the batches.")

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return no sites: no weight changes; `blocks` are the feed-forward blocks with slots."""
        return ()

    def num_parameters(self, lm: LanguageModel) -> int:
        """Return the number of parameters added: 2 d_model a slot, 3 where the block has a gate."""
        return len(self.blocks(lm)) * self.slots * lm.d_model * (3 if is_gated(lm) else 2)

    def blocks(self, lm: LanguageModel) -> tuple[int, ...]:
        """Return the blocks that get slots, lowest first.

        Raises:
            UnknownSite (CG303): the model has no such block, or it is one of experts.
        """
        last = lm.num_layers - 1
        layers = (max(last - 1, 0), last) if self.layers is None else self.layers
        require_layers(lm, layers, where=f"method {self.name}")
        for layer in layers:
            lm.module_path(Site(layer, "mlp.up"))
        return tuple(sorted(set(layers)))

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Train one group of slots on all facts together; the model is left as it is.

        A fact is trained under its prompt and its paraphrases. If the model answers all of them
        already, nothing is trained and the patch is empty.

        Raises:
            PromptTooLong (CG105): a prompt and its target exceed the context.
            NonFinite (CG201): the model gives no finite loss.
            UnknownSite (CG303): see `blocks`.
        """
        state = state or State()
        config = self.model_dump(mode="json")
        if not facts:
            return Edit(CalinetPatch.make(lm, {}, method=self.name, config=config), state)
        rows = self._rows(lm, facts)
        trained = train(
            lm,
            new_slots(lm, self.blocks(lm), self.slots, self.seed),
            rows,
            self.training,
        )
        tensors = {
            f"{layer}/{name}": tensor
            for layer, own in (trained.slots.items() if trained.steps else ())
            for name, tensor in own.tensors().items()
        }
        notes = self._notes(lm, facts, rows, trained, add_slots(lm, trained.slots))
        patch = CalinetPatch.make(
            lm, tensors, method=self.name, config=config, facts=facts, notes=notes
        )
        return Edit(patch, state)

    @property
    def training(self) -> SlotTraining:
        """Return the settings of the training."""
        return select(SlotTraining, self)

    def prompts(self, fact: Fact) -> tuple[list[str], list[str]]:
        """Return the prompts of a fact for training, its own first, and those held out."""
        every = self.held_out or len(fact.paraphrases) + 1
        kept = [text for at, text in enumerate(fact.paraphrases, start=1) if at % every]
        own = [prefix + fact.prompt for prefix in self.contexts.prefixes]
        trained = list(dict.fromkeys([*own, *kept]))
        return trained, [text for text in fact.paraphrases if text not in trained]

    def _rows(
        self, lm: LanguageModel, facts: Sequence[Fact], *, held_out: bool = False
    ) -> list[LabelledRow]:
        rows = []
        for index, fact in enumerate(facts):
            for prompt in self.prompts(fact)[held_out]:
                one = encode(
                    lm, prompt, target=fact.target, separator=fact.separator, where=fact.label
                )
                rows.append(
                    LabelledRow(tuple(one.ids[:-1]), tuple(one.reads), one.target_ids, index)
                )
        return rows

    def _notes(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        rows: Sequence[LabelledRow],
        trained: TrainedSlots,
        active: AbstractContextManager[None],
    ) -> dict[str, object]:
        own = [next(row for row in rows if row.fact == index) for index in range(len(facts))]
        others = self._rows(lm, facts, held_out=True)
        before = [loss for loss, _ in _measure(lm, own)]
        with active:
            after = [loss for loss, _ in _measure(lm, own)]
            recall = [_measure_recall(lm, some) for some in (rows, others)]
        statuses = ["written" if loss <= _EVEN_ODDS else "not converged" for loss in after]
        series = {"initial_losses": before, "final_losses": after, "losses": trained.losses}
        return {
            **edit_notes.summarise(facts, statuses, ()),
            **edit_notes.round_series(series),
            "steps": trained.steps,
            "stop": trained.stop,
            "prompts": len(rows),
            "recall": recall[0],
            "recall_held_out": recall[1],
            "activation": type(activation_of(lm)).__name__,
            "layers": list(trained.slots),
        }


@torch.no_grad()
def _measure(lm: LanguageModel, rows: Sequence[LabelledRow]) -> list[tuple[float, bool]]:
    """Return the mean loss of each row's labels, and whether all are the model's first choices."""
    found: dict[int, tuple[float, bool]] = {}
    for group in batches(lm, [len(row.ids) for row in rows], None):
        logits, labels = predict(lm, [rows[index] for index in group])
        losses = cross_entropy(logits, labels, reduction="none")
        sizes = [len(rows[index].labels) for index in group]
        parts = zip(losses.split(sizes), (logits.argmax(-1) == labels).split(sizes), strict=True)
        found |= {
            index: (float(loss.mean()), bool(right.all()))
            for index, (loss, right) in zip(group, parts, strict=True)
        }
    return [found[index] for index in range(len(rows))]


def _measure_recall(lm: LanguageModel, rows: Sequence[LabelledRow]) -> float | None:
    if not rows:
        return None
    return sum(right for _, right in _measure(lm, rows)) / len(rows)
