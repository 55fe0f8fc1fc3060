"""FT-M: fine-tuning with teacher forcing, the prompt masked out of the loss."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from corrigenda.methods.finetune.finetune_editor import FineTuneEditor
from corrigenda.methods.finetune.training import Settings


class FtM(FineTuneEditor):
    """Each token of the target is scored behind the prompt and the tokens in front of it.

    Reference: Zhang et al. 2024, the baseline FT-M. See the card, `ft_m.md`.
    """

    name: ClassVar[str] = "ft-m"

    box: float | None = Field(
        default=None, ge=0, description="Largest change of an entry of the weight; none if null."
    )

    @property
    def settings(self) -> Settings:
        """Settings of the training."""
        return Settings(
            objective="teacher-forced",
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            box=self.box,
            stop_loss=self.stop_loss,
        )
