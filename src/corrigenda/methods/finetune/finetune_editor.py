"""What the fine-tuning methods share: options, the layer, facts in tokens, and what is reported."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from corrigenda.editor import Edit, Editor, Supports
from corrigenda.engines.locate import pipeline
from corrigenda.errors import BadConfig, PromptTooLong
from corrigenda.facts import Fact
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.lm.spans import encode_fact
from corrigenda.methods.finetune.training import (
    Example,
    Settings,
    Trained,
    fine_tune,
    training_memory,
)
from corrigenda.patch import WeightPatch, header_for
from corrigenda.patch.changes import compact
from corrigenda.state import State


class FineTuneEditor(Editor):
    """Adam on one down projection; a method chooses objective, constraint and order of facts."""

    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, exact=False, order_free=False
    )

    layer: int | None = Field(
        default=None, ge=0, description="Block to train; two thirds of the depth if not given."
    )
    epochs: int = Field(default=25, ge=1, description="Passes over all facts, at most.")
    learning_rate: float = Field(default=5e-4, gt=0, description="Of Adam.")
    batch_size: int = Field(default=1, ge=1, description="Facts in one step.")
    stop_loss: float = Field(
        default=0.01, ge=0, description="Loss below which no step is taken, and training ends."
    )

    @property
    @abstractmethod
    def settings(self) -> Settings:
        """Settings of the training."""

    @property
    def ends_text(self) -> bool:
        """Whether the model is also trained to end the text behind the target."""
        return False

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """The down projection that is trained.

        Raises:
            UnknownSite (CG303): the model has no such block.
        """
        site = Site(2 * lm.num_layers // 3 if self.layer is None else self.layer)
        lm.module_path(site)
        return (site,)

    def working_memory(self, lm: LanguageModel, num_facts: int) -> int:
        """Bytes of the trained weight, its gradient, Adam's moments, inputs and one graph."""
        return training_memory(lm, self.sites(lm)[0], num_facts)

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Train one change for all facts; the model is left as it is.

        Facts the model says already take no step; if no step is taken the patch is empty.

        Raises:
            PromptTooLong (CG105): a fact does not fit into the context.
            NonFinite (CG201): the model gives no finite loss.
            UnknownSite (CG303): no such block, or a mixture of experts.
            BadConfig (CG502): the text should end behind the target, and the tokenizer has no token
                for that.
        """
        state = state or State()
        config = self.model_dump(mode="json")
        if not facts:
            header = header_for(lm, method=self.name, config=config)
            return Edit(WeightPatch({}, header), state)
        (site,) = self.sites(lm)
        examples = self.examples(lm, facts)
        names = [fact.label for fact in facts]
        trained = fine_tune(lm, site, examples, self.settings, names)
        notes = self._notes(lm, facts, examples, trained)
        header = header_for(lm, method=self.name, config=config, facts=facts, notes=notes)
        return Edit(WeightPatch({site: compact(trained.delta)}, header), state)

    def examples(self, lm: LanguageModel, facts: Sequence[Fact]) -> list[Example]:
        """The facts in tokens, in the order given.

        Raises:
            PromptTooLong (CG105): one does not fit into the context.
            BadConfig (CG502): see `edit`.
        """
        end: int | None = getattr(lm.tokenizer, "eos_token_id", None)
        if self.ends_text and end is None:
            raise BadConfig(
                "the tokenizer has no token that ends a text.",
                where=f"method {self.name}, {lm.name}",
                hint="Set end_of_text to false.",
            )
        ending = (end,) if self.ends_text and end is not None else ()
        found = []
        for fact in facts:
            one = encode_fact(lm, fact)
            ids = (*one.ids, *ending)[:-1]
            if len(ids) > lm.context_length:
                raise PromptTooLong(
                    f"the fact has {len(ids)} tokens; at most {lm.context_length} fit.",
                    where=fact.label,
                    hint="Shorten the prompt.",
                )
            found.append(Example(ids, one.prompt_last, (*one.target_ids, *ending)))
        return found

    def _notes(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        examples: Sequence[Example],
        trained: Trained,
    ) -> dict[str, object]:
        settings = self.settings
        (site,) = self.sites(lm)
        return {
            **pipeline.summarise(facts, trained.statuses, self._notices(lm, facts, examples)),
            "objective": settings.objective,
            "constraint": {"box": settings.box, "weight_decay": settings.weight_decay},
            "trained": [lm.parameter_name(site)],
            "layers": [site.layer],
            **pipeline.rounded({"epoch_losses": trained.averages, "final_losses": trained.final}),
            "losses": [pipeline.rounded({"": losses})[""] for losses in trained.losses],
            "stop": trained.stop,
            "steps": trained.steps,
            "at_box": trained.at_box,
        }

    def _notices(
        self, lm: LanguageModel, facts: Sequence[Fact], examples: Sequence[Example]
    ) -> list[str]:
        notices = []
        if self.layer is None:
            (site,) = self.sites(lm)
            notices.append(
                f"no layer was given: block {site.layer} of {lm.num_layers}, two thirds of the "
                "depth, was trained."
            )
        if self.settings.objective == "last-token":
            notices += [
                f"{fact.label}: the target has {count} different tokens, and one distribution is "
                f"asked for all of them; its loss cannot fall below {math.log(count):.2f}."
                for fact, example in zip(facts, examples, strict=True)
                if (count := len(set(example.labels))) > 1
            ]
        return notices
