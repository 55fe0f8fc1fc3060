"""Knowledge neurons: which inner units of feed-forward blocks express an answer.

The attribution itself is in `corrigenda.engines.attribution`; the editing method builds on
it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.analysis.heatmap import Heatmap, Plot
from corrigenda.engines.attribution import (
    AnswerToken,
    Neuron,
    Objective,
    Rule,
    attribute,
    encode_answers,
    list_neurons,
    refine,
    select_above,
)
from corrigenda.engines.locate.contexts import generate_contexts
from corrigenda.errors import BadConfig, EmptyTarget
from corrigenda.facts import Fact, find_subject
from corrigenda.lm.kv_cache import pad_id, widen
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.prompt_checks import check_prompts, check_seed
from corrigenda.lm.sites import Point, Site, Tokens, key, state
from corrigenda.lm.wrapping import require_lm

SUPPRESS, AMPLIFY = 0.0, 2.0
"""Factors by which the paper scales neurons to see what they do."""


class ScalingEffect(NamedTuple):
    """Probability of the answer while the neurons found are scaled, mean over its tokens.

    Attributes:
        clean: Without.
        suppressed: With all of them at 0.
        amplified: With all of them doubled.
    """

    clean: float
    suppressed: float
    amplified: float


@dataclass(frozen=True, repr=False)
class NeuronAttribution:
    """Attributions of an answer to the neurons of all blocks, and the neurons that express it.

    Attributes:
        prompts: Phrasings, the plain prompt first.
        answer: Text whose probability is attributed.
        subject: Text at whose last token neurons were scaled; None at the place of the answer.
        scores: Attribution by phrasing, block and unit.
        clean: The objective by phrasing.
        without: The objective with all units of one block at 0.
        objective: "probability" or "log-probability".
        threshold: Least share of a phrasing's largest attribution.
        share: Share of the phrasings asked for in the end.
        coarse: Neurons above the threshold, by phrasing.
        neurons: Those that enough phrasings share, lowest block first.
        effect: What they do to the answer of the plain prompt.
    """

    prompts: tuple[str, ...]
    answer: str
    subject: str | None
    scores: Float[Tensor, "prompt layer d_inner"]
    clean: Float[Tensor, " prompt"]
    without: Float[Tensor, "prompt layer"]
    objective: Objective
    threshold: float
    share: float
    coarse: tuple[int, ...]
    neurons: tuple[Neuron, ...]
    effect: ScalingEffect

    def score(self, neuron: Neuron) -> float:
        """Return the attribution of a neuron, mean over the phrasings."""
        return float(self.scores[:, neuron.layer, neuron.unit].mean())

    def strongest(self, count: int) -> list[Neuron]:
        """Return the neurons with the largest attributions, lowest block first."""
        best = sorted(self.neurons, key=self.score, reverse=True)[:count]
        return sorted(best, key=lambda neuron: (neuron.layer, -self.score(neuron)))

    def by_layer(self) -> list[float]:
        """Sum the attributions of all units of each block, mean over the phrasings.

        Approximates how much the objective falls when the whole block is 0 at that position.
        """
        return self.scores.sum(dim=-1).mean(dim=0).tolist()

    @property
    def largest_gap(self) -> float:
        """Most by which a sum of attributions misses `clean - without`; 0 is complete."""
        missed = self.scores.sum(dim=-1) - (self.clean[:, None] - self.without)
        return float(missed.abs().max())

    def summary(self) -> str:
        """Return the answer, the neurons found and their effect in a few lines."""
        place = "where the answer is read"
        if self.subject is not None:
            place = f'at the last token of "{self.subject}"'
        return (
            f'"{self.prompts[0]}" -> "{self.answer}", {place}\n'
            f"{len(self.neurons)} neuron(s) in at least {self.share:.0%} of {len(self.prompts)} "
            f"phrasing(s); above the threshold in the plain prompt: {self.coarse[0]}\n"
            f"probability {self.effect.clean:.3f}, with these at 0 {self.effect.suppressed:.3f}, "
            f"doubled {self.effect.amplified:.3f}\n"
            f"sums of attributions miss the differences by at most {self.largest_gap:.2g}"
        )

    def __repr__(self) -> str:
        """Return the summary."""
        return self.summary()

    def plot(self) -> Plot:
        """Return a heat map by phrasing and block: to print, to show, or to `save`."""
        sums = tuple(tuple(row) for row in self.scores.sum(dim=-1).tolist())
        title = "attribution of all units of a block"
        return Plot((Heatmap(title, self.prompts, sums, unit="attribution"),), self.summary())

    def to_json(self) -> dict[str, object]:
        """Return plain dictionaries and lists, as `corrigenda neurons --json` prints them."""
        return {
            "prompts": list(self.prompts),
            "answer": self.answer,
            "subject": self.subject,
            "objective": self.objective,
            "clean": self.clean.tolist(),
            "threshold": self.threshold,
            "share": self.share,
            "coarse": list(self.coarse),
            "neurons": [
                {"layer": one.layer, "unit": one.unit, "attribution": self.score(one)}
                for one in self.neurons
            ],
            "by_layer": self.by_layer(),
            "effect": self.effect._asdict(),
            "largest_gap": self.largest_gap,
        }


def knowledge_neurons(
    lm: LanguageModel,
    prompt: str | Fact,
    *,
    answer: str | None = None,
    subject: str | None = None,
    paraphrases: Sequence[str] | None = None,
    threshold: float = 0.2,
    share: float = 0.7,
    wanted: tuple[int, int] | None = (2, 5),
    steps: int = 20,
    rule: Rule = "midpoint",
    objective: Objective = "probability",
    seed: int = 0,
) -> NeuronAttribution:
    """Find the neurons that express an answer.

    Args:
        lm: The model; left as it was.
        prompt: Text up to the answer; or a fact, for its prompt and its paraphrases, if it has any.
        answer: Text whose probability is attributed; the model's own next token if None. Several
            tokens are read under teacher forcing, each at its own position, and averaged.
        subject: Scale the units at the last token of this text, which every phrasing must hold. If
            None, where the answer is read, as in the paper.
        paraphrases: Other phrasings to refine with; none at all for an empty list, which leaves
            the neurons of one prompt. If None, the prompt after prefixes that the model writes.
        threshold: Least attribution, as a share of the largest of a phrasing.
        share: Share of the phrasings a neuron must occur in.
        wanted: Numbers of neurons towards which `share` is moved; None leaves it.
        steps: Points of the integral.
        rule: Where they lie; see `attribute`.
        objective: What is attributed.
        seed: Of the prefixes.

    Raises:
        SubjectNotFound (CG103), AmbiguousSubject (CG104): a phrasing lacks the subject, or holds it
            twice.
        PromptTooLong (CG105): a phrasing with the answer exceeds the context.
        EmptyTarget (CG102): an empty answer.
        BadConfig (CG502): a threshold, share, number of steps or seed out of range.
        UnknownSite (CG303): the model has mixtures of experts.

    Reference: Dai et al. 2022, section 3. See `knowledge_neurons.md` of the method.
    """
    lm = require_lm(lm)
    if isinstance(prompt, Fact):
        paraphrases = paraphrases if paraphrases is not None else prompt.paraphrases or None
        prompt = prompt.prompt
    if not (0 <= threshold <= 1 and 0 < share <= 1 and steps >= 1):
        raise BadConfig(
            f"threshold {threshold}, share {share}, {steps} steps.",
            hint="A threshold is in [0, 1], a share in (0, 1], and there is at least one step.",
        )
    check_seed(seed)
    check_prompts([prompt, *(paraphrases or ())])
    if answer is not None and not answer.strip():
        raise EmptyTarget(
            "the answer to attribute is empty.", hint="Leave it out for the model's own answer."
        )
    if paraphrases is None:
        prefixes = generate_contexts(lm, "memit", seed=seed).prefixes
        prompts = [prefix + prompt for prefix in prefixes]
    else:
        prompts = list(dict.fromkeys((prompt, *paraphrases)))
    spans = None
    if subject is not None:
        # After a prefix the subject is the one of the prompt, also if the prefix holds it.
        own = find_subject(prompt, subject)
        spans = [
            own._replace(start=own.start + shift, end=own.end + shift)
            if (shift := len(text) - len(prompt)) >= 0 and text.endswith(prompt)
            else find_subject(text, subject)
            for text in prompts
        ]
    asked = encode_answers(lm, prompts, answer, subjects=spans)
    found = attribute(lm, asked, steps=steps, rule=rule, objective=objective)
    coarse = select_above(found.scores, threshold)
    refined = refine(coarse, share, wanted=wanted if len(prompts) > 1 else None)
    neurons = list_neurons(refined.mask)
    labels = [one.label for one in asked[0]]
    return NeuronAttribution(
        prompts=tuple(prompts),
        answer=str(lm.tokenizer.decode(labels)).strip() if answer is None else answer,
        subject=subject,
        scores=found.scores,
        clean=found.clean,
        without=found.without,
        objective=objective,
        threshold=threshold,
        share=refined.share,
        coarse=tuple(coarse.sum(dim=(1, 2)).tolist()),
        neurons=tuple(neurons),
        effect=ScalingEffect(
            scaled_probability(lm, asked[0], [], 1.0),
            scaled_probability(lm, asked[0], neurons, SUPPRESS),
            scaled_probability(lm, asked[0], neurons, AMPLIFY),
        ),
    )


def scaled_probability(
    lm: LanguageModel, asked: Sequence[AnswerToken], neurons: Sequence[Neuron], factor: float
) -> float:
    """Return an answer's probability with some neurons scaled, mean over its tokens.

    The neurons are scaled at the position of each question and nowhere else; what later blocks
    compute follows.

    Args:
        lm: The model; left as it was.
        asked: The questions of one prompt.
        neurons: Which units.
        factor: 0 suppresses, 2 amplifies, 1 leaves all as it is.

    Reference: Dai et al. 2022, section 4.3.
    """
    tokens = Tokens.pad([one.ids for one in asked], pad_id(lm)).to(lm.device)
    at = torch.tensor([one.at for one in asked], device=lm.device)
    rows = torch.arange(len(asked), device=lm.device)
    units: dict[int, list[int]] = {}
    for neuron in neurons:
        units.setdefault(neuron.layer, []).append(neuron.unit)

    def scaling(layer: int) -> tuple[Point, _ScaleUnits]:
        return key(Site(layer)), _ScaleUnits(rows, at, torch.tensor(units[layer]), factor)

    top = state(lm.num_layers - 1)
    with lm.swap(dict(map(scaling, units))):
        hidden = lm.tap(tokens, [top], positions=tokens.lengths - 1)[top]
    with torch.inference_mode():
        shares = widen(lm.head(hidden)).softmax(dim=-1)
        labels = torch.tensor([one.label for one in asked], device=shares.device)
        return float(shares.gather(-1, labels[:, None]).mean())


class _ScaleUnits(NamedTuple):
    """Function that multiplies some units at one position of each row."""

    rows: Tensor
    at: Tensor
    units: Tensor
    factor: float

    def __call__(self, keys: Float[Tensor, "batch pos d_inner"]) -> Tensor:
        changed = keys.clone()
        here = (self.rows[:, None], self.at[:, None], self.units.to(keys.device)[None])
        changed[here] = keys[here] * self.factor
        return changed
