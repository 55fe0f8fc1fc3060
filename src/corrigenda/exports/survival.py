"""What is left of an edit after what happens to weights later: quantising, fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
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
from corrigenda.exports.fine_tuning import fine_tune
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
    FINE_TUNED = "fine-tuned"
    """Merged first, then trained a little on ordinary text; see `exports.fine_tuning`."""


FINE_TUNED = "fine-tuned"
"""Name that stands for fine-tuning among the types of weights."""


class Survival(NamedTuple):
    """An assessment with quantised or fine-tuned weights.

    Attributes:
        weights: Type of the weights.
        placing: Place of the change.
        assessment: Answers before (of the unedited model treated alike) and after.
        unedited_kept: Share of neighbours that the unedited model answers as it did before it was
            quantised or fine-tuned: what that costs without any edit. None without neighbours.
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
    def treatment(self) -> str:
        """What was done to the weights, such as "q8_0 merged" or "fine-tuned"."""
        trained = self.placing is Placing.FINE_TUNED
        return str(self.placing) if trained else f"{self.weights} {self.placing}"

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
    """Ask the facts of a patch again after the weights were quantised, or fine-tuned.

    Each type is tried twice: with the patch merged before the weights are quantised, and with the
    patch added at run time to quantised weights. Matrices of blocks get the type; embedding and
    head get at least Q8_0; vectors stay. Quantising is that of the package `gguf`, computing is in
    float32. Neighbours are kept where the answer is that of the unedited model in the same type;
    where `unedited_kept` is low, the type itself costs the model what it knew. "fine-tuned" stands
    for a short training on ordinary text, of the unedited and of the edited model.

    Args:
        lm: The model, without the patch. It is left as it was; a copy in float32 is made of it.
        patch: A patch of weights.
        after: Types, by name: `f16`, `bf16`, `q8_0`, `q5_1`, `q5_0`, `q4_1`, `q4_0`; or
            "fine-tuned".
        facts: What to ask; by default the facts that the patch was made for.

    Raises:
        NotExportable (CG405): the patch changes no weights.
        BadConfig (CG502): no such type, no facts are given and the patch names none.
        MissingExtra (CG504): the package `gguf` is not installed, or `peft` to fine-tune.
        WrongBase (CG401), NotApplied (CG406): as `Patch.apply`.
    """
    lm = require_lm(lm)
    kinds = [parse_form(one) for one in after]
    wanted = list_facts(patch) if facts is None else as_facts(facts)
    asked = [add_related_prompts(lm, fact) for fact in wanted]
    patch.apply(lm).revert()
    copied = TreatedCopy(lm)
    whole = ask_facts(lm, asked)
    return tuple(one for kind in kinds for one in copied.assess(patch, kind, asked, whole))


def parse_form(name: WeightType | str) -> WeightType | None:
    """Return the type of weights that a name of `assess_after` means; None to fine-tune.

    Raises:
        BadConfig (CG502): no such type.
    """
    return None if name == FINE_TUNED else parse_choice(WeightType, name)


class TreatedCopy:
    """A copy of a model in float32, whose weights are quantised or fine-tuned."""

    def __init__(self, lm: LanguageModel) -> None:
        """Copy a model, which carries no patch."""
        self._lm = lm
        self._copy = LanguageModel(copy.deepcopy(lm.model).float(), lm.tokenizer, name=lm.name)
        self._trained: WeightPatch | None = None

    def assess(
        self, patch: Patch, kind: WeightType | None, facts: Sequence[Fact], whole: FactAnswers
    ) -> Iterator[Survival]:
        """Yield what is left of a patch, by placing.

        Args:
            patch: A patch of weights.
            kind: Type of the weights; None to fine-tune them.
            facts: What to ask.
            whole: Answers of the model as it is, without the patch.

        Raises:
            NotExportable (CG405): the patch changes no weights.
        """
        if not isinstance(patch, WeightPatch):
            raise NotExportable(
                "only a patch of weights meets quantised weights.", where=patch.header.method
            )
        # Other weights have another digest than the model that the patch was made on.
        free = WeightPatch(patch.changes, Header(method=patch.header.method))
        lm, other = self._lm, self._copy
        quantise_into(other, lm, kind or WeightType.F32)
        if kind is None and self._trained is None:
            self._trained = fine_tune(other)
        before = ask_facts(other, facts, self._trained if kind is None else None)
        kept = _compare(patch, facts, whole, before).share(Role.NEIGHBOUR)
        after: dict[Placing, FactAnswers] = {}
        if kind is None:
            with free.apply(other):
                after[Placing.FINE_TUNED] = ask_facts(other, facts, fine_tune(other))
        else:
            with free.apply(other, mode="runtime"):
                by_adapter = ask_facts(other, facts)
            with patch.apply(lm):
                quantise_into(other, lm, kind)
            after |= {Placing.MERGED: ask_facts(other, facts), Placing.ADAPTER: by_adapter}
        for placing, answers in after.items():
            compared = _compare(patch, facts, before, answers)
            yield Survival(kind or WeightType.F32, placing, compared, kept)


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


class FactAnswers(NamedTuple):
    """Answers to all questions, and which facts are true."""

    answers: list[str]
    held: list[bool]


def ask_facts(
    lm: LanguageModel, facts: Sequence[Fact], trained: WeightPatch | None = None
) -> FactAnswers:
    """Ask all questions about facts, and whether they are true; with a patch on top if given."""
    prompts = [question.prompt for question in list_questions(facts)]
    with nullcontext() if trained is None else trained.apply(lm):
        return FactAnswers(answer(lm, prompts), check_targets(lm, facts))


def _compare(
    patch: WeightPatch, facts: Sequence[Fact], before: FactAnswers, after: FactAnswers
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
