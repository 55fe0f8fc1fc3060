"""FT, FT-L, FT-M and LocFT-BF: one weight is trained; they differ in objective and constraint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from corrigenda.editor import Edit, Editor, StageWork, Supports
from corrigenda.errors import BadConfig, PromptTooLong
from corrigenda.facts import Fact
from corrigenda.lm.footprint import USUAL_READS, USUAL_TOKENS, head_flops, pass_flops
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.lm.spans import encode_fact
from corrigenda.methods.finetune.training import (
    FactTokens,
    FineTuned,
    FineTuning,
    TargetScoring,
    fine_tune,
    training_memory,
)
from corrigenda.patch import WeightPatch, header_for
from corrigenda.patch.changes import compact
from corrigenda.patch.notes import round_series, round_values, summarise
from corrigenda.settings import select
from corrigenda.state import State


class FineTuneEditor(Editor):
    """Adam on one down projection; a method chooses objective, constraint and order of facts."""

    learns_rows: ClassVar[bool] = True
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
    def training(self) -> FineTuning:
        """Settings of the training: the options of the method, and what it fixes."""
        return select(FineTuning, self)

    @property
    def ends_text(self) -> bool:
        """Whether the model is also trained to end the text after the target."""
        return False

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return the down projection that is trained.

        Raises:
            UnknownSite (CG303): the model has no such block.
        """
        site = Site(2 * lm.num_layers // 3 if self.layer is None else self.layer)
        lm.module_path(site)
        return (site,)

    def working_memory(self, lm: LanguageModel, num_facts: int) -> int:
        """Return the bytes of the weight, its gradient, Adam's moments, inputs and one graph."""
        return training_memory(lm, self.sites(lm)[0], num_facts, self.batch_size)

    def editing_work(self, lm: LanguageModel, num_facts: int) -> tuple[StageWork, ...]:
        """Estimate the operations of all epochs: two passes of the later blocks each, and Adam."""
        (site,) = self.sites(lm)
        epochs, tokens = self.epochs * num_facts, USUAL_TOKENS * num_facts
        one = pass_flops(lm, USUAL_TOKENS, site.layer + 1) + head_flops(lm, USUAL_READS)
        step = 4.0 * USUAL_TOKENS * math.prod(lm.shape(site))
        passes = pass_flops(lm, tokens) + epochs * (2 * one + step)
        return (StageWork("training", passes),)

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Train one change for all facts; the model is left as it is.

        Facts that the model answers already take no step; if no step is taken the patch is empty.

        Raises:
            PromptTooLong (CG105): a fact does not fit into the context.
            NonFinite (CG201): the model gives no finite loss.
            UnknownSite (CG303): no such block, or a mixture of experts.
            BadConfig (CG502): the text should end after the target, and the tokenizer has no token
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
        tuned = fine_tune(lm, site, examples, self.training, names)
        notes = self._notes(lm, facts, examples, tuned)
        header = header_for(lm, method=self.name, config=config, facts=facts, notes=notes)
        return Edit(WeightPatch({site: compact(tuned.delta)}, header), state)

    def examples(self, lm: LanguageModel, facts: Sequence[Fact]) -> list[FactTokens]:
        """Return the facts in tokens, in the order given.

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
            found.append(FactTokens(ids, one.prompt_last, (*one.target_ids, *ending)))
        return found

    def _notes(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        examples: Sequence[FactTokens],
        tuned: FineTuned,
    ) -> dict[str, object]:
        training = self.training
        (site,) = self.sites(lm)
        return {
            **summarise(facts, tuned.statuses, self._notices(lm, facts, examples)),
            "objective": training.objective,
            "constraint": {"box": training.box, "weight_decay": training.weight_decay},
            "trained": [lm.parameter_name(site)],
            "layers": [site.layer],
            **round_series({"epoch_losses": tuned.averages, "final_losses": tuned.final}),
            "losses": [round_values(losses) for losses in tuned.losses],
            "stop": tuned.stop,
            "steps": tuned.steps,
            "at_box": tuned.at_box,
        }

    def _notices(
        self, lm: LanguageModel, facts: Sequence[Fact], examples: Sequence[FactTokens]
    ) -> list[str]:
        notices = []
        if self.layer is None:
            (site,) = self.sites(lm)
            notices.append(
                f"no layer was given: block {site.layer} of {lm.num_layers}, two thirds of the "
                "depth, was trained."
            )
        if self.training.objective == "last-token":
            notices += [
                f"{fact.label}: the target has {count} different tokens, and one distribution is "
                f"asked for all of them; its loss cannot fall below {math.log(count):.2f}."
                for fact, example in zip(facts, examples, strict=True)
                if (count := len(set(example.labels))) > 1
            ]
        return notices


class Ft(FineTuneEditor):
    """Fine-tuning, unconstrained or in a box (FT, FT+L) or with decay (FT-W).

    Reference: Zhu et al. 2020; Meng et al. 2022, appendix E.1; Meng et al. 2023. See `ft.md`.
    """

    name: ClassVar[str] = "ft"

    batch_size: int = Field(default=128, ge=1, description="Facts in one step.")
    objective: TargetScoring = Field(
        default="teacher-forced", description="How the tokens of the target are scored."
    )
    box: float | None = Field(
        default=None, ge=0, description="Largest change of an entry of the weight; none if null."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="Strength of the decay of the edited weight."
    )


class FtL(FineTuneEditor):
    """Fine-tuning that scores all target tokens by the one distribution after the prompt.

    Reference: Zhang et al. 2024, the baseline FT-L. See the card, `ft_l.md`.
    """

    name: ClassVar[str] = "ft-l"
    objective: ClassVar[TargetScoring] = "last-token"

    box: float | None = Field(
        default=None, ge=0, description="Largest change of an entry of the weight; none if null."
    )


class FtM(FineTuneEditor):
    """Fine-tuning with teacher forcing, the prompt masked out of the loss.

    Reference: Zhang et al. 2024, the baseline FT-M. See the card, `ft_m.md`.
    """

    name: ClassVar[str] = "ft-m"
    objective: ClassVar[TargetScoring] = "teacher-forced"

    box: float | None = Field(
        default=None, ge=0, description="Largest change of an entry of the weight; none if null."
    )


class LocftBf(FineTuneEditor):
    """Localised fine-tuning, breadth first: every epoch sees every fact, in mini-batches.

    The order of facts is drawn from the seed and their content, so the order in which they are
    given does not matter.

    Reference: Yang et al. 2025. See the card, `locft_bf.md`.
    """

    name: ClassVar[str] = "locft-bf"
    supports: ClassVar[Supports] = Supports(
        single=True, batch=True, sequential=True, exact=False, order_free=True
    )
    objective: ClassVar[TargetScoring] = "teacher-forced"

    batch_size: int = Field(default=100, ge=1, description="Facts in one step.")
    end_of_text: bool = Field(
        default=True, description="Train the token that ends the text after the target, too."
    )
    seed: int = Field(default=0, description="Of the order of facts in each epoch.")

    @property
    def shuffle(self) -> int:
        """Seed of the order of facts."""
        return self.seed

    @property
    def ends_text(self) -> bool:
        """Whether the token that ends the text is trained, as `end_of_text` has it."""
        return self.end_of_text
