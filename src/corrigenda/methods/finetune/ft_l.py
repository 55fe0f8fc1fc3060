"""FT-L: fine-tuning on the distribution behind the prompt alone."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from corrigenda.methods.finetune.finetune_editor import FineTuneEditor
from corrigenda.methods.finetune.training import Settings


class FtL(FineTuneEditor):
    """All tokens of the target are scored by the one distribution behind the prompt.

    Reference: Zhang et al. 2024, the baseline FT-L. See the card, `ft_l.md`.
    """

    name: ClassVar[str] = "ft-l"

    box: float | None = Field(
        default=None, ge=0, description="Largest change of an entry of the weight; none if null."
    )

    @property
    def settings(self) -> Settings:
        """Settings of the training."""
        return Settings(
            objective="last-token",
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            box=self.box,
            stop_loss=self.stop_loss,
        )
