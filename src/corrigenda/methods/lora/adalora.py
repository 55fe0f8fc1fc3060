"""AdaLoRA: adapters in the form of singular values, with ranks spent where they matter most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from corrigenda.errors import BadConfig
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.methods.lora.adapter_editor import AdapterEditor
from corrigenda.methods.lora.adapters import NAME, Adapter, Trained, is_transposed_at

_SPREAD = 0.02
_RANK_OFFSET = 1e-5
# The step that chooses uses the scores of the steps before it.
_STEPS_TO_SCORE = 2


class AdaLora(AdapterEditor):
    """W + s P diag(L) Q, where a budget decides how many entries of all L are not zero.

    Letters: P (d_out, r), L (r, 1), Q (r, d_in); `peft` calls them B, E and A.

    Reference: Zhang et al. 2023, sections 3.1 to 3.3; as an editor in KnowEdit (Zhang et al. 2024).
    See the card, `adalora.md`.
    """

    name: ClassVar[str] = "adalora"

    initial_rank: int = Field(default=12, ge=1, description="Directions of each adapter at first.")
    target_rank: int = Field(
        default=8, ge=1, description="Directions of an adapter at the end, on average."
    )
    pruning: bool = Field(
        default=True, description="Spend the budget; otherwise every adapter keeps `initial_rank`."
    )
    warm_up: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the steps before the budget falls."
    )
    final: float = Field(
        default=0.2, ge=0, lt=1, description="Share of the steps with the final directions."
    )
    interval: int = Field(default=1, ge=1, description="Steps between two allocations.")
    smoothing: float = Field(
        default=0.85, gt=0, lt=1, description="Of importance and of its uncertainty."
    )
    orthogonality: float = Field(
        default=0.5, ge=0, description="Price of directions that are not orthonormal."
    )

    @model_validator(mode="after")
    def _has_a_schedule(self) -> Self:
        if self.pruning and self.target_rank >= self.initial_rank:
            raise ValueError("target_rank must be below initial_rank, or pruning false")
        if self.warm_up + self.final >= 1:
            raise ValueError("warm_up and final leave no step in which the budget falls")
        return self

    @property
    def scale(self) -> float:
        """What the product P diag(L) Q is multiplied by; pruning does not change it."""
        return self.alpha / (self.initial_rank + _RANK_OFFSET)

    def settled_after(self, num_steps: int) -> int:
        """The step at which the directions that stay are chosen; steps count from 1."""
        return num_steps - int(self.final * num_steps)

    def attach(self, model: nn.Module, paths: Sequence[str], num_steps: int) -> nn.Module:
        """Put adapters into modules, with a schedule of the budget over `num_steps`.

        Raises:
            BadConfig (CG502): too few steps: directions would be chosen before any has a score.
        """
        from peft import AdaLoraConfig, AdaLoraModel

        if self.pruning and self.settled_after(num_steps) < _STEPS_TO_SCORE:
            raise BadConfig(
                f"of {num_steps} steps in all, the directions that stay would be chosen before "
                "there is a score to choose by.",
                where=f"method {self.name}",
                hint="Raise `steps`, lower `final`, or set `pruning` to false.",
            )
        config = AdaLoraConfig(
            init_r=self.initial_rank,
            target_r=self.target_rank,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]  # any number will do
            target_modules=list(paths),
            fan_in_fan_out=is_transposed_at(model, paths),
            total_step=num_steps,
            tinit=int(self.warm_up * num_steps),
            tfinal=int(self.final * num_steps),
            deltaT=self.interval,
            beta1=self.smoothing,
            beta2=self.smoothing,
            orth_reg_weight=self.orthogonality,
        )
        return AdaLoraModel(model, config, NAME)

    def parameters(self, layer: nn.Module) -> dict[str, nn.Parameter]:
        """Q as "A" (r, d_in), L as "E" (r, 1), P as "B" (d_out, r)."""
        return {key: layer.get_submodule(f"lora_{key}").get_parameter(NAME) for key in "AEB"}

    def first_values(self, parameters: Adapter, generator: torch.Generator) -> dict[str, Tensor]:
        """P and Q normal with standard deviation 0.02, L zero."""
        return {
            "A": _SPREAD * torch.randn(parameters["A"].shape, generator=generator),
            "E": torch.zeros(parameters["E"].shape),
            "B": _SPREAD * torch.randn(parameters["B"].shape, generator=generator),
        }

    def factors(self, adapter: Adapter) -> LowRank:
        """The change s P diag(L) Q, only of the directions whose entry of L is not zero."""
        a, e, b = (adapter[key].detach() for key in "AEB")
        kept = e[:, 0] != 0
        return LowRank(b[:, kept] * (self.scale * e[kept, 0]), a[kept].T)

    def penalty(self, adapters: Sequence[Adapter]) -> Float[Tensor, ""] | None:
        """`orthogonality` times the mean of ||P^T P - I|| and ||Q Q^T - I|| over all adapters."""
        if not self.orthogonality:
            return None
        grams = [
            gram
            for adapter in adapters
            for gram in (adapter["A"] @ adapter["A"].T, adapter["B"].T @ adapter["B"])
        ]
        one = torch.eye(self.initial_rank, dtype=grams[0].dtype)
        norms = [torch.linalg.matrix_norm(gram - one.to(gram.device)) for gram in grams]
        return self.orthogonality * torch.stack([norm.to(norms[0].device) for norm in norms]).mean()

    def after_step(self, tuner: nn.Module, step: int) -> None:
        """Update importances and leave as many directions as the budget of this step allows."""
        if self.pruning:
            tuner.update_and_allocate(step)  # pyright: ignore[reportCallIssue]  # of AdaLoraModel

    def is_settled(self, step: int, num_steps: int) -> bool:
        """Whether the directions that stay have been chosen, so that steps may be left out."""
        return not self.pruning or step > self.settled_after(num_steps)

    def notes(self, lm: LanguageModel, trained: Trained) -> dict[str, object]:
        """Directions in use after each step, over all modules."""
        return {"ranks": trained.ranks}
