"""LocFT-BF: fine-tuning in epochs over shuffled mini-batches, at a chosen place."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from corrigenda.editor import Supports
from corrigenda.methods.finetune.finetune_editor import FineTuneEditor
from corrigenda.methods.finetune.training import Settings


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

    batch_size: int = Field(default=100, ge=1, description="Facts in one step.")
    end_of_text: bool = Field(
        default=True, description="Train the token that ends the text behind the target, too."
    )
    seed: int = Field(default=0, description="Of the order of facts in each epoch.")

    @property
    def ends_text(self) -> bool:
        """As the option says."""
        return self.end_of_text

    @property
    def settings(self) -> Settings:
        """Settings of the training."""
        return Settings(
            objective="teacher-forced",
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            stop_loss=self.stop_loss,
            shuffle=self.seed,
        )
