"""Measurements of a model or a patch that no unit of a run makes: places, projections, latency.

Each function returns measurements that `corrigenda.metrics.registry.evaluate` reads: of KLoB's
cases the locating metrics, of a patch the hit rates of its columns and its overhead.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import cast

from torch import nn

from corrigenda.analysis.causal_trace import Kind, causal_trace
from corrigenda.cases import Case, Probe
from corrigenda.errors import CorrigendaError
from corrigenda.facts import Fact
from corrigenda.lm.decoding import gives, greedy
from corrigenda.lm.interception import ask_rewritten
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.spans import encode
from corrigenda.metrics.locating import FACTUAL, UNBIASEDNESS
from corrigenda.metrics.projection import moved_columns, token_ranks
from corrigenda.patch.moved import added_to_weight
from corrigenda.patch.protocols import Patch
from corrigenda.patch.weights import WeightPatch
from corrigenda.rows import Measurement
from corrigenda.run import costs
from corrigenda.run.prober import describe_error

UNKNOWN = "the model does not give the answer"


def measure_places(
    lm: LanguageModel,
    cases: Iterable[Case],
    *,
    k: int = 5,
    samples: int = 10,
    only_known: bool = True,
) -> list[Measurement]:
    """Locate the sentences of KLoB's cases by causal tracing.

    The place of a sentence is the k layers at whose output, at the subject's last token, restoring
    the state helps most. A text without a fact is traced as if its last word were the subject.

    Args:
        lm: The model; left as it was.
        cases: Of the benchmark `klob`, of one part or several.
        k: Layers of a place; as many as the model has, where it has fewer.
        samples: Noise samples of each trace.
        only_known: Whether sentences that the model does not complete are skipped.
    """
    found: list[Measurement] = []
    for case in cases:
        for probe in case.probes:
            if only_known and probe.answer and not gives(lm, [(probe.prompt, probe.answer)])[0]:
                found.append(Measurement(case=case.id, name=probe.role, skipped=UNKNOWN))
                continue
            try:
                effects = _trace(lm, case, probe, samples)
            except CorrigendaError as error:
                found.append(
                    Measurement(case=case.id, name=probe.role, skipped=describe_error(error))
                )
                continue
            if probe.answer is None:
                found.append(Measurement(case=case.id, name=UNBIASEDNESS, values=effects))
                continue
            best = sorted(range(len(effects)), key=lambda layer: -effects[layer])[:k]
            place = sorted(float(layer) for layer in best)
            found.append(Measurement(case=case.id, name=probe.role, values=place))
            found.append(Measurement(case=case.id, name=FACTUAL, values=effects))
    return found


def _trace(lm: LanguageModel, case: Case, probe: Probe, samples: int) -> list[float]:
    """Effects of restoring single states at the subject's last token, layer by layer."""
    subject = str(case.meta.get("subject") or probe.prompt.split()[-1])
    trace = causal_trace(
        lm,
        probe.prompt,
        subject,
        subject_start=probe.prompt.rfind(subject) if subject in probe.prompt else None,
        answer=probe.answer,
        samples=samples,
    )
    return [float(one) for one in trace.effects[Kind.STATE][trace.subject_tokens[-1]]]


def measure_projections(
    lm: LanguageModel, patch: WeightPatch, facts: Sequence[Fact], *, count: int = 5
) -> list[Measurement]:
    """Rank the targets of facts in the columns of down projections that a patch changed most.

    Args:
        lm: The model, without the patch; left as it was.
        patch: A patch of weights.
        facts: The facts it writes.
        count: Columns of each weight.
    """
    sites = [site for site in patch.changes if site.part == "mlp.down"]
    before = {site: lm.values(site).detach().double().cpu().numpy() for site in sites}
    with patch.apply(lm):
        moved = {site: added_to_weight(lm, site).cpu().numpy() for site in sites}
    after = {site: before[site] + moved[site] for site in sites}
    head = cast("nn.Module", lm.model.get_output_embeddings())
    unembedding = head.get_parameter("weight").detach().double().cpu().numpy()
    columns = {site: moved_columns(before[site], after[site], count=count) for site in sites}
    found: list[Measurement] = []
    for number, fact in enumerate(facts):
        token = encode(lm, fact.prompt, target=fact.target).target_ids[0]
        for name, weights in (("original", before), ("edited", after)):
            ranks = [
                float(rank)
                for site in sites
                for rank in token_ranks(weights[site], columns[site], unembedding, token)
            ]
            label = fact.name or f"fact {number}"
            found.append(Measurement(case=label, name=f"projection/{name}", values=ranks))
    return found


def measure_latency(
    lm: LanguageModel,
    patch: Patch,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 10,
    repeats: int = 5,
) -> list[Measurement]:
    """Time greedy answers without and with a patch; the median of several.

    Args:
        lm: The model, without the patch; left as it was.
        patch: Any patch.
        prompts: Prompts that are continued, one at a time.
        max_new_tokens: Length of an answer.
        repeats: How often each is taken.
    """

    def time_answers() -> list[float]:
        return [_median_seconds(lm, prompt, max_new_tokens, repeats) for prompt in prompts]

    without = time_answers()
    with patch.apply(lm):
        patched = time_answers()
    return [
        Measurement(case=prompt, name="cost/latency", values=[first, second])
        for prompt, first, second in zip(prompts, without, patched, strict=True)
    ]


def measure_prompt_tokens(
    lm: LanguageModel, patch: Patch, prompts: Sequence[str]
) -> list[Measurement]:
    """Count the tokens that a patch adds to prompts; 0 where it rewrites none.

    Args:
        lm: The model, without the patch; left as it was.
        patch: Any patch.
        prompts: Prompts as they are asked.
    """

    def count(model: LanguageModel, _: list[int], asked: list[str]) -> list[int]:
        return [len(encode(model, prompt).ids) for prompt in asked]

    without = count(lm, [], list(prompts))
    with patch.apply(lm):
        patched = ask_rewritten(lm, list(prompts), count)
    return [
        Measurement(case=prompt, name="cost/prompt_tokens", values=[float(second - first)])
        for prompt, first, second in zip(prompts, without, patched, strict=True)
    ]


def _median_seconds(lm: LanguageModel, prompt: str, max_new_tokens: int, repeats: int) -> float:
    seconds: list[float] = []
    for _ in range(repeats):
        begin = costs.read_clock(lm.device)
        greedy(lm, [prompt], max_new_tokens=max_new_tokens)
        seconds.append(costs.read_clock(lm.device) - begin)
    return statistics.median(seconds)
