"""FT: fine-tuning of one down projection, with objective and constraint as settings."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from corrigenda.methods.finetune.finetune_editor import FineTuneEditor
from corrigenda.methods.finetune.training import Objective, Settings


class Ft(FineTuneEditor):
    """Fine-tuning, unconstrained or in a box (FT, FT+L) or with decay (FT-W).

    Reference: Zhu et al. 2020; Meng et al. 2022, appendix E.1; Meng et al. 2023. See `ft.md`.
    """

    name: ClassVar[str] = "ft"

    batch_size: int = Field(default=128, ge=1, description="Facts in one step.")
    objective: Objective = Field(
        default="teacher-forced", description="How the tokens of the target are scored."
    )
    box: float | None = Field(
        default=None, ge=0, description="Largest change of an entry of the weight; none if null."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="Strength of the decay of the edited weight."
    )

    @property
    def settings(self) -> Settings:
        """Settings of the training."""
        return Settings(
            objective=self.objective,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            box=self.box,
            weight_decay=self.weight_decay,
            stop_loss=self.stop_loss,
        )
