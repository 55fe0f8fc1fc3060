"""Knowledge Neurons: find the few inner units that express a fact, and change their value slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from corrigenda.editor import Edit, Editor, Requires, Supports
from corrigenda.engines.attribution import (
    AnswerToken,
    Attribution,
    Neuron,
    Objective,
    RefinedNeurons,
    Rule,
    attribute,
    encode_answers,
    list_neurons,
    refine,
    select_above,
    select_specific,
)
from corrigenda.engines.locate.contexts import Contexts, generate_contexts
from corrigenda.errors import NotEnoughFacts
from corrigenda.facts import Fact
from corrigenda.linalg.lowrank import LowRank
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site
from corrigenda.lm.spans import encode_fact
from corrigenda.patch import WeightPatch, header_for
from corrigenda.progress import Progress
from corrigenda.state import State
from corrigenda.training.dataset import TrainingSet

Action = Literal["update", "erase"]
Scaling = Literal["norm", "none"]
Direction = Literal["unembedding", "unembedding with gain", "embedding"]

_CONTEXTS = "contexts"


class LocatedNeurons(NamedTuple):
    """Neurons of one fact, with the attribution they were found by.

    Attributes:
        neurons: Lowest layer first; empty where none is left.
        labels: Tokens of the old answer.
        prompts: Phrasings attributed, the plain prompt first.
        origin: Where the other phrasings come from: "paraphrases", "contexts" or "none".
        attribution: By prompt.
        coarse: Neurons above the threshold, by prompt.
        refined: What the prompts share, before others of the relation are dropped.
    """

    neurons: list[Neuron]
    labels: tuple[int, ...]
    prompts: tuple[str, ...]
    origin: str
    attribution: Attribution
    coarse: list[int]
    refined: RefinedNeurons


class KnowledgeNeurons(Editor):
    """Editing of value slots: columns of down projections that express the old answer.

    One fact at a time; edits may follow each other. No weight is optimised.

    Reference: Dai et al. 2022, sections 3 and 5. See the card.
    """

    name: ClassVar[str] = "knowledge-neurons"
    requires: ClassVar[Requires] = Requires()
    supports: ClassVar[Supports] = Supports(single=True, batch=False, sequential=True)

    action: Action = Field(
        default="update", description="Write the target instead, or set the columns to 0."
    )
    steps: int = Field(default=20, ge=1, description="Points of the integral.")
    rule: Rule = Field(default="midpoint", description="Where the points lie; see the card.")
    objective: Objective = Field(
        default="probability", description="What is attributed; logarithms do not saturate at 0."
    )
    threshold: float = Field(
        default=0.2, ge=0, le=1, description="Least attribution, as a share of a prompt's largest."
    )
    refine: bool = Field(default=True, description="Keep only what several phrasings share.")
    share: float = Field(
        default=0.7, gt=0, le=1, description="Share of the phrasings a neuron must occur in."
    )
    wanted: tuple[int, int] | None = Field(
        default=(2, 5),
        description="Numbers of neurons towards which `share` is moved; none leaves it.",
    )
    relation_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Neurons in more than this share of the neighbours are dropped; 1 keeps all.",
    )
    scaling: Scaling = Field(
        default="norm", description="Scale answers to the length of each column, or not."
    )
    old_weight: float = Field(default=1.0, ge=0, description="Of the old answer taken away.")
    new_weight: float = Field(default=8.0, ge=0, description="Of the target added.")
    direction: Direction = Field(
        default="unembedding", description="Vector that represents a token."
    )
    contexts: Contexts | None = Field(
        default=None, description="Prefixes for a fact without paraphrases; generated if not given."
    )
    seed: int = Field(default=0, description="Of generated contexts.")

    def sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        """Return the down projections of all blocks: neurons may be found in any of them."""
        return tuple(Site(layer) for layer in range(lm.num_layers))

    def fit(
        self,
        lm: LanguageModel,
        corpus: TrainingSet | None = None,
        *,
        progress: Progress | None = None,
    ) -> State:
        """Generate the contexts, on the unedited model; nothing else is learned."""
        fitted = super().fit(lm, corpus, progress=progress)
        if not self.refine:
            return fitted
        contexts = self.contexts or generate_contexts(lm, "memit", seed=self.seed)
        return fitted.updated(meta={_CONTEXTS: contexts.to_json()})

    def edit(self, lm: LanguageModel, facts: Sequence[Fact], state: State | None = None) -> Edit:
        """Find the neurons of one fact's old answer and change their columns.

        Raises:
            NotEnoughFacts (CG106): more than one fact.
            PromptTooLong (CG105): a phrasing with its answer exceeds the context.
            UnknownSite (CG303): the model has mixtures of experts.
        """
        state = state or State()
        state.require_base(lm)
        config = self.model_dump(mode="json")
        if not facts:
            header = header_for(lm, method=self.name, config=config, facts=facts)
            return Edit(WeightPatch({}, header), state)
        if len(facts) > 1:
            raise NotEnoughFacts(
                f"Knowledge Neurons edits one fact at a time, {len(facts)} were given.",
                hint="Edit them one after the other, each with the earlier patches applied, or use "
                "memit or emmet.",
            )
        (fact,) = facts
        target = encode_fact(lm, fact).target_ids
        found = self.locate(lm, fact, state)
        changes = self._changes(lm, found, target)
        notes = self._notes(lm, fact, found)
        header = header_for(lm, method=self.name, config=config, facts=facts, notes=notes)
        return Edit(WeightPatch(changes, header), state)

    def locate(self, lm: LanguageModel, fact: Fact, state: State | None = None) -> LocatedNeurons:
        """Find the neurons that express a fact's old answer.

        Without `before` the old answer is the model's own next token after the plain prompt. The
        phrasings are the prompt and its paraphrases; for a fact without any, the prompt after the
        contexts. Neighbours represent other facts of the relation, each with the model's own next
        token as its answer.
        """
        prompts, origin = self._phrasings(lm, fact, state)
        answers = encode_answers(
            lm, prompts, fact.before, separator=fact.separator, where=fact.label
        )
        attribution = self._attribute(lm, answers)
        coarse = select_above(attribution.scores, self.threshold)
        refined = refine(coarse, self.share, wanted=self.wanted if self.refine else None)
        mask = refined.mask
        if self.relation_share < 1 and fact.neighbours and mask.any():
            others = [
                encode_answers(lm, [text], None, where=fact.label)[0] for text in fact.neighbours
            ]
            scores = self._attribute(lm, others).scores
            mask = select_specific(mask, select_above(scores, self.threshold), self.relation_share)
        labels = tuple(one.label for one in answers[0])
        counts = coarse.sum(dim=(1, 2)).tolist()
        return LocatedNeurons(
            list_neurons(mask), labels, prompts, origin, attribution, counts, refined
        )

    def _attribute(
        self, lm: LanguageModel, answers: Sequence[Sequence[AnswerToken]]
    ) -> Attribution:
        return attribute(lm, answers, steps=self.steps, rule=self.rule, objective=self.objective)

    def _phrasings(
        self, lm: LanguageModel, fact: Fact, state: State | None
    ) -> tuple[tuple[str, ...], str]:
        if not self.refine:
            return (fact.prompt,), "none"
        if fact.paraphrases:
            return tuple(dict.fromkeys((fact.prompt, *fact.paraphrases))), "paraphrases"
        contexts = self.contexts
        if contexts is None and state is not None and _CONTEXTS in state.meta:
            contexts = Contexts.from_json(str(state.meta[_CONTEXTS]))
        if contexts is None:
            contexts = generate_contexts(lm, "memit", seed=self.seed)
        return tuple(prefix + fact.prompt for prefix in contexts.prefixes), "contexts"

    def _changes(
        self, lm: LanguageModel, found: LocatedNeurons, target: Sequence[int]
    ) -> dict[Site, LowRank]:
        """Compute one direction for all columns of a layer (update), or minus them (erase)."""
        changes: dict[Site, LowRank] = {}
        written = self._added_direction(lm, found.labels, target)
        for layer in dict.fromkeys(neuron.layer for neuron in found.neurons):
            units = [neuron.unit for neuron in found.neurons if neuron.layer == layer]
            weight = lm.values(Site(layer))
            columns = weight[:, units].double()
            reads = torch.zeros(weight.shape[1], len(units), dtype=torch.float64).to(weight.device)
            reads[units, range(len(units))] = 1.0
            if self.action == "erase":
                changes[Site(layer)] = LowRank(-columns, reads)
            else:
                lengths = columns.norm(dim=0) if self.scaling == "norm" else columns.new_ones(1)
                coefficients = (reads * lengths).sum(dim=1, keepdim=True)
                changes[Site(layer)] = LowRank(written.to(weight.device)[:, None], coefficients)
        return changes

    def _added_direction(
        self, lm: LanguageModel, old: Sequence[int], new: Sequence[int]
    ) -> Float[Tensor, " d_model"]:
        """Return what is added to a column of length 1 (or to any column, unscaled)."""
        parts = []
        for ids, weight in ((old, -self.old_weight), (new, self.new_weight)):
            vector = token_directions(lm, ids, self.direction).sum(dim=0)
            if self.scaling == "norm":
                parts.append(weight * vector / vector.norm())
            else:
                # The sum over several tokens counts half, as in the re-implementation.
                parts.append(weight * vector * (1.0 if len(ids) == 1 else 0.5))
        return parts[0] + parts[1]

    def _notes(self, lm: LanguageModel, fact: Fact, found: LocatedNeurons) -> Mapping[str, object]:
        old = fact.before or str(lm.tokenizer.decode(list(found.labels))).strip()
        notices = []
        if fact.before is None:
            notices.append(
                f"{fact.label}: no old answer was given (`before`); the model's own next token "
                f'"{old}" was taken.'
            )
        if found.origin == "contexts":
            notices.append(
                f"{fact.label}: no paraphrases; the prompt after {len(found.prompts) - 1} "
                "generated or given prefixes was used to refine."
            )
        dropped = int(found.refined.mask.sum()) - len(found.neurons)
        if not found.neurons:
            reason = (
                "all its neurons are shared with the neighbours; raise `relation_share`"
                if dropped
                else "no neuron is shared by its phrasings; lower `share` or `threshold`"
            )
            notices.append(f"{fact.label}: refused; {reason}.")
        scores = found.attribution.scores.mean(dim=0)
        return {
            "status": ["written" if found.neurons else "refused"],
            "notices": notices,
            "old_answer": old,
            "neurons": [list(neuron) for neuron in found.neurons],
            "attribution": [float(f"{float(scores[one]):.6g}") for one in found.neurons],
            "prompts": list(found.prompts),
            "coarse": found.coarse,
            "share": found.refined.share,
            "dropped_as_general": dropped,
            "largest_gap": float(f"{float(found.attribution.gaps.abs().max()):.6g}"),
        }


def token_directions(
    lm: LanguageModel, ids: Sequence[int], direction: Direction
) -> Float[Tensor, "n d_model"]:
    """Return the vector of the residual stream that represents each token; float64.

    Args:
        lm: The model.
        ids: Token ids.
        direction: "unembedding" is the token's row of the head, "unembedding with gain" that row
            times the gain of the final norm, "embedding" its input embedding, which is the same
            space only where the two are tied.
    """
    embedding = (
        lm.model.get_input_embeddings()
        if direction == "embedding"
        else lm.model.get_output_embeddings()
    )
    assert embedding is not None, "a causal language model has a head"
    rows = embedding.get_parameter("weight").detach()[list(ids)].double()
    return rows * final_gain(lm) if direction == "unembedding with gain" else rows


@torch.no_grad()
def final_gain(lm: LanguageModel) -> Float[Tensor, " d_model"]:
    """Return the gain of the final norm, coordinate by coordinate; float64.

    Read off a vector of mean 0 and length sqrt(d), so that it does not matter which norm it is, how
    it stores its gain, and whether it has a bias.
    """
    norm = lm.model.get_submodule(lm.family.final_norm)
    signs = torch.ones(lm.d_model, device=lm.device, dtype=lm.dtype)
    signs[1::2] = -1
    return (norm(signs).double() - norm(-signs).double()) / 2 * signs.double()
