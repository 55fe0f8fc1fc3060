"""Injection by layer: where does one vector at the subject's last token change the answer?

A locate-then-edit method can only work where this works: it makes the weights produce such a
vector. A model that gathers the subject's tokens directly at the last position can know every fact
and still have no block where injection succeeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from corrigenda.analysis.heatmap import Heatmap, Plot
from corrigenda.engines.locate.target_search import SearchRow, SearchSettings, find_targets
from corrigenda.facts import Fact, find_subject
from corrigenda.lm.model import LanguageModel
from corrigenda.lm.sites import Site, Tokens, state, value
from corrigenda.lm.spans import Encoded, encode, encode_fact
from corrigenda.progress import report_stage

_STAGE = "blocks"

SETTINGS = SearchSettings(
    steps=25,
    learning_rate=0.5,
    kl_weight=0.0,
    weight_decay=0.5,
    clamp=4.0,
    stop_loss=0.05,
    stop_on="total",
)
"""The fixed settings of the measurement; figures are comparable only under these."""


@dataclass(frozen=True)
class Injection:
    """Results of writing a vector at the output of one block's MLP, by fact.

    Attributes:
        layer: The block.
        answered: By fact: whether the new object becomes the greedy answer to the plain prompt.
        transferred: By fact: for each other phrasing, whether the same vector makes the new object
            its greedy answer.
    """

    layer: int
    answered: tuple[bool, ...]
    transferred: tuple[tuple[bool, ...], ...]

    @property
    def share(self) -> float:
        """Share of facts whose new object becomes the greedy answer, in [0, 1]."""
        return sum(self.answered) / len(self.answered)

    @property
    def transfer(self) -> float | None:
        """Share of other phrasings the vectors carry over to, in [0, 1]; None without any."""
        asked = [each for fact in self.transferred for each in fact]
        return sum(asked) / len(asked) if asked else None


class LayerInjections(tuple[Injection, ...]):
    """Results of injection, one for each block measured."""

    def __repr__(self) -> str:
        """Return the best block in one line."""
        if not self:
            return "no block measured"
        best = find_best_layer(self)
        carried = "" if best.transfer is None else f", transfer {best.transfer:.2f}"
        return f"{len(self)} block(s), best: block {best.layer}, share {best.share:.2f}{carried}"

    def plot(self) -> Plot:
        """Return a heat map of share and transfer by block: to print, to show, or to `save`."""
        num_layers = 1 + max((one.layer for one in self), default=-1)
        shares, transfers = [math.nan] * num_layers, [math.nan] * num_layers
        for one in self:
            shares[one.layer] = one.share
            transfers[one.layer] = math.nan if one.transfer is None else one.transfer
        heatmap = Heatmap(
            title="new object answered with the vector in place",
            rows=("facts", "other phrasings"),
            values=(tuple(shares), tuple(transfers)),
            unit="share",
        )
        return Plot((heatmap,), caption=repr(self))


class _InjectedRow(NamedTuple):
    """Sequence to answer with a vector in place: reads as in `SearchRow`."""

    fact: int
    ids: tuple[int, ...]
    start: int
    reads: tuple[int, ...]
    labels: tuple[int, ...]


def measure_injection(
    lm: LanguageModel,
    facts: Sequence[Fact],
    *,
    prefixes: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    settings: SearchSettings = SETTINGS,
) -> LayerInjections:
    """Measure at which blocks a vector at the subject's last token changes the answer.

    For each fact and block a vector is searched that, added to the output of the block's MLP (of
    its down projection) at the subject's last token, makes `target` the answer to `prompt` in every
    context. It then is put in place under the plain prompt and under every paraphrase that holds
    the subject, and the answer counts where every token of the target is the greedy one.

    Args:
        lm: The model; left as it was.
        facts: Each with its subject, a target that is not the model's answer, and paraphrases.
        prefixes: Contexts put before the prompt in the search, besides the plain prompt; each ends
            where the prompt begins.
        layers: Blocks to measure; all if None.
        settings: Of the search. The defaults are the measurement's own.

    Returns:
        One result per block, in the order of `layers`.

    Raises:
        AmbiguousSubject (CG104): a fact without a subject, or a paraphrase that holds it twice.
        PromptTooLong (CG105): a prompt with its target exceeds the context.
        NonFinite (CG201): a loss is not a number.
    """
    for fact in facts:
        fact.span  # noqa: B018 - raises where there is no subject
    rows = [
        row
        for number, fact in enumerate(facts)
        for row in _make_search_rows(lm, number, fact, prefixes)
    ]
    asked = [place for number, fact in enumerate(facts) for place in _make_rows(lm, number, fact)]
    names = [fact.label for fact in facts]
    results = []
    blocks = list(range(lm.num_layers) if layers is None else layers)
    for done, layer in enumerate(blocks):
        report_stage(_STAGE, done, len(blocks))
        found = find_targets(lm, rows, layer=layer, role="value", settings=settings, names=names)
        says = _check_answers(lm, asked, layer, found.deltas)
        by_fact: list[list[bool]] = [[] for _ in facts]
        for place, said in zip(asked, says, strict=True):
            by_fact[place.fact].append(said)
        results.append(
            Injection(
                layer,
                tuple(own[0] for own in by_fact),
                tuple(tuple(own[1:]) for own in by_fact),
            )
        )
    report_stage(_STAGE, len(blocks), len(blocks))
    return LayerInjections(results)


def find_best_layer(results: Sequence[Injection]) -> Injection:
    """Return the block that changes most facts; ties go to larger transfer, then later blocks."""
    return max(results, key=lambda result: (result.share, result.transfer or 0.0, result.layer))


def _make_search_rows(
    lm: LanguageModel, number: int, fact: Fact, prefixes: Sequence[str]
) -> list[SearchRow]:
    rows = []
    for prefix in dict.fromkeys(("", *prefixes)):
        encoded = encode_fact(lm, fact, prefix=prefix)
        rows.append(SearchRow(*_make_row(number, encoded), anchor=not prefix))
    return rows


def _make_rows(lm: LanguageModel, number: int, fact: Fact) -> list[_InjectedRow]:
    """Make rows of the plain prompt first, then of the paraphrases that hold the subject."""
    assert fact.subject is not None
    prompts = [(fact.prompt, fact.span)]
    for text in fact.paraphrases:
        if fact.subject in text:
            prompts.append((text, find_subject(text, fact.subject, where=fact.label)))
    places = []
    for prompt, span in prompts:
        encoded = encode(
            lm,
            prompt,
            target=fact.target,
            subject=span,
            separator=fact.separator,
            where=fact.label,
        )
        places.append(_make_row(number, encoded))
    return places


def _make_row(number: int, encoded: Encoded) -> _InjectedRow:
    assert encoded.subject_last is not None
    return _InjectedRow(
        number,
        tuple(encoded.ids[: encoded.prompt_last + len(encoded.labels)]),
        encoded.subject_last,
        tuple(encoded.reads),
        encoded.target_ids,
    )


def _check_answers(
    lm: LanguageModel,
    asked: Sequence[_InjectedRow],
    layer: int,
    deltas: Float[Tensor, "n d_model"],
    batch_tokens: int = 8192,
) -> list[bool]:
    """Return whether every label is the greedy token with its fact's vector in place."""
    order = sorted(range(len(asked)), key=lambda index: len(asked[index].ids))
    says = [False] * len(asked)
    while order:
        count = max(1, batch_tokens // len(asked[order[-1]].ids))
        part, order = order[-count:], order[:-count]
        for index, said in zip(
            part, _check_batch(lm, [asked[i] for i in part], layer, deltas), strict=True
        ):
            says[index] = said
    return says


def _check_batch(
    lm: LanguageModel, part: Sequence[_InjectedRow], layer: int, deltas: Float[Tensor, "n d_model"]
) -> list[bool]:
    pad = lm.tokenizer.pad_token_id
    tokens = Tokens.pad([list(place.ids) for place in part], pad if isinstance(pad, int) else 0).to(
        lm.device
    )
    width = max(len(place.reads) for place in part)
    # Short targets repeat their last read, which changes nothing in "all of them are right".
    at = torch.tensor([_repeat_last(place.reads, width) for place in part], device=lm.device)
    labels = torch.tensor([_repeat_last(place.labels, width) for place in part], device=lm.device)
    starts = torch.tensor([place.start for place in part], device=lm.device)
    added = deltas[[place.fact for place in part]]
    rows = torch.arange(len(part), device=lm.device)

    def add(values: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        changed = values.clone()
        changed[rows, starts] += added.to(values.dtype)
        return changed

    top = state(lm.num_layers - 1)
    with lm.swap({value(Site(layer)): add}):
        hidden = lm.tap(tokens, [top], positions=at)[top]
    with torch.inference_mode():
        right = lm.head(hidden).argmax(dim=-1) == labels
    return right.all(dim=-1).tolist()


def _repeat_last(values: Sequence[int], width: int) -> list[int]:
    return [*values, *[values[-1]] * (width - len(values))]
