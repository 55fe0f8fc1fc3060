"""LoRA: a low-rank term beside a few projections, trained on the facts and merged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from corrigenda.linalg.lowrank import LowRank
from corrigenda.methods.lora.adapter_editor import AdapterEditor
from corrigenda.methods.lora.adapters import NAME, Adapter, is_transposed_at


class Lora(AdapterEditor):
    """W + (alpha / rank) B A with A and B trained, W frozen.

    Reference: Hu et al. 2022, section 4.1; as an editor in KnowEdit (Zhang et al. 2024). See the
    card, `lora.md`.
    """

    name: ClassVar[str] = "lora"

    rank: int = Field(default=8, ge=1, description="Directions of each adapter, r.")

    @property
    def scale(self) -> float:
        """What the product B A is multiplied by."""
        return self.alpha / self.rank

    def attach(self, model: nn.Module, paths: Sequence[str], num_steps: int) -> nn.Module:
        """Put adapters into modules."""
        from peft import LoraConfig, LoraModel

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]  # any number will do
            target_modules=list(paths),
            fan_in_fan_out=is_transposed_at(model, paths),
        )
        return LoraModel(model, config, NAME)

    def parameters(self, layer: nn.Module) -> dict[str, nn.Parameter]:
        """A (rank, d_in) and B (d_out, rank)."""
        return {
            key: layer.get_submodule(f"lora_{key}").get_submodule(NAME).get_parameter("weight")
            for key in "AB"
        }

    def first_values(self, parameters: Adapter, generator: torch.Generator) -> dict[str, Tensor]:
        """A uniform within 1 / sqrt(d_in), as linear layers are; B zero."""
        a = torch.empty(parameters["A"].shape)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        return {"A": a, "B": torch.zeros(parameters["B"].shape)}

    def after_step(self, tuner: nn.Module, step: int) -> None:
        """Do nothing: all directions stay."""

    def factors(self, adapter: Adapter) -> LowRank:
        """(alpha / rank) B A."""
        return LowRank(adapter["B"].detach() * self.scale, adapter["A"].detach().T)
