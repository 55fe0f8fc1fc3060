"""What is left of an edit when weights are quantised, as in the engines that serve it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers.pytorch_utils import Conv1D

from corrigenda.assessment import (
    Assessment,
    Outcome,
    PromptAnswers,
    Role,
    check_targets,
    list_facts,
    list_questions,
)
from corrigenda.engines.pocket_world import add_related_prompts
from corrigenda.errors import NotExportable
from corrigenda.exports.gguf_types import WeightType, round_trip
from corrigenda.facts import as_facts
from corrigenda.lm.decoding import answer
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.wrapping import require_lm
from corrigenda.patch.header import Header
from corrigenda.patch.weights import WeightPatch
from corrigenda.settings import parse_choice

if TYPE_CHECKING:
    from corrigenda.facts import Fact, FactLike
    from corrigenda.patch.protocols import Patch

# Files with less than eight bits keep embedding and head in more, mostly in Q8_0.
_WIDE = (WeightType.F32, WeightType.F16, WeightType.BF16, WeightType.Q8_0)


class Placing(StrEnum):
    """Place of a change on quantised weights."""

    MERGED = "merged"
    """Merged first, then quantised: a file of its own."""
    ADAPTER = "adapter"
    """Added at run time to the outputs of quantised weights, as llama.cpp does with an adapter."""


class Survival(NamedTuple):
    """An assessment with quantised weights.

    Attributes:
        weights: Type of the weights.
        placing: Place of the change.
        assessment: Answers before (of the unedited model in the same type) and after.
        unedited_kept: Share of neighbours that the unedited model answers in this type as it did
            before it was quantised: what the type costs without any edit. None without neighbours.
    """

    weights: WeightType
    placing: Placing
    assessment: Assessment
    unedited_kept: float | None = None

    def to_json(self) -> dict[str, object]:
        """Return the shares and what failed, as plain values."""
        found = self.assessment
        return {
            "weights": str(self.weights),
            "placing": str(self.placing),
            "efficacy": found.share(Role.PROMPT),
            "paraphrases_changed": found.share(Role.PARAPHRASE),
            "neighbours_kept": found.share(Role.NEIGHBOUR),
            "unedited_kept": self.unedited_kept,
            "failed": self.failed,
        }

    @property
    def failed(self) -> list[str]:
        """Prompts of the facts that are not true."""
        pairs = zip(self.assessment.facts, self.assessment.outcomes, strict=True)
        return [fact.prompt for fact, outcome in pairs if outcome is Outcome.FAILED]


def assess_after(
    lm: LanguageModel,
    patch: Patch,
    after: Sequence[WeightType | str] = (WeightType.BF16, WeightType.Q8_0, WeightType.Q4_0),
    facts: FactLike | Sequence[FactLike] | None = None,
) -> tuple[Survival, ...]:
    """Ask the facts of a patch again after the weights were quantised and dequantised.

    Each type is tried twice: with the patch merged before the weights are quantised, and with the
    patch added at run time to quantised weights. Matrices of blocks get the type; embedding and
    head get at least Q8_0; vectors stay. Quantising is that of the package `gguf`, computing is in
    float32. Neighbours are kept where the answer is that of the unedited model in the same type;
    where `unedited_kept` is low, the type itself costs the model what it knew.

    Args:
        lm: The model, without the patch. It is left as it was; a copy in float32 is made of it.
        patch: A patch of weights.
        after: Types, by name: `f16`, `bf16`, `q8_0`, `q5_1`, `q5_0`, `q4_1`, `q4_0`.
        facts: What to ask; by default the facts that the patch was made for.

    Raises:
        NotExportable (CG405): the patch changes no weights.
        BadConfig (CG502): no such type, no facts are given and the patch names none.
        MissingExtra (CG504): the package `gguf` is not installed.
        WrongBase (CG401), NotApplied (CG406): as `Patch.apply`.
    """
    lm = require_lm(lm)
    kinds = [parse_choice(WeightType, one) for one in after]
    if not isinstance(patch, WeightPatch):
        raise NotExportable(
            "only a patch of weights meets quantised weights.", where=patch.header.method
        )
    wanted = list_facts(patch) if facts is None else as_facts(facts)
    asked = [add_related_prompts(lm, fact) for fact in wanted]
    patch.apply(lm).revert()
    other = LanguageModel(copy.deepcopy(lm.model).float(), lm.tokenizer, name=lm.name)
    # Quantised weights have another digest than the model that the patch was made on.
    free = WeightPatch(patch.changes, Header(method=patch.header.method))
    found: list[Survival] = []
    whole = _ask(lm, asked)
    for kind in kinds:
        quantise_into(other, lm, kind)
        before = _ask(other, asked)
        kept = _compare(patch, asked, whole, before).share(Role.NEIGHBOUR)
        with free.apply(other, mode="runtime"):
            after_adapter = _ask(other, asked)
        with patch.apply(lm):
            quantise_into(other, lm, kind)
        after_merged = _ask(other, asked)
        for placing, answers in (
            (Placing.MERGED, after_merged),
            (Placing.ADAPTER, after_adapter),
        ):
            found.append(Survival(kind, placing, _compare(patch, asked, before, answers), kept))
    return tuple(found)


@torch.no_grad()
def quantise_into(other: LanguageModel, lm: LanguageModel, kind: WeightType) -> None:
    """Write the weights of a model, quantised and dequantised, into a copy of it in float32."""
    tables = {
        module.get_parameter("weight")
        for module in (lm.model.get_input_embeddings(), lm.model.get_output_embeddings())
        if module is not None
    }
    targets = dict(other.model.named_parameters())
    for path, parameter in lm.model.named_parameters():
        if parameter.dim() == 1:
            targets[path].copy_(parameter)
            continue
        wide = parameter in tables and kind not in _WIDE
        owner = lm.model.get_submodule(path.rpartition(".")[0])
        flipped = isinstance(owner, Conv1D)
        weight = parameter.T if flipped else parameter
        weight = round_trip(weight, WeightType.Q8_0 if wide else kind)
        targets[path].copy_(weight.T if flipped else weight)


class _Asked(NamedTuple):
    """Answers to all questions, and which facts are true."""

    answers: list[str]
    held: list[bool]


def _ask(lm: LanguageModel, facts: Sequence[Fact]) -> _Asked:
    prompts = [question.prompt for question in list_questions(facts)]
    return _Asked(answer(lm, prompts), check_targets(lm, facts))


def _compare(
    patch: WeightPatch, facts: Sequence[Fact], before: _Asked, after: _Asked
) -> Assessment:
    return Assessment(
        patch=patch,
        facts=tuple(facts),
        outcomes=tuple(
            (Outcome.ALREADY_TRUE if old else Outcome.SUCCEEDED) if new else Outcome.FAILED
            for old, new in zip(before.held, after.held, strict=True)
        ),
        answers=tuple(
            PromptAnswers(
                prompt=question.prompt,
                role=question.role,
                fact=question.fact,
                before=old,
                after=new,
            )
            for question, old, new in zip(
                list_questions(facts), before.answers, after.answers, strict=True
            )
        ),
        changes=(),
        method=patch.header.method,
        config=dict(patch.header.config),
        seconds={},
    )
